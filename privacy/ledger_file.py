"""A hospital's ledger as a SQLite file: its tables, its formats, its transactions, and its rows.

Rows can be added, but not changed or deleted. Each read checks every row against the hash of the row
before it.
"""

import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from privacy.ledger_book import (
    Action,
    Book,
    Charge,
    Entry,
    LedgerError,
    Patients,
    charge_from,
    cohort_name,
    hash_of,
)
from privacy.signing import canonical

APPLICATION_ID = 0x57415244
VERSION = 2
"""The file format. A ledger of an earlier format is upgraded, after a copy of it is stored beside it."""


def _append_only(table: str) -> tuple[str, ...]:
    return tuple(
        f"""
        CREATE TRIGGER {table}_never_{verb} BEFORE {verb} ON {table}
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END
        """
        for verb in ("UPDATE", "DELETE")
    )


_FIRST = (
    f"PRAGMA application_id = {APPLICATION_ID}",
    "PRAGMA user_version = 1",
    """
    CREATE TABLE entries (
        seq INTEGER PRIMARY KEY,
        at REAL NOT NULL,
        action TEXT NOT NULL CHECK (
            action IN ('reserve', 'start', 'settle', 'void', 'publish', 'resolve')
        ),
        charge TEXT NOT NULL,
        cohort TEXT NOT NULL,
        file TEXT NOT NULL,
        previous TEXT NOT NULL,
        hash TEXT NOT NULL UNIQUE
    ) STRICT
    """,
    """
    CREATE TABLE members (
        cohort TEXT NOT NULL,
        patient TEXT NOT NULL,
        PRIMARY KEY (cohort, patient)
    ) STRICT, WITHOUT ROWID
    """,
    *_append_only("entries"),
    *_append_only("members"),
)
_LATER = {
    2: (
        "CREATE TABLE writers (seq INTEGER PRIMARY KEY, version TEXT NOT NULL) STRICT",
        *_append_only("writers"),
    )
}
"""The statements that upgrade a ledger to a format from the one before it."""


@contextmanager
def transaction(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the file in `path` for one transaction; no other process can write during it.

    Raises:
        LedgerError: the file is not a database, or is locked or broken.
    """
    db = sqlite3.connect(path, timeout=60, isolation_level=None)
    try:
        db.execute("PRAGMA synchronous=FULL")
        db.execute("BEGIN IMMEDIATE")
        yield db
        db.execute("COMMIT")
    except sqlite3.DatabaseError as error:
        raise LedgerError(f"{path.name} can't be used as a ledger: {error}.") from error
    finally:
        db.close()


def prepare(db: sqlite3.Connection, path: Path, genesis: str) -> None:
    """Create the tables in an empty database; check any other, and upgrade it to this format.

    Raises:
        LedgerError: the file is not a ledger, belongs to another hospital, has a later format, or its
            chain is broken. The file is unchanged.
    """
    if _is_empty(db):
        for statement in _FIRST:
            db.execute(statement)
    found = _format_of(db)
    book = read(db, genesis)
    if found < VERSION:
        _upgrade(db, path, found, has_entries=bool(book.entries))


def read(db: sqlite3.Connection, genesis: str) -> Book:
    """Return a ledger's content after checking its lists of patients and its chain of entries."""
    cohorts, entries = _cohorts(db), _entries(db, genesis)
    if any(e.action == "reserve" and e.cohort not in cohorts for e in entries):
        raise LedgerError("A list of patients is missing.")
    return Book(genesis, cohorts, entries)


def append(
    db: sqlite3.Connection,
    book: Book,
    action: Action,
    charge: Charge,
    cohort: str = "",
    file: str = "",
    at: float | None = None,
) -> None:
    """Add an entry; its time is never before that of the entry before it, unless `at` is given."""
    if at is None:
        at = max([time.time(), *(e.at for e in book.entries[-1:])])
    seq, previous = len(book.entries) + 1, book.head
    text = canonical(asdict(charge)).decode()
    digest = hash_of(seq, at, action, text, cohort, file, previous)
    db.execute(
        "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (seq, at, action, text, cohort, file, previous, digest),
    )
    newest = db.execute("SELECT version FROM writers ORDER BY seq DESC LIMIT 1").fetchone()
    if newest != (version("wardround"),):
        db.execute("INSERT INTO writers VALUES (?, ?)", (seq, version("wardround")))
    book.entries.append(Entry(seq, at, action, charge, cohort, file, previous, digest))


def enrol(db: sqlite3.Connection, patients: Patients) -> str:
    """Store a list of patients, unless it is stored already, and return its name."""
    cohort = cohort_name(patients)
    rows = [(cohort, patient) for patient in sorted(set(patients))]
    db.executemany("INSERT OR IGNORE INTO members VALUES (?, ?)", rows)
    return cohort


def writers_in(db: sqlite3.Connection) -> list[tuple[int, str]]:
    """Return the versions of Wardround that wrote, each with its first entry's number."""
    return list(db.execute("SELECT seq, version FROM writers ORDER BY seq"))


def _is_empty(db: sqlite3.Connection) -> bool:
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    return (tables, application) == (0, 0)


def _upgrade(db: sqlite3.Connection, path: Path, found: int, *, has_entries: bool) -> None:
    """Upgrade a ledger of an earlier format; its entries stay unchanged."""
    if has_entries:
        _copy(path, path.with_suffix(f".format-{found}.sqlite"))
    for number in range(found + 1, VERSION + 1):
        for statement in _LATER[number]:
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {number}")


def _copy(path: Path, into: Path) -> None:
    """Copy a database through SQLite: opening the file directly would drop SQLite's lock on it."""
    partial = into.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(partial)) as copy:
        source.backup(copy)
    partial.replace(into)


def _format_of(db: sqlite3.Connection) -> int:
    """Return a ledger's format; raise `LedgerError` for a later format or another kind of file."""
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (found,) = db.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID or not 1 <= found <= VERSION:
        raise LedgerError(
            f"Expected a ledger of format {VERSION} or earlier, got a database of another kind, or one "
            f"that a later Wardround wrote. The file is unchanged."
        )
    return int(found)


def _cohorts(db: sqlite3.Connection) -> dict[str, frozenset[str]]:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for cohort, patient in db.execute("SELECT cohort, patient FROM members"):
        found[cohort].add(patient)
    cohorts = {cohort: frozenset(patients) for cohort, patients in found.items()}
    for cohort, patients in cohorts.items():
        if cohort != cohort_name(patients):
            raise LedgerError("A list of patients is not the one that was recorded.")
    return cohorts


def _entries(db: sqlite3.Connection, genesis: str) -> list[Entry]:
    """Return all entries after checking that each follows from the one before."""
    entries: list[Entry] = []
    previous = genesis
    rows = db.execute(
        "SELECT seq, at, action, charge, cohort, file, previous, hash FROM entries ORDER BY seq"
    )
    for seq, at, action, text, cohort, file, named, digest in rows:
        try:
            follows = digest == hash_of(seq, at, action, text, cohort, file, named)
            charge = charge_from(text)
        except (ValueError, TypeError, KeyError) as error:
            raise LedgerError(f"Entry {seq} can't be read.") from error
        if seq == 1 and named != genesis and follows:
            raise LedgerError(
                "This ledger belongs to another key for patients (state/keys/pseudonyms), perhaps "
                "another hospital's. Restore the ledger and its key together."
            )
        if named != previous or not follows:
            raise LedgerError(f"Entry {seq} does not follow from the one before it.")
        entries.append(Entry(seq, at, action, charge, cohort, file, named, digest))
        previous = digest
    return entries
