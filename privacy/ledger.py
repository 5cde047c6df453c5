"""A hospital's own record of its patients' privacy spending, in SQLite, append-only and hash-chained.

Order of a charge: `reserve` and `start` before any computation on patients whose result could leave the
hospital, `settle` when the release is in the outbox. A charge counts from its reservation on. Only a
charge that was never started can be given back (`void`): choosing between outputs would itself leak.

Each patient has an account under a keyed hash. A reservation names, before the event, all patients who
may take part in it (its cohort). Patients with the same history form a class; its events are composed
once. The hospital has spent the maximum over its classes, patients who have left included.
"""

import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from sqlite3 import Connection

from models.errors import AskSomebody
from models.files import private_folder
from privacy.accounting import Budget, Filter, PrivacyEvent, epsilon
from privacy.ledger_book import (
    RULES,
    Action,
    Book,
    Charge,
    ClockWentBack,
    Entry,
    LedgerError,
    Patients,
    check_some,
    is_kind,
    kind_of,
    standing_of,
)
from privacy.ledger_file import append, enrol, prepare, read, transaction, writers_in

__all__ = ["BudgetExceeded", "Charge", "ClockWentBack", "Entry", "Ledger", "LedgerError"]


OTHERS = "-others"
"""Ends the purpose of a charge for patients of whom nobody knows that they took no part in the act."""


class BudgetExceeded(AskSomebody):
    """A charge exceeds the budget.

    Attributes: `spent`, `asked` (`spent` and the charge together), `budget`, `rounds_left`.
    """

    def __init__(self, spent: float, asked: float, budget: Budget, rounds_left: int) -> None:
        self.spent, self.asked, self.budget, self.rounds_left = spent, asked, budget, rounds_left
        super().__init__(
            f"Expected epsilon of at most {budget.epsilon:g} at delta {budget.delta:g}; "
            f"{spent:.3f} is spent and this would make it {asked:.3f}. "
            f"Rounds like this that still fit: {rounds_left}."
        )


