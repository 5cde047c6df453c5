"""A hospital's own record of what its patients have spent, in SQLite, append-only and hash-chained.

Order of a charge: `reserve` and `start` before anything is computed from a patient that could leave,
`settle` once the release lies in the outbox. A charge counts from the reservation on; only one that was
never started can be given back (`void`), because choosing among outputs is itself a release.
"""

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from privacy.accounting import Budget, PrivacyEvent, epsilon
from privacy.signing import canonical

GENESIS = "0" * 64

_SCHEMA = (
    """
    CREATE TABLE IF NOT EXISTS entries (
        seq INTEGER PRIMARY KEY,
        at REAL NOT NULL,
        action TEXT NOT NULL CHECK (action IN ('reserve', 'start', 'settle', 'void', 'publish')),
        charge TEXT NOT NULL,
        file TEXT NOT NULL,
        previous TEXT NOT NULL,
        hash TEXT NOT NULL UNIQUE
    ) STRICT
    """,
    """
    CREATE TRIGGER IF NOT EXISTS entries_are_never_updated BEFORE UPDATE ON entries
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END
    """,
    """
    CREATE TRIGGER IF NOT EXISTS entries_are_never_deleted BEFORE DELETE ON entries
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END
    """,
)

Action = Literal["reserve", "start", "settle", "void", "publish"]
Patients = Literal["training", "evaluation"]
"""Who an event touches. The two groups share nobody, so their spendings do not add up."""


class BudgetExceeded(Exception):
    """A charge does not fit. Attributes: `spent`, `asked` (both together), `budget`, `rounds_left`."""

    def __init__(self, spent: float, asked: float, budget: Budget, rounds_left: int) -> None:
        self.spent, self.asked, self.budget, self.rounds_left = spent, asked, budget, rounds_left
        super().__init__(
            f"Expected epsilon of at most {budget.epsilon:g} at delta {budget.delta:g}; "
            f"{spent:.3f} is spent and this would make it {asked:.3f}. "
            f"Rounds like this that still fit: {rounds_left}."
        )


class LedgerError(Exception):
    """The ledger is broken, or was asked for a step out of order."""


@dataclass(frozen=True)
class Charge:
    """What one act of a hospital asks of the ledger; study, run, round and purpose tell them apart.

    `event` is None where no differential privacy is promised, which a policy has to allow.
    """

    study: str
    run: str
    round: int
    purpose: str
    patients: Patients
    event: PrivacyEvent | None

    def is_same_act(self, other: "Charge") -> bool:
        """Return whether both are the same purpose of the same round."""
        mine = (self.study, self.run, self.round, self.purpose)
        return mine == (other.study, other.run, other.round, other.purpose)


@dataclass(frozen=True)
class Entry:
    """One row of the ledger."""

    seq: int
    at: float
    action: Action
    charge: Charge
    file: str
    previous: str
    hash: str


