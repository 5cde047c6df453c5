"""A hospital's own record of what its patients have spent, in SQLite, append-only and hash-chained.

Order of a charge: `reserve` and `start` before anything is computed from a patient that could leave,
`settle` once the release lies in the outbox. A charge counts from the reservation on; only one that was
never started can be given back (`void`), because choosing among outputs is itself a release.

Each patient has an account under his keyed hash. A reservation names everybody who may take part in
the event (its cohort), fixed before it; patients with the same history form a class, which is composed
once. What the hospital has spent is the maximum over its classes, those who have left included.
"""

import json
import sqlite3
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from privacy.accounting import Budget, Filter, PrivacyEvent, epsilon
from privacy.signing import canonical

APPLICATION_ID = 0x57415244
VERSION = 2
"""The format. A ledger of an earlier one is taken up, after a copy of it was laid beside it."""

CLOCK_SLACK_S = 60
"""How far the clock may fall behind the newest entry: time servers correct it by less."""


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
"""What makes a format of the one before it."""

Action = Literal["reserve", "start", "settle", "void", "publish", "resolve"]
Patients = Collection[str]
"""Patients under their keyed hashes."""


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


class ClockWentBack(Exception):
    """The clock is behind the ledger's newest entry, so times in the ledger would mean nothing."""


@dataclass(frozen=True)
class Charge:
    """What one act of a hospital asks of the ledger; study, run, round and purpose tell them apart.

    `event` is None for an act that costs nothing, and for a release without differential privacy,
    which a policy has to allow.
    """

    study: str
    run: str
    round: int
    purpose: str
    event: PrivacyEvent | None

    def is_same_act(self, other: "Charge") -> bool:
        """Return whether both are the same purpose of the same round."""
        mine = (self.study, self.run, self.round, self.purpose)
        return mine == (other.study, other.run, other.round, other.purpose)


@dataclass(frozen=True)
class Entry:
    """One row of the ledger. `cohort` names the patients of a reservation, by their list's sha256."""

    seq: int
    at: float
    action: Action
    charge: Charge
    cohort: str
    file: str
    previous: str
    hash: str


