"""The content of a hospital's ledger: charges, entries, cohorts, and the accounts that follow from them.

This module uses no file: `privacy.ledger_file` reads and writes, `privacy.ledger` checks and charges.
"""

import json
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Literal

from models.errors import FixYourInput, ReportToUs
from privacy.accounting import Filter, PrivacyEvent
from privacy.signing import canonical

CLOCK_SLACK_S = 60
"""Seconds that the clock may be behind the newest entry: time servers correct clocks by less."""

Action = Literal["reserve", "start", "settle", "void", "publish", "resolve"]
Patients = Collection[str]
"""Patients by their keyed hashes."""


RULES: Mapping[str, Filter] = {"rule-gaussian": "gaussian", "rule-renyi": "renyi"}
"""Purposes of the entry that records a ledger's filter, and the filter."""


class LedgerError(ReportToUs):
    """The ledger is broken, or a step came out of order."""


class ClockWentBack(FixYourInput):
    """The clock is behind the ledger's newest entry, so a new entry would have a wrong time."""


@dataclass(frozen=True)
class Charge:
    """The cost of one act of a hospital; study, run, round and purpose identify the act.

    `event` is None for an act that costs nothing, and for a release without differential privacy,
    which the hospital's policy has to allow.
    """

    study: str
    run: str
    round: int
    purpose: str
    event: PrivacyEvent | None

    def is_same_act(self, other: "Charge") -> bool:
        """Return whether both charges have the same study, run, round and purpose."""
        mine = (self.study, self.run, self.round, self.purpose)
        return mine == (other.study, other.run, other.round, other.purpose)


@dataclass(frozen=True)
class Entry:
    """One row of the ledger. `cohort` is the sha256 of the list of a reservation's patients."""

    seq: int
    at: float
    action: Action
    charge: Charge
    cohort: str
    file: str
    previous: str
    hash: str


@dataclass(frozen=True)
class Book:
    """A ledger's content within one transaction."""

    genesis: str
    cohorts: Mapping[str, frozenset[str]]
    entries: list[Entry]

    @property
    def head(self) -> str:
        """The hash of the newest entry."""
        return self.entries[-1].hash if self.entries else self.genesis

    def rule(self, wanted: Filter) -> Filter:
        """Return the filter that was recorded at this ledger's first private charge, else `wanted`.

        A sampled event, which an older or a lost ledger may have, needs `renyi`.
        """
        events = (e.charge.event for e in self.entries if e.action == "reserve")
        if any(event is not None and event.sampling_rate < 1 for event in events):
            return "renyi"
        for entry in self.entries:
            if entry.action == "resolve" and entry.charge.purpose in RULES:
                return RULES[entry.charge.purpose]
        return wanted

    def histories(self, run: str | None = None) -> list[list[PrivacyEvent]]:
        """Return the events of each class of patients, by one run or by all."""
        standing = self._charged(run)
        return [_of(cohorts, standing) for cohorts in self.classes()]

    def classes(self) -> set[frozenset[str]]:
        """Return the classes of patients, each as the set of its patients' cohorts."""
        return set(self._accounts().values())

    def histories_of(
        self, patients: Patients, run: str | None = None, purpose: str | None = None
    ) -> list[list[PrivacyEvent]]:
        """Return the events of each class that has one of `patients`; a new patient has no events.

        With `run` and `purpose`, only those of one run and of its acts of one kind, recovered ones
        (`contribute-unreleased-...`) included.
        """
        accounts = self._accounts()
        classes = {accounts.get(patient, frozenset()) for patient in patients}
        standing = self._charged(run, purpose)
        return [_of(cohorts, standing) for cohorts in classes]

    def _accounts(self) -> dict[str, frozenset[str]]:
        """Return the cohorts of each patient."""
        of: defaultdict[str, set[str]] = defaultdict(set)
        for cohort, patients in self.cohorts.items():
            for patient in patients:
                of[patient].add(cohort)
        return {patient: frozenset(cohorts) for patient, cohorts in of.items()}

    def _charged(
        self, run: str | None = None, purpose: str | None = None
    ) -> list[tuple[str, PrivacyEvent]]:
        """Return the events in force, each with its cohort."""
        return [
            (entry.cohort, entry.charge.event)
            for entry in standing_of(self.entries)
            if entry.charge.event is not None
            and run in (None, entry.charge.run)
            and (purpose is None or is_kind(entry.charge.purpose, purpose))
        ]

    def check_clock(self) -> None:
        """Raise ClockWentBack if the clock is more than CLOCK_SLACK_S behind the newest entry."""
        if self.entries and time.time() < self.entries[-1].at - CLOCK_SLACK_S:
            newest, now = (
                f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"
                for at in (self.entries[-1].at, time.time())
            )
            raise ClockWentBack(
                f"Expected a time after the ledger's newest entry, {newest}, got {now}. Set the clock. "
                f"If the older time was wrong, `wardround site recover-ledger` accepts the new one."
            )


def is_kind(purpose: str, kind: str) -> bool:
    """Return whether an act is of a kind, recovered ones included.

    >>> is_kind("contribute-unreleased-0123", "contribute"), is_kind("contributes", "contribute")
    (True, False)
    """
    return f"{purpose}-".startswith(f"{kind}-")


def kind_of(purpose: str) -> str:
    """Return the kind of a charge, whichever attempt at a secure sum it paid for.

    >>> kind_of("contribute-try-2"), kind_of("contribute")
    ('contribute', 'contribute')
    """
    return purpose.partition("-try-")[0]


def check_some(patients: Patients) -> None:
    """Raise LedgerError if there are no patients."""
    if not patients:
        raise LedgerError("Expected at least one patient to charge, got none.")


def _of(cohorts: frozenset[str], charged: list[tuple[str, PrivacyEvent]]) -> list[PrivacyEvent]:
    return [event for cohort, event in charged if cohort in cohorts]


def cohort_name(patients: Iterable[str]) -> str:
    """Return the sha256 of a list of patients; their order does not matter."""
    return sha256(canonical(sorted(set(patients)))).hexdigest()


def hash_of(seq: int, at: float, action: str, charge: str, cohort: str, file: str, previous: str) -> str:
    """Return the hash of an entry; `charge` is its stored text."""
    return sha256(canonical([seq, at, action, charge, cohort, file, previous])).hexdigest()


def charge_from(text: str) -> Charge:
    """Return the charge that is stored as `text`.

    Raises:
        ValueError, TypeError, KeyError: the text is not a charge.
    """
    fields = json.loads(text)
    event = fields.pop("event")
    return Charge(**fields, event=PrivacyEvent(**event) if event else None)


def standing_of(entries: list[Entry]) -> list[Entry]:
    """Return the reservations in force: those that were not given back."""
    standing: list[Entry] = []
    for entry in entries:
        if entry.action == "reserve":
            standing.append(entry)
        elif entry.action == "void":
            standing = [e for e in standing if not e.charge.is_same_act(entry.charge)]
    return standing
