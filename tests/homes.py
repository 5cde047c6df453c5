"""Copies of a finished home, to be changed."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow.tracking._tracking_service import utils

from flows.home import Home
from flows.run import Run, runs_of


def moved(finished: Path, into: Path) -> Run:
    """Return the newest run of a copy of a home, whose exchange is the copy's own."""
    utils._artifact_repos_cache.clear()  # MLflow remembers a run's server; a copy has the same runs
    shutil.copytree(finished, into, ignore=shutil.ignore_patterns("servers", "prefect", "cache"))
    (path,) = (into / ".wardround" / "runs").glob("*/run.json")
    described = json.loads(path.read_text()) | {"exchange": str(into / ".wardround" / "exchange")}
    path.write_text(json.dumps(described))
    return runs_of(Home(into))[-1]


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
