"""The file of a ledger: changed rows are found, foreign files left alone, old formats upgraded."""

import json
import math
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import pytest

from privacy import ledger_file
from privacy.accounting import Budget, PrivacyEvent
from privacy.ledger import Charge, Ledger, LedgerError

BUDGET = Budget(epsilon=8, delta=1e-4)
EVENT = PrivacyEvent(noise_multiplier=4.0, sampling_rate=1.0, steps=4)
CHARGE = Charge("demo", "demo-1", 1, "contribute", EVENT)
OWNER = "a hospital's key"
ALL = frozenset(f"{number:032x}" for number in range(8))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "state" / "ledger.sqlite", BUDGET, OWNER)


def round_number(number: int, **changes: object) -> Charge:
    return replace(CHARGE, round=number, **changes)


def test_rows_can_be_neither_changed_nor_deleted(ledger: Ledger, tmp_path: Path) -> None:
    ledger.reserve(CHARGE, ALL)
    db = sqlite3.connect(tmp_path / "state" / "ledger.sqlite")
    for statement in ("UPDATE entries SET at = 0", "DELETE FROM entries"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            db.execute(statement)
    db.close()


def tamper(path: Path, statement: str, *values: object) -> None:
    """Change a ledger behind its back, its triggers out of the way."""
    db = sqlite3.connect(path, isolation_level=None)
    for (trigger,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        db.execute(f"DROP TRIGGER {trigger}")
    db.execute(statement, values)
    db.close()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("seq", 7), ("at", 1.0), ("at", math.inf), ("action", "publish"), ("file", "0" * 64),
        ("previous", "1" * 64), ("hash", "2" * 64), ("cohort", ""), ("cohort", "3" * 64),
        ("charge", json.dumps({**asdict(CHARGE), "event": None})), ("charge", "{"), ("charge", "[]"),
    ],
)  # fmt: skip
def test_a_change_behind_the_ledgers_back_is_found(
    ledger: Ledger, tmp_path: Path, column: str, value: object
) -> None:
    ledger.reserve(CHARGE, ALL)
    ledger.reserve(round_number(2), ALL)
    path = tmp_path / "state" / "ledger.sqlite"
    tamper(path, f"UPDATE entries SET {column} = ? WHERE seq = 2", value)
    with pytest.raises(LedgerError, match=r"Entry \d (does not follow|can't be read)"):
        Ledger(path, BUDGET, OWNER)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE members SET patient = 'x' WHERE patient = 'a'", "not the one that was recorded"),
        ("DELETE FROM members WHERE patient = 'a'", "not the one that was recorded"),
        ("INSERT INTO members SELECT cohort, 'x' FROM members LIMIT 1", "not the one that was recorded"),
        ("DELETE FROM members", "list of patients is missing"),
    ],
)
def test_a_patient_taken_off_or_put_on_a_list_is_found(
    ledger: Ledger, tmp_path: Path, statement: str, message: str
) -> None:
    ledger.reserve(CHARGE, frozenset("abc"))
    tamper(tmp_path / "state" / "ledger.sqlite", statement)
    with pytest.raises(LedgerError, match=message):
        ledger.spent(1e-4)


def test_a_changed_byte_is_found_or_was_in_a_part_that_says_nothing(
    ledger: Ledger, tmp_path: Path
) -> None:
    for number in range(1, 6):
        ledger.reserve(round_number(number), ALL)
    path = tmp_path / "state" / "ledger.sqlite"
    whole, entries, spent = path.read_bytes(), ledger.entries(), ledger.spent(1e-4)
    found = 0
    for position in range(0, len(whole), 97):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x41]) + whole[position + 1 :])
        try:
            opened = Ledger(path, BUDGET, OWNER)
            assert opened.entries() == entries
            assert opened.spent(1e-4) == spent
        except LedgerError:
            found += 1
    assert found > 20


@pytest.mark.parametrize("kind", ["no database", "another program's", "a later format", "cut short"])
def test_a_file_that_is_no_ledger_is_refused_and_left_alone(
    ledger: Ledger, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "state" / "ledger.sqlite"
    ledger.reserve(CHARGE, ALL)
    if kind == "no database":
        path.write_bytes(b"no database, whatever its name says" * 50)
    if kind == "another program's":
        path.unlink()
        tamper(path, "CREATE TABLE patients (name TEXT)")
    if kind == "a later format":
        tamper(path, "PRAGMA user_version = 3")
    if kind == "cut short":
        path.write_bytes(path.read_bytes()[:5000])
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="can't be used as a ledger|Expected a ledger of format 2"):
        Ledger(path, BUDGET, OWNER)
    assert path.read_bytes() == before


def test_a_ledger_under_another_key_for_patients_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    ledger.reserve(CHARGE, ALL)
    with pytest.raises(LedgerError, match="belongs to another key for patients"):
        Ledger(tmp_path / "state" / "ledger.sqlite", BUDGET, "another hospital's key")


def as_in_format_1(path: Path) -> None:
    """Make a ledger one that the first format's code had written."""
    db = sqlite3.connect(path, isolation_level=None)
    for statement in ("DROP TABLE writers", "PRAGMA user_version = 1"):
        db.execute(statement)
    db.close()


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return list(db.iterdump())


def test_nobody_writes_into_a_ledger_while_it_is_taken_up(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening and closing the file in this process drops SQLite's lock on it, a rule of POSIX."""
    path, seen = tmp_path / "state" / "ledger.sqlite", []
    ledger.reserve(CHARGE, ALL)
    as_in_format_1(path)
    copy = ledger_file._copy

    def copy_and_look(*paths: Path) -> None:
        copy(*paths)
        code = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')"
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
        seen.append(done.stderr)

    monkeypatch.setattr(ledger_file, "_copy", copy_and_look)
    Ledger(path, BUDGET, OWNER)
    (error,) = seen
    assert "database is locked" in error


def test_a_ledger_of_the_first_format_is_taken_up_with_all_it_knows_and_a_copy_stays(
    ledger: Ledger, tmp_path: Path
) -> None:
    path = tmp_path / "state" / "ledger.sqlite"
    ledger.reserve(CHARGE, ALL)
    entries, spent = ledger.entries(), ledger.spent(1e-3)
    as_in_format_1(path)
    before = dump(path)
    opened = Ledger(path, BUDGET, OWNER)
    assert opened.entries() == entries
    assert opened.spent(1e-3) == spent
    assert dump(tmp_path / "state" / "ledger.format-1.sqlite") == before
    assert opened.writers() == []
    opened.start(CHARGE)
    assert opened.writers() == [(len(entries) + 1, version("wardround"))]
    assert Ledger(path, BUDGET, OWNER).head == opened.head
    with pytest.raises(sqlite3.DatabaseError, match="append-only"):
        sqlite3.connect(path).execute("DELETE FROM writers")


def test_a_broken_ledger_of_the_first_format_is_left_as_it_is(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "state" / "ledger.sqlite"
    ledger.reserve(CHARGE, ALL)
    as_in_format_1(path)
    tamper(path, "UPDATE entries SET at = at + 1")
    before = path.read_bytes()
    with pytest.raises(LedgerError):
        Ledger(path, BUDGET, OWNER)
    assert path.read_bytes() == before
    assert not list((tmp_path / "state").glob("*.format-1.sqlite"))
