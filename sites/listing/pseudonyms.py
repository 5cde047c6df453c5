"""Patients under keyed hashes, and who of them trains: by hash alone, whatever their scans show."""

import hmac
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from privacy.signing import secret_file
from sites.listing.cases import CaseFiles

_IMPORTED = re.compile("imported-([0-9a-f]{32})")


@dataclass(frozen=True)
class Eligible:
    """Keyed hashes of patients who may take part in an event: fixed before it, whatever the images."""

    training: frozenset[str]
    evaluation: frozenset[str]


def pseudonym_key(state: Path, make: Callable[[], bytes] = lambda: secrets.token_bytes(32)) -> bytes:
    """Return the hospital's secret key for pseudonyms, made by `make` on first use."""
    return secret_file(state / "keys" / "pseudonyms", make)


def imported(pseudonym: str) -> str:
    """Return the name in the list of a patient whose scans were imported under their keyed hash."""
    return f"imported-{pseudonym}"


def pseudonym(key: bytes, patient: str) -> str:
    """Return the keyed hash by which the hospital knows `patient`: 32 hexadecimal digits.

    A patient listed by their own name and as `imported` is one patient.
    """
    if found := _IMPORTED.fullmatch(patient):
        return found[1]
    return hmac.new(key, patient.encode(), sha256).hexdigest()[:32]


@dataclass(frozen=True)
class Split:
    """The rule that puts each patient into a group: the patient's keyed hash, and who has trained.

    The groups of others change nothing, so adding patients moves nobody to the other group. Whoever has
    trained never evaluates, even if `fraction` is larger now.
    """

    fraction: float
    trained: frozenset[str] = frozenset()

    def evaluates(self, pseudonym: str) -> bool:
        """Return whether this patient only evaluates."""
        return pseudonym not in self.trained and int(pseudonym[:13], 16) / 16**13 < self.fraction


def eligible(cases: Iterable[CaseFiles], split: Split, key: bytes) -> Eligible:
    """Return the patients of the listed `cases`; no file is opened."""
    everybody = frozenset(pseudonym(key, case.patient) for case in cases)
    aside = frozenset(name for name in everybody if split.evaluates(name))
    return Eligible(training=everybody - aside, evaluation=aside)


def evaluator(split: Split, key: bytes) -> Callable[[str], bool]:
    """Return a function that checks if a patient, by their name in the list, evaluates."""
    return lambda patient: split.evaluates(pseudonym(key, patient))


def case_id(key: bytes, case: CaseFiles) -> str:
    """Return the identifier of a case in logs: its file name may contain a patient's name."""
    return pseudonym(key, f"case {case.image}")[:12]