class Ledger:
    """The ledger in one SQLite file. Every method is one transaction, safe across processes."""

    def __init__(
        self,
        path: Path,
        budget: Budget,
        owner: str,
        *,
        rule: Filter = "gaussian",
        allow_plain: bool = False,
    ) -> None:
        """Open or make the ledger in `path`.

        Args:
            budget: what all studies together may spend on a patient.
            owner: stands for the key of the patients' keyed hashes; under another key the accounts
                would be other people's, so a ledger and its key belong together.
            rule: the filter that enforces the budget; `gaussian` takes no sampled steps.
            allow_plain: whether releases without differential privacy may be charged.

        Raises:
            LedgerError: the file is no ledger, another hospital's, of a later format, or its chain is
                broken. It is left as it was.
        """
        self._path = path
        self._budget = budget
        self._genesis = sha256(f"wardround ledger of {owner}".encode()).hexdigest()
        self._rule: Filter = rule
        self._allow_plain = allow_plain
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._transaction() as db:
            if _is_empty(db):
                for statement in _FIRST:
                    db.execute(statement)
            found = _format_of(db)
            self._read(db)
            if found < VERSION:
                self._take_up(db, found)

    def reserve(self, charge: Charge, patients: Patients) -> frozenset[str]:
        """Charge the ledger for `patients`, and return those who may take part in the event.

        They are `patients`, unless this very charge stands already: then they are those for whom
        it was made, and nothing is charged.

        Args:
            patients: everybody who is eligible, whatever his images show.

        Raises:
            BudgetExceeded: it does not fit; nothing was charged.
            ClockWentBack: nothing was charged.
            LedgerError: another event stands for the same act, or there are no patients.
        """
        _check_some(patients)
        with self._transaction() as db:
            book = self._read(db)
            standing = [e for e in _standing(book.entries) if e.charge.is_same_act(charge)]
            if standing:
                if standing[0].charge != charge:
                    raise LedgerError(
                        f"Round {charge.round} of run {charge.run} is charged with another event "
                        f"already; a round's event never changes."
                    )
                return book.cohorts[standing[0].cohort]
            if charge.event is None and not self._allow_plain:
                raise LedgerError("This ledger pays for no release without differential privacy.")
            if charge.event is not None and charge.event.sampling_rate < 1 and self._rule == "gaussian":
                raise LedgerError("This ledger pays for steps over all patients only.")
            if charge.event is not None:
                self._check(book.histories_of(patients), charge.event, 1)
            book.check_clock()
            book.append(db, "reserve", charge, cohort=_enrol(db, patients))
            return frozenset(patients)

    def recover(self, charge: Charge, patients: Patients, file: str) -> None:
        """Charge what this ledger has forgotten, whether it fits or not; again does nothing.

        For a ledger that was restored from a backup: `file` is the statement in which the act ended,
        or empty where it never left.

        Raises:
            LedgerError: another event or another file is on record for the same act, or there are
                no patients.
        """
        _check_some(patients)
        with self._transaction() as db:
            book = self._read(db)
            mine = [e for e in book.entries if e.charge.is_same_act(charge) and e.action != "publish"]
            if any(e.charge != charge or e.file not in ("", file) for e in mine):
                raise LedgerError(
                    f"Round {charge.round} of run {charge.run} is on record with another event or file."
                )
            standing = [e for e in _standing(mine) if e.charge == charge]
            covered = frozenset[str]().union(*(book.cohorts[e.cohort] for e in standing))
            done = [e.action for e in mine] if standing else []
            if not standing:
                book.append(db, "reserve", charge, cohort=_enrol(db, patients))
            elif others := frozenset(patients) - covered:
                more = replace(charge, purpose=f"{charge.purpose}-others")
                book.append(db, "reserve", more, cohort=_enrol(db, others))
                book.append(db, "start", more)
            for action in ("start", "settle"):
                if action not in done:
                    book.append(db, action, charge, file=file if action == "settle" else "")

    def has_started(self, charge: Charge) -> bool:
        """Return whether training has started under a charge that stands for this act."""
        mine = [e.action for e in self.entries() if e.charge.is_same_act(charge)]
        return "start" in mine or "settle" in mine

    def resolve(self) -> None:
        """Record that the hospital's owner takes ledger and clock for right as they are now."""
        with self._transaction() as db:
            at, nothing = time.time(), Charge("", "", 0, "resolve", event=None)
            self._read(db).append(db, "resolve", nothing, at=at)

    def charges(self, run: str | None = None) -> list[Charge]:
        """Return the charges that stand, of one run or of all."""
        return [e.charge for e in _standing(self.entries()) if run in (None, e.charge.run)]

    def count(self, charge: Charge) -> int:
        """Return how many events like this charge's its run has on record for acts of this kind.

        A charge for what was never released may stand for several events at once.
        """
        event = charge.event
        if event is None:
            return 0
        kin = (c for c in self.charges(charge.run) if c.purpose.startswith(charge.purpose))
        return sum(c.event.steps // event.steps for c in kin if c.event)

    def check_fits(self, patients: Patients, event: PrivacyEvent, times: int) -> None:
        """Raise BudgetExceeded unless `times` such events would fit; charges nothing."""
        with self._transaction() as db:
            self._check(self._read(db).histories_of(patients), event, times)

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
            book = self._read(db)
            if not any(e.file and e.charge.is_same_act(charge) for e in book.entries):
                book.append(db, "publish", charge, file=file)

    def file_of(self, charge: Charge) -> str | None:
        """Return the sha256 of the outbox file in which this act ended, once it has."""
        files = [e.file for e in self.entries() if e.file and e.charge.is_same_act(charge)]
        return files[0] if files else None

    def histories(self, run: str | None = None) -> list[list[PrivacyEvent]]:
        """Return the private events of each class of patients, by one run or by all.

        Patients with the same events form a class; nobody's account is missing.
        """
        with self._transaction() as db:
            return self._read(db).histories(run)

    def spent(self, delta: float, run: str | None = None) -> float:
        """Return the epsilon spent so far, by one run or by all, at `delta`.

        It is the maximum over the classes of patients. Releases without differential privacy are
        not in it; `plain_charges` counts them.
        """
        return max((epsilon(events, delta, self._rule) for events in self.histories(run)), default=0.0)

    def spent_after(self, delta: float) -> list[tuple[Entry, float]]:
        """Return each reservation with the epsilon at `delta` that was spent by then."""
        with self._transaction() as db:
            book = self._read(db)
        standing = {entry.seq for entry in _standing(book.entries)}
        events: dict[frozenset[str], list[PrivacyEvent]] = {c: [] for c in book.classes()}
        spent, after = 0.0, []
        for entry in book.entries:
            if entry.action != "reserve":
                continue
            if entry.seq in standing and entry.charge.event is not None:
                for cohorts, history in events.items():
                    if entry.cohort in cohorts:
                        history.append(entry.charge.event)
                        spent = max(spent, epsilon(history, delta, self._rule))
            after.append((entry, spent))
        return after

    def plain_charges(self) -> int:
        """Return how many charges were made without differential privacy."""
        return sum(e.action == "reserve" and e.charge.event is None for e in self.entries())

    def entries(self) -> list[Entry]:
        """Return every entry, oldest first, after checking the chain."""
        with self._transaction() as db:
            return self._read(db).entries

    def writers(self) -> list[tuple[int, str]]:
        """Return which version of Wardround wrote from which entry on."""
        with self._transaction() as db:
            return list(db.execute("SELECT seq, version FROM writers ORDER BY seq"))

    def charges_of(self, patient: str) -> list[Charge]:
        """Return the charges that stand in whose event a patient could take part, oldest first."""
        with self._transaction() as db:
            book = self._read(db)
        return [e.charge for e in _standing(book.entries) if patient in book.cohorts[e.cohort]]

    def patients(self) -> frozenset[str]:
        """Return everybody who has an account."""
        with self._transaction() as db:
            return frozenset[str]().union(*self._read(db).cohorts.values())

    @property
    def genesis(self) -> str:
        """What the first entry follows from."""
        return self._genesis

    @property
    def head(self) -> str:
        """The hash of the newest entry: it vouches for all before it."""
        with self._transaction() as db:
            return self._read(db).head

    def _check(self, histories: list[list[PrivacyEvent]], event: PrivacyEvent, times: int) -> None:
        """Raise BudgetExceeded unless each history has room for `times` more of `event`."""

        def after(before: list[PrivacyEvent], number: int) -> float:
            return epsilon([*before, *[event] * number], self._budget.delta, self._rule)

        worst = max(histories, key=lambda before: after(before, times))
        asked = after(worst, times)
        if self._budget.covers(asked):
            return
        fits, too_many = 0, times
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if all(self._budget.covers(after(before, middle)) for before in histories):
                fits = middle
            else:
                too_many = middle
        raise BudgetExceeded(after(worst, 0), asked, self._budget, fits)

    def _follow(self, charge: Charge, action: Action, file: str, after: set[Action]) -> None:
        with self._transaction() as db:
            book = self._read(db)
            mine = [e for e in book.entries if e.charge.is_same_act(charge) and e.action != "publish"]
            last = mine[-1] if mine else None
            if last is None or last.action not in after or last.charge != charge:
                found = last.action if last else "nothing"
                raise LedgerError(
                    f"Expected {' or '.join(sorted(after))} before {action} for round "
                    f"{charge.round} of run {charge.run}, found {found}."
                )
            if last.action != action:
                book.append(db, action, charge, file=file)
            elif last.file != file:
                raise LedgerError(
                    f"Round {charge.round} of run {charge.run} is settled with another file."
                )

    def _take_up(self, db: sqlite3.Connection, found: int) -> None:
        """Make this format of an earlier one; its entries stay as they are."""
        if self._read(db).entries:
            _copy(self._path, self._path.with_suffix(f".format-{found}.sqlite"))
        for number in range(found + 1, VERSION + 1):
            for statement in _LATER[number]:
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {number}")

    def _read(self, db: sqlite3.Connection) -> "_Book":
        cohorts, entries = _cohorts(db), _entries(db, self._genesis)
        if any(e.action == "reserve" and e.cohort not in cohorts for e in entries):
            raise LedgerError("A list of patients is missing.")
        return _Book(self._genesis, cohorts, entries)

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


@dataclass(frozen=True)
class _Book:
    """A ledger's content within one transaction."""

    genesis: str
    cohorts: Mapping[str, frozenset[str]]
    entries: list[Entry]

    @property
    def head(self) -> str:
        return self.entries[-1].hash if self.entries else self.genesis

    def histories(self, run: str | None = None) -> list[list[PrivacyEvent]]:
        """Return the events of each class of patients, by one run or by all."""
        standing = self._charged(run)
        return [_of(cohorts, standing) for cohorts in self.classes()]

    def classes(self) -> set[frozenset[str]]:
        """Return the classes of patients, each by the cohorts on which its patients stand."""
        return set(self._accounts().values())

    def histories_of(self, patients: Patients) -> list[list[PrivacyEvent]]:
        """Return the events of each class that has one of `patients`; new ones have none."""
        accounts = self._accounts()
        classes = {accounts.get(patient, frozenset()) for patient in patients}
        standing = self._charged()
        return [_of(cohorts, standing) for cohorts in classes]

    def _accounts(self) -> dict[str, frozenset[str]]:
        """Return the cohorts on which each patient stands."""
        of: defaultdict[str, set[str]] = defaultdict(set)
        for cohort, patients in self.cohorts.items():
            for patient in patients:
                of[patient].add(cohort)
        return {patient: frozenset(cohorts) for patient, cohorts in of.items()}

    def _charged(self, run: str | None = None) -> list[tuple[str, PrivacyEvent]]:
        """Return the events that stand, each with its cohort."""
        return [
            (entry.cohort, entry.charge.event)
            for entry in _standing(self.entries)
            if entry.charge.event is not None and run in (None, entry.charge.run)
        ]

    def check_clock(self) -> None:
        """Raise ClockWentBack if it is earlier than the newest entry's time."""
        if self.entries and time.time() < self.entries[-1].at - CLOCK_SLACK_S:
            newest, now = (
                f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"
                for at in (self.entries[-1].at, time.time())
            )
            raise ClockWentBack(
                f"Expected a time after the ledger's newest entry, {newest}, got {now}. Set the clock; "
                f"if it was the older time that was wrong, `wardround site resolve` accepts the new one."
            )

    def append(
        self,
        db: sqlite3.Connection,
        action: Action,
        charge: Charge,
        cohort: str = "",
        file: str = "",
        at: float | None = None,
    ) -> None:
        """Add an entry; its time is never before the one before it, unless `at` says so."""
        if at is None:
            at = max([time.time(), *(e.at for e in self.entries[-1:])])
        seq, previous = len(self.entries) + 1, self.head
        text = canonical(asdict(charge)).decode()
        digest = _hash(seq, at, action, text, cohort, file, previous)
        db.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (seq, at, action, text, cohort, file, previous, digest),
        )
        newest = db.execute("SELECT version FROM writers ORDER BY seq DESC LIMIT 1").fetchone()
        if newest != (version("wardround"),):
            db.execute("INSERT INTO writers VALUES (?, ?)", (seq, version("wardround")))
        self.entries.append(Entry(seq, at, action, charge, cohort, file, previous, digest))


