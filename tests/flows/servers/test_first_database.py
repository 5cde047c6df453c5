"""The databases with which servers begin are made once and copied."""

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from flows.servers.first_database import FirstDatabase, ServerError

MAKE = """
import os, sqlite3, sys
with open(os.environ["CALLS"], "a") as calls:
    calls.write("made\\n")
store = sqlite3.connect(sys.argv[1])
store.executescript("PRAGMA journal_mode = WAL; CREATE TABLE alembic_version (version_num TEXT);"
                    "INSERT INTO alembic_version VALUES ('a');")
store.close()
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


def first(path: Path, script: str = MAKE) -> FirstDatabase:
    return FirstDatabase(path, "made-1", [sys.executable, "-c", script, "{path}"], {})


def versions(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as store:
        return [found for (found,) in store.execute("SELECT version_num FROM alembic_version")]


def test_a_second_folder_gets_a_copy_and_a_third_start_changes_nothing(
    tmp_path: Path, calls: Path
) -> None:
    for folder in ("one", "two", "two"):
        first(tmp_path / folder / "x.db").lay(tmp_path / "log")
    assert versions(tmp_path / "one" / "x.db") == versions(tmp_path / "two" / "x.db") == ["a"]
    assert calls.read_text() == "made\n"
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["x.db"]  # no log, no part


@pytest.mark.parametrize("content", [b"", b"no database", None])
def test_a_damaged_copy_is_replaced(tmp_path: Path, calls: Path, content: bytes | None) -> None:
    first(tmp_path / "one" / "x.db").lay(tmp_path / "log")
    kept = tmp_path / "cache" / "wardround" / "made-1.db"
    kept.write_bytes(kept.read_bytes()[:5000] if content is None else content)
    first(tmp_path / "two" / "x.db").lay(tmp_path / "log")
    assert versions(tmp_path / "two" / "x.db") == versions(kept) == ["a"]
    assert calls.read_text() == "made\nmade\n"


def test_where_the_cache_cant_be_written_the_database_is_made_in_place(
    tmp_path: Path, calls: Path
) -> None:
    (tmp_path / "cache").write_text("a file")
    first(tmp_path / "one" / "x.db").lay(tmp_path / "log")
    assert versions(tmp_path / "one" / "x.db") == ["a"]
    assert calls.read_text() == "made\n"


def test_a_database_that_cant_be_made_names_the_log_and_leaves_nothing(
    tmp_path: Path, calls: Path
) -> None:
    broken = first(tmp_path / "one" / "x.db", "raise SystemExit('no room')")
    with pytest.raises(ServerError, match=f"could not be made; see {tmp_path / 'log'}"):
        broken.lay(tmp_path / "log")
    assert "no room" in (tmp_path / "log").read_text()
    assert list((tmp_path / "one").iterdir()) == []
    assert not calls.exists()
