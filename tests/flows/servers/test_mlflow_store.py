"""Stores of MLflow that can't be used as they are: a clear error, and nothing is touched."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from flows.runs.paths import Home
from flows.runs.run import runs_of
from flows.servers.environment import mlflow_server
from flows.servers.loopback import running
from flows.servers.mlflow_store import check_store
from sites.yaml_files import ConfigError


@pytest.fixture
def store(finished: Path, tmp_path: Path) -> Path:
    copied = tmp_path / "mlflow.db"
    shutil.copy(finished / "mlruns" / "mlflow.db", copied)
    return copied


def test_the_store_of_the_installed_mlflow_is_fine_and_so_is_none(store: Path, tmp_path: Path) -> None:
    check_store(store)
    check_store(tmp_path / "nothing.db")
    assert not (tmp_path / "nothing.db").exists()


def revise(store: Path, revision: str) -> None:
    with closing(sqlite3.connect(store)) as opened:
        opened.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        opened.commit()


def foreign(store: Path) -> None:
    store.unlink()
    with closing(sqlite3.connect(store)) as opened:
        opened.execute("CREATE TABLE guests (name TEXT)")
        opened.commit()


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda store: store.write_bytes(b"a text" * 999), "expected MLflow's store, got: "),
        (lambda store: store.write_bytes(store.read_bytes()[:5000]), "store, got: |damaged"),
        (foreign, "got another database"),
        (lambda store: revise(store, "451aebb31d03"), "an earlier MLflow.*mlflow db upgrade"),
        (lambda store: revise(store, "ffffffffffff"), "a later MLflow"),
    ],
    ids=["a text", "half a store", "another program's", "an earlier version", "a later version"],
)
def test_a_store_that_is_none_says_what_it_is_and_what_to_do(store: Path, alter, message: str) -> None:
    alter(store)
    before = store.read_bytes()
    with pytest.raises(ConfigError, match=message):
        check_store(store)
    assert store.read_bytes() == before


def test_a_run_does_not_begin_on_a_foreign_store(untouched: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(untouched, home)
    (home / "mlruns").mkdir()
    foreign_store = home / "mlruns" / "mlflow.db"
    foreign_store.write_bytes(b"somebody's notes")
    command = [sys.executable, "-m", "flows.cli", "run", "small.yaml"]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2 and "expected MLflow's store" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert foreign_store.read_bytes() == b"somebody's notes"
    assert not runs_of(Home(home)) and not list((home / "wards").glob("*/state/ledger.sqlite"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A function that makes a folder on a disk of its own of so many KiB, which is soon full."""
    made: list[Path] = []

    def make(kib: int) -> Path:
        folder = tmp_path / f"small-{len(made)}"
        folder.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)], capture_output=True
        )
        if mounted.returncode:
            pytest.skip("network namespaces need root, and so do disks of a test's own")
        made.append(folder)
        return folder

    yield make
    for folder in made:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def at_home(home: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run a command at the coordinator's, which asks MLflow once and no more."""
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments], cwd=home, capture_output=True, text=True,
        env={**os.environ, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}, timeout=600,
    )  # fmt: skip


def fill_artifacts(mlruns: Path, small_disk: Callable[[int], Path]) -> Path:
    """Put MLflow's artifacts on a disk that is nearly full; return what fills it."""
    disk = small_disk(1200)
    mlruns.mkdir()
    (mlruns / "artifacts").symlink_to(disk)
    (disk / "filler").write_bytes(bytes(1_050_000))
    return disk / "filler"


def fill_all(mlruns: Path, small_disk: Callable[[int], Path], free: int) -> Path:
    """Put all of MLflow's, its database too, on a disk with little left; return what fills it."""
    disk = small_disk(20_000)
    mlruns.symlink_to(disk)
    (disk / "artifacts").mkdir()
    with running(mlflow_server(Home(mlruns.parent))):  # which makes its database
        pass
    (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - free))
    return disk / "filler"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (fill_artifacts, "MLflow did not store all of round"),
        (partial(fill_all, free=0), "MLflow did not store all of"),
        (partial(fill_all, free=100_000), "MLflow did not store all of"),
    ],
    ids=["artifacts", "database from the start", "database while it trains"],
)
def test_a_disk_that_is_full_under_mlflow_loses_nothing(
    fill: Callable[..., Path], message: str, untouched: Path, tmp_path: Path,
    small_disk: Callable[[int], Path],
) -> None:  # fmt: skip
    home = tmp_path / "home"
    shutil.copytree(untouched, home)
    filler = fill(home / "mlruns", small_disk)
    stopped = at_home(home, "run", "small.yaml", "--test-noise", "7")
    assert stopped.returncode == 4, stopped.stdout + stopped.stderr
    assert message in stopped.stderr and "nothing is lost" in stopped.stderr, stopped.stderr
    assert "Traceback" not in stopped.stderr
    filler.unlink()
    again = at_home(home, "run", "small.yaml", "--test-noise", "7")
    assert again.returncode == 0, again.stdout + again.stderr
    verified = at_home(home, "verify")
    assert verified.returncode == 0, verified.stdout