def _check_some(patients: Patients) -> None:
    if not patients:
        raise LedgerError("Expected at least one patient to charge, got none.")


def _of(cohorts: frozenset[str], charged: list[tuple[str, PrivacyEvent]]) -> list[PrivacyEvent]:
    return [event for cohort, event in charged if cohort in cohorts]


def _is_empty(db: sqlite3.Connection) -> bool:
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    return (tables, application) == (0, 0)


def _copy(path: Path, into: Path) -> None:
    """Copy a database through SQLite: whoever opens its file himself loses SQLite's lock on it."""
    partial = into.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(partial)) as copy:
        source.backup(copy)
    partial.replace(into)


def _format_of(db: sqlite3.Connection) -> int:
    """Return a ledger's format; raise `LedgerError` for a later one, or what is no ledger."""
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (found,) = db.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID or not 1 <= found <= VERSION:
        raise LedgerError(
            f"Expected a ledger of format {VERSION} or earlier, got a database of another kind, or one "
            f"that a later Wardround wrote; it was left as it is."
        )
    return int(found)


def _cohorts(db: sqlite3.Connection) -> dict[str, frozenset[str]]:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for cohort, patient in db.execute("SELECT cohort, patient FROM members"):
        found[cohort].add(patient)
    cohorts = {cohort: frozenset(patients) for cohort, patients in found.items()}
    for cohort, patients in cohorts.items():
        if cohort != _cohort_name(patients):
            raise LedgerError("A list of patients is not the one that was recorded.")
    return cohorts


def _cohort_name(patients: Iterable[str]) -> str:
    return sha256(canonical(sorted(set(patients)))).hexdigest()


def _enrol(db: sqlite3.Connection, patients: Patients) -> str:
    """Record a list of patients, unless it is there already, and return its name."""
    cohort = _cohort_name(patients)
    rows = [(cohort, patient) for patient in sorted(set(patients))]
    db.executemany("INSERT OR IGNORE INTO members VALUES (?, ?)", rows)
    return cohort


def _entries(db: sqlite3.Connection, genesis: str) -> list[Entry]:
    """Return all entries after checking that each follows from the one before."""
    entries: list[Entry] = []
    previous = genesis
    rows = db.execute(
        "SELECT seq, at, action, charge, cohort, file, previous, hash FROM entries ORDER BY seq"
    )
    for seq, at, action, text, cohort, file, named, digest in rows:
        try:
            follows = digest == _hash(seq, at, action, text, cohort, file, named)
            charge = _charge_from(text)
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


def _hash(seq: int, at: float, action: str, charge: str, cohort: str, file: str, previous: str) -> str:
    return sha256(canonical([seq, at, action, charge, cohort, file, previous])).hexdigest()


def _charge_from(text: str) -> Charge:
    fields = json.loads(text)
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