class Ledger:
    """The ledger in one SQLite file. Each method is one transaction, safe across processes."""

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
            budget: the most that all studies together may spend on a patient.
            owner: a name for the key of the patients' keyed hashes; with another key the accounts would
                be other patients', so a ledger and its key belong together.
            rule: the filter that enforces the budget; `gaussian` refuses sampled steps. The first
                private charge records it, and from then on the recorded one applies.
            allow_plain: True if releases without differential privacy may be charged.

        Raises:
            LedgerError: the file is not a ledger, belongs to another hospital, has a later format, or
                its chain is broken. The file is unchanged.
        """
        self._path = path
        self._budget = budget
        self._genesis = sha256(f"wardround ledger of {owner}".encode()).hexdigest()
        self._rule: Filter = rule
        self._allow_plain = allow_plain
        private_folder(path.parent)
        with transaction(self._path) as db:
            prepare(db, self._path, self._genesis)

    def reserve(
        self, charge: Charge, patients: Patients, within: Budget | None = None
    ) -> frozenset[str]:
        """Charge the ledger for `patients`, and return those who may take part in the event.

        They are `patients`, unless this charge is already in force: then they are the patients for whom
        it was made, and nothing is charged.

        Args:
            patients: all eligible patients, independent of the content of their images.
            within: the most that acts of this kind may spend in the run, as a study or the policy
                states it; None for no limit besides the ledger's budget. It holds for one schedule that
                is fixed in advance, so the exact rule applies.

        Raises:
            BudgetExceeded: it does not fit the ledger's budget, or `within`; nothing was charged.
            ClockWentBack: nothing was charged.
            LedgerError: another event is charged for the same act, there are no patients, or this
                ledger allows no such charge.
        """
        check_some(patients)
        with transaction(self._path) as db:
            book = read(db, self._genesis)
            standing = [e for e in standing_of(book.entries) if e.charge.is_same_act(charge)]
            if standing:
                if standing[0].charge != charge:
                    raise LedgerError(
                        f"Round {charge.round} of run {charge.run} is already charged with another "
                        f"event; a round's event never changes."
                    )
                return book.cohorts[standing[0].cohort]
            if charge.event is None and not self._allow_plain:
                raise LedgerError("This ledger allows no release without differential privacy.")
            if charge.event is not None:
                self._check_event(book, charge.event, patients, 1)
                if within is not None:
                    of_this_kind = book.histories_of(patients, charge.run, kind_of(charge.purpose))
                    _check_within(within, of_this_kind, charge.event, 1)
            book.check_clock()
            if charge.event is not None:
                self._record_rule(db, book, charge.event)
            append(db, book, "reserve", charge, cohort=enrol(db, patients))
            return frozenset(patients)

    def recover(self, charge: Charge, patients: Patients, file: str, others: Patients = ()) -> None:
        """Charge an act that is missing from this ledger, even beyond the budget.

        For a ledger that was restored from a backup: `file` is the sha256 of the statement in which the
        act ended, or empty if no statement was sent. Repeating it charges nothing.

        Args:
            others: more patients who are charged, too, because nobody knows that they took no part.

        Raises:
            LedgerError: another event or another file is recorded for the same act, or there are no
                patients.
        """
        check_some(patients)
        with transaction(self._path) as db:
            book = read(db, self._genesis)
            mine = [e for e in book.entries if e.charge.is_same_act(charge) and e.action != "publish"]
            if any(e.charge != charge or e.file not in ("", file) for e in mine):
                raise LedgerError(
                    f"Round {charge.round} of run {charge.run} is recorded with another event or file."
                )
            standing = [e for e in standing_of(mine) if e.charge == charge]
            if charge.event is not None:
                self._record_rule(db, book, charge.event)
            for_others = replace(charge, purpose=f"{charge.purpose}{OTHERS}")
            charged = [e for e in standing_of(book.entries) if e.charge in (charge, for_others)]
            covered = frozenset[str]().union(*(book.cohorts[e.cohort] for e in charged))
            done = [e.action for e in mine] if standing else []
            if not standing:
                append(db, book, "reserve", charge, cohort=enrol(db, patients))
                covered |= frozenset(patients)
            for action in ("start", "settle"):
                if action not in done:
                    append(db, book, action, charge, file=file if action == "settle" else "")
            if rest := frozenset(patients).union(others) - covered:
                append(db, book, "reserve", for_others, cohort=enrol(db, rest))
                append(db, book, "start", for_others)

    def has_started(self, charge: Charge) -> bool:
        """Return whether training has started for this act."""
        mine = [e.action for e in self.entries() if e.charge.is_same_act(charge)]
        return "start" in mine or "settle" in mine

    def resolve(self) -> None:
        """Record that the hospital's owner confirms the ledger and the clock as they are now."""
        with transaction(self._path) as db:
            at, nothing = time.time(), Charge("", "", 0, "resolve", event=None)
            append(db, read(db, self._genesis), "resolve", nothing, at=at)

    def charges(self, run: str | None = None) -> list[Charge]:
        """Return the charges in force (not given back), of one run or of all."""
        return [e.charge for e in standing_of(self.entries()) if run in (None, e.charge.run)]

    def count(self, charge: Charge) -> int:
        """Return the number of events like this charge's in its run, for acts of this kind.

        A charge for acts that were never released may cover several events at once.
        """
        event = charge.event
        if event is None:
            return 0
        kin = [c for c in self.charges(charge.run) if is_kind(c.purpose, kind_of(charge.purpose))]
        counted = (c.event for c in kin if not c.purpose.endswith(OTHERS))
        return sum(each.steps // event.steps for each in counted if each)

    def check_fits(self, patients: Patients, event: PrivacyEvent, times: int) -> None:
        """Raise BudgetExceeded unless `times` such events would fit; charges nothing."""
        with transaction(self._path) as db:
            self._check_event(read(db, self._genesis), event, patients, times)

    def start(self, charge: Charge) -> None:
        """Record that training starts: from now on the charge can't be given back."""
        self._follow(charge, "start", "", after={"reserve", "start"})

    def settle(self, charge: Charge, file: str) -> None:
        """Record the outbox file (its sha256) that the charge paid for; repeating it changes nothing."""
        self._follow(charge, "settle", file, after={"start", "settle"})

    def void(self, charge: Charge) -> None:
        """Give back a reservation that was never started.

        Raises:
            LedgerError: training has started, or nothing is reserved.
        """
        self._follow(charge, "void", "", after={"reserve"})

    def publish(self, charge: Charge, file: str) -> None:
        """Record an outbox file that cost nothing: an answer, a refusal, scores. The first one stays."""
        with transaction(self._path) as db:
            book = read(db, self._genesis)
            if not any(e.file and e.charge.is_same_act(charge) for e in book.entries):
                append(db, book, "publish", charge, file=file)

    def has_ended(self, run: str, round: int, kind: str) -> bool:
        """Return whether an act of a kind has ended in a statement in a round, in any attempt."""
        ended = (e.charge for e in self.entries() if e.file)
        return any((c.run, c.round, kind_of(c.purpose)) == (run, round, kind) for c in ended)

    def file_of(self, charge: Charge) -> str | None:
        """Return the sha256 of the outbox file in which this act ended; None if it has not ended."""
        files = [e.file for e in self.entries() if e.file and e.charge.is_same_act(charge)]
        return files[0] if files else None

    def histories(self, run: str | None = None) -> list[list[PrivacyEvent]]:
        """Return the private events of each class of patients, by one run or by all.

        Patients with the same events form a class; every account is in one.
        """
        with transaction(self._path) as db:
            return read(db, self._genesis).histories(run)

    def spent(self, delta: float, run: str | None = None) -> float:
        """Return the epsilon spent so far, by one run or by all, at `delta`.

        It is the maximum over the classes of patients. It does not include releases without
        differential privacy; `plain_charges` counts them.
        """
        with transaction(self._path) as db:
            book = read(db, self._genesis)
        rule = book.rule(self._rule)
        return max((epsilon(events, delta, rule) for events in book.histories(run)), default=0.0)

    def spent_after(self, delta: float) -> list[tuple[Entry, float]]:
        """Return each reservation with the epsilon at `delta` that was spent up to and including it."""
        with transaction(self._path) as db:
            book = read(db, self._genesis)
        standing, rule = {entry.seq for entry in standing_of(book.entries)}, book.rule(self._rule)
        events: dict[frozenset[str], list[PrivacyEvent]] = {c: [] for c in book.classes()}
        spent, after = 0.0, []
        for entry in book.entries:
            if entry.action != "reserve":
                continue
            if entry.seq in standing and entry.charge.event is not None:
                for cohorts, history in events.items():
                    if entry.cohort in cohorts:
                        history.append(entry.charge.event)
                        spent = max(spent, epsilon(history, delta, rule))
            after.append((entry, spent))
        return after

    def plain_charges(self) -> int:
        """Return the number of charges that were made without differential privacy."""
        return sum(e.action == "reserve" and e.charge.event is None for e in self.entries())

    def entries(self) -> list[Entry]:
        """Return every entry, oldest first, after checking the chain."""
        with transaction(self._path) as db:
            return read(db, self._genesis).entries

    def writers(self) -> list[tuple[int, str]]:
        """Return the versions of Wardround that wrote, each with its first entry's number."""
        with transaction(self._path) as db:
            return writers_in(db)

    def charges_of(self, patient: str) -> list[Charge]:
        """Return the charges in force in whose event a patient could take part, oldest first."""
        with transaction(self._path) as db:
            book = read(db, self._genesis)
        return [e.charge for e in standing_of(book.entries) if patient in book.cohorts[e.cohort]]

    def trained(self) -> frozenset[str]:
        """Return the patients who could take part in a training: they never evaluate."""
        with transaction(self._path) as db:
            book = read(db, self._genesis)
        purposes = ((e.charge.purpose, e.cohort) for e in standing_of(book.entries))
        cohorts = [c for p, c in purposes if is_kind(p, "contribute") and not p.endswith(OTHERS)]
        return frozenset[str]().union(*(book.cohorts[cohort] for cohort in cohorts))

    def patients(self) -> frozenset[str]:
        """Return all patients who have an account."""
        with transaction(self._path) as db:
            return frozenset[str]().union(*read(db, self._genesis).cohorts.values())

    @property
    def rule(self) -> Filter:
        """The filter that enforces the budget."""
        with transaction(self._path) as db:
            return read(db, self._genesis).rule(self._rule)

    @property
    def genesis(self) -> str:
        """The hash that the first entry follows."""
        return self._genesis

    @property
    def head(self) -> str:
        """The hash of the newest entry, which depends on all entries before it."""
        with transaction(self._path) as db:
            return read(db, self._genesis).head

    def _check_event(self, book: Book, event: PrivacyEvent, patients: Patients, times: int) -> None:
        """Raise unless `times` such events fit the budget under this ledger's rule."""
        rule = book.rule(self._rule)
        if event.sampling_rate < 1 and rule == "gaussian":
            raise LedgerError("This ledger allows only steps over all patients, got a sampled step.")
        _check_within(self._budget, book.histories_of(patients), event, times, rule)

    def _record_rule(self, db: Connection, book: Book, event: PrivacyEvent) -> None:
        """Record the rule with the first private charge, `event`; an earlier ledger's is that it has."""
        rule = book.rule("renyi" if event.sampling_rate < 1 else self._rule)
        if not any(e.action == "resolve" and e.charge.purpose in RULES for e in book.entries):
            append(db, book, "resolve", Charge("", "", 0, f"rule-{rule}", event=None))

    def _follow(self, charge: Charge, action: Action, file: str, after: set[Action]) -> None:
        with transaction(self._path) as db:
            book = read(db, self._genesis)
            mine = [e for e in book.entries if e.charge.is_same_act(charge) and e.action != "publish"]
            last = mine[-1] if mine else None
            if last is None or last.action not in after or last.charge != charge:
                found = last.action if last else "nothing"
                raise LedgerError(
                    f"Expected {' or '.join(sorted(after))} before {action} for round "
                    f"{charge.round} of run {charge.run}, found {found}."
                )
            if last.action != action:
                append(db, book, action, charge, file=file)
            elif last.file != file:
                raise LedgerError(
                    f"Round {charge.round} of run {charge.run} is settled with another file."
                )


def _check_within(
    budget: Budget,
    histories: list[list[PrivacyEvent]],
    event: PrivacyEvent,
    times: int,
    rule: Filter | None = None,
) -> None:
    """Raise BudgetExceeded unless each history has room in `budget` for `times` more of `event`."""

    def after(before: list[PrivacyEvent], number: int) -> float:
        return epsilon([*before, *[event] * number], budget.delta, rule)

    worst = max(histories, key=lambda before: after(before, times))
    asked = after(worst, times)
    if budget.covers(asked):
        return
    fits, too_many = 0, times
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if all(budget.covers(after(before, middle)) for before in histories):
            fits = middle
        else:
            too_many = middle
    raise BudgetExceeded(after(worst, 0), asked, budget, fits)
