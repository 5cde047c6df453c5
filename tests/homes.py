"""Copies of a finished home, to be changed."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from mlflow.tracking._tracking_service import utils

from flows.runs.paths import Home
from flows.runs.run import Run, runs_of

NOT_COPIED = ("servers", "prefect", "cache")


def moved(finished: Path, into: Path) -> Run:
    """Return the newest run of a copy of a home, whose exchange is the copy's own."""
    shutil.copytree(finished, into, ignore=shutil.ignore_patterns(*NOT_COPIED))
    return _newest(into)


def put_back(finished: Path, home: Path) -> Run:
    """Make a copy of a home, whose MLflow runs on, what `moved` made; return its newest run."""
    stays = (".wardround", "mlruns", "mlflow.db", *NOT_COPIED)
    for path in (*home.iterdir(), *(home / ".wardround").iterdir(), *(home / "mlruns").iterdir()):
        if path.name not in stays:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    ignore = shutil.ignore_patterns("mlflow.db", *NOT_COPIED)
    shutil.copytree(finished, home, ignore=ignore, dirs_exist_ok=True)
    before, now = (
        sqlite3.connect(each / "mlruns" / "mlflow.db", timeout=30) for each in (finished, home)
    )
    with closing(before), closing(now):
        before.backup(now)  # a transaction, which the server's open connections see
    return _newest(home)


def _newest(home: Path) -> Run:
    utils._artifact_repos_cache.clear()  # MLflow remembers a run's server; a copy has the same runs
    (path,) = (home / ".wardround" / "runs").glob("*/run.json")
    described = json.loads(path.read_text()) | {"exchange": str(home / ".wardround" / "exchange")}
    path.write_text(json.dumps(described))
    return runs_of(Home(home))[-1]


@contextmanager
def replaced(path: Path, data: bytes | None) -> Iterator[None]:
    """Let a file have other bytes for a while; None for no file."""
    before = path.read_bytes() if path.exists() else None
    try:
        if data is None:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        yield
    finally:
        if before is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(before)
