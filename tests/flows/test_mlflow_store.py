"""Stores of MLflow that can't be used as they are: a clear error, and nothing is touched."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from flows.home import Home
from flows.mlflow_store import check_store
from flows.run import runs_of
from flows.servers import running
from sites.documents import ConfigError


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
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=200)
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
        env={**os.environ, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}, timeout=250,
    )  # fmt: skip


def check_nothing_is_lost(home: Path, filler: Path, message: str) -> None:
    """A training stops with one message while `filler` fills a disk, and goes on without it."""
    stopped = at_home(home, "run", "small.yaml", "--test-noise", "7")
    assert stopped.returncode == 1, stopped.stdout + stopped.stderr
    assert message in stopped.stderr and "Nothing is lost" in stopped.stderr, stopped.stderr
    assert "Traceback" not in stopped.stderr
    filler.unlink()
    again = at_home(home, "run", "small.yaml", "--test-noise", "7")
    assert again.returncode == 0, again.stdout + again.stderr
    verified = at_home(home, "verify")
    assert verified.returncode == 0, verified.stdout


@pytest.mark.slow
def test_a_disk_that_is_full_while_a_round_is_logged_loses_nothing(
    untouched: Path, tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    home, disk = tmp_path / "home", small_disk(1200)
    shutil.copytree(untouched, home)
    (home / "mlruns").mkdir()
    (home / "mlruns" / "artifacts").symlink_to(disk)
    (disk / "filler").write_bytes(bytes(1_050_000))
    check_nothing_is_lost(home, disk / "filler", "MLflow has not taken round")


@pytest.mark.slow
@pytest.mark.parametrize("free", [0, 100_000], ids=["from the start", "while it trains"])
def test_a_disk_that_is_full_under_mlflows_database_loses_nothing(
    free: int, untouched: Path, tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    home, disk = tmp_path / "home", small_disk(20_000)
    shutil.copytree(untouched, home)
    (home / "mlruns").symlink_to(disk)
    (disk / "artifacts").mkdir()
    with running(Home(home).mlflow):  # which makes its database
        pass
    filler = disk / "filler"
    left = shutil.disk_usage(disk).free
    filler.write_bytes(bytes(left - free))
    check_nothing_is_lost(home, filler, "MLflow has not taken")