class Ledger:
    """The ledger in one SQLite file. Every method is one transaction, safe across processes."""

    def __init__(self, path: Path, budget: Budget, *, allow_plain: bool = False) -> None:
        """Open or make the ledger in `path`.

        Args:
            budget: what all studies together may spend on a patient.
            allow_plain: whether releases without differential privacy may be charged.

        Raises:
            LedgerError: the file is no ledger, or its chain is broken.
        """
        self._path = path
        self._budget = budget
        self._allow_plain = allow_plain
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._transaction() as db:
            for statement in _SCHEMA:
                db.execute(statement)
            _read(db)

    def reserve(self, charge: Charge) -> None:
        """Charge the ledger, or do nothing if this very charge stands already.

        Raises:
            BudgetExceeded: it does not fit; nothing was charged.
            LedgerError: another event stands for the same act.
        """
        with self._transaction() as db:
            entries = _read(db)
            standing = [e.charge for e in _standing(entries) if e.charge.is_same_act(charge)]
            if standing:
                if standing[0] != charge:
                    raise LedgerError(
                        f"Round {charge.round} of run {charge.run} is charged with another event "
                        f"already; a round's event never changes."
                    )
                return
            if charge.event is None and not self._allow_plain:
                raise LedgerError("This ledger pays for no release without differential privacy.")
            if charge.event is not None:
                self._check(_events(entries, charge.patients), charge.event, 1)
            _append(db, entries, "reserve", charge, "")

    def is_reserved(self, charge: Charge) -> bool:
        """Return whether a charge stands for this act already."""
        return any(e.charge.is_same_act(charge) for e in _standing(self.entries()))

    def check_fits(self, patients: Patients, event: PrivacyEvent, times: int) -> None:
        """Raise BudgetExceeded unless `times` such events would fit; charges nothing."""
        self._check(self.events(patients), event, times)

    def start(self, charge: Charge) -> None:
        """Record that training starts: from here on the charge can't be given back."""
        self._follow(charge, "start", "", after={"reserve", "start"})

    def settle(self, charge: Charge, file: str) -> None:
        """Record the outbox file (its sha256) that the charge paid for; again is no second time."""
        self._follow(charge, "settle", file, after={"start", "settle"})

    def void(self, charge: Charge) -> None:
        """Give a reservation back that was never started.

        Raises:
            LedgerError: training has started, or nothing is reserved.
        """
        self._follow(charge, "void", "", after={"reserve"})

    def publish(self, charge: Charge, file: str) -> None:
        """Record an outbox file that cost nothing: an answer, a refusal, scores. The first one stays."""
        with self._transaction() as db:
            entries = _read(db)
            if not any(e.file and e.charge.is_same_act(charge) for e in entries):
                _append(db, entries, "publish", charge, file)

    def file_of(self, charge: Charge) -> str | None:
        """Return the sha256 of the outbox file in which this act ended, once it has."""
        with self._transaction() as db:
            files = [e.file for e in _read(db) if e.file and e.charge.is_same_act(charge)]
        return files[0] if files else None

    def events(self, patients: Patients, run: str | None = None) -> list[PrivacyEvent]:
        """Return the private events charged to these patients, by one run or by all."""
        with self._transaction() as db:
            return _events(_read(db), patients, run)

    def spent(self, delta: float, run: str | None = None) -> float:
        """Return the epsilon spent so far, by one run or by all, at `delta`.

        It is the maximum over the groups of patients. Releases without differential privacy are
        not in it; `plain_charges` counts them.
        """
        groups: tuple[Patients, ...] = ("training", "evaluation")
        return max(epsilon(self.events(group, run), delta) for group in groups)

    def plain_charges(self) -> int:
        """Return how many charges were made without differential privacy."""
        return sum(e.action == "reserve" and e.charge.event is None for e in self.entries())

    def entries(self) -> list[Entry]:
        """Return every entry, oldest first, after checking the chain."""
        with self._transaction() as db:
            return _read(db)

    @property
    def head(self) -> str:
        """The hash of the newest entry: it vouches for all before it."""
        entries = self.entries()
        return entries[-1].hash if entries else GENESIS

    def _check(self, before: list[PrivacyEvent], event: PrivacyEvent, times: int) -> None:
        delta, fits = self._budget.delta, 0
        while fits < times:
            if not self._budget.covers(epsilon([*before, *[event] * (fits + 1)], delta)):
                spent = epsilon(before, delta)
                asked = epsilon([*before, *[event] * times], delta)
                raise BudgetExceeded(spent, asked, self._budget, fits)
            fits += 1

    def _follow(self, charge: Charge, action: Action, file: str, after: set[Action]) -> None:
        with self._transaction() as db:
            entries = _read(db)
            mine = [e for e in entries if e.charge.is_same_act(charge) and e.action != "publish"]
            last = mine[-1] if mine else None
            if last is None or last.action not in after or last.charge != charge:
                found = last.action if last else "nothing"
                raise LedgerError(
                    f"Expected {' or '.join(sorted(after))} before {action} for round "
                    f"{charge.round} of run {charge.run}, found {found}."
                )
            if last.action != action:
                _append(db, entries, action, charge, file)
            elif last.file != file:
                raise LedgerError(
                    f"Round {charge.round} of run {charge.run} is settled with another file."
                )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self._path, timeout=60, isolation_level=None)
        try:
            db.execute("PRAGMA synchronous=FULL")
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            raise LedgerError(f"{self._path.name} can't be used as a ledger: {error}.") from error
        finally:
            db.close()


def _read(db: sqlite3.Connection) -> list[Entry]:
    """Return all entries after checking that each follows from the one before."""
    entries: list[Entry] = []
    previous = GENESIS
    rows = db.execute("SELECT seq, at, action, charge, file, previous, hash FROM entries ORDER BY seq")
    for seq, at, action, charge, file, named, digest in rows:
        fields = _fields(seq, at, action, json.loads(charge), file, previous)
        if named != previous or digest != sha256(canonical(fields)).hexdigest():
            raise LedgerError(f"Entry {seq} does not follow from the one before it.")
        entries.append(Entry(seq, at, action, _charge_from(json.loads(charge)), file, named, digest))
        previous = digest
    return entries


def _append(
    db: sqlite3.Connection, entries: list[Entry], action: Action, charge: Charge, file: str
) -> None:
    previous = entries[-1].hash if entries else GENESIS
    seq, at = len(entries) + 1, time.time()
    fields = _fields(seq, at, action, asdict(charge), file, previous)
    db.execute(
        "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            seq, at, action, canonical(asdict(charge)).decode(), file, previous,
            sha256(canonical(fields)).hexdigest(),
        ),
    )  # fmt: skip


def _fields(
    seq: int, at: float, action: str, charge: dict[str, Any], file: str, previous: str
) -> dict[str, Any]:
    return {
        "seq": seq, "at": at, "action": action, "charge": charge, "file": file,
        "previous": previous,
    }  # fmt: skip


def _charge_from(fields: dict[str, Any]) -> Charge:
    event = fields.pop("event")
    return Charge(**fields, event=PrivacyEvent(**event) if event else None)


def _standing(entries: list[Entry]) -> list[Entry]:
    """Return the reservations that were not given back."""
    standing: list[Entry] = []
    for entry in entries:
        if entry.action == "reserve":
            standing.append(entry)
        elif entry.action == "void":
            standing = [e for e in standing if not e.charge.is_same_act(entry.charge)]
    return standing


def _events(entries: list[Entry], patients: Patients, run: str | None = None) -> list[PrivacyEvent]:
    return [
        entry.charge.event
        for entry in _standing(entries)
        if entry.charge.event is not None
        and entry.charge.patients == patients
        and run in (None, entry.charge.run)
    ]
