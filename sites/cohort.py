"""A hospital's patients under keyed hashes, split by hash: some train, the others never do."""

import hmac
import logging
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from privacy.signing import secret_file
from sites.imaging.checks import CheckedCase, check_together
from sites.imaging.reading import Reading
from sites.listing.cases import CaseFiles
from sites.policy.policy import Policy

log = logging.getLogger("wardround.site")

_IMPORTED = re.compile("imported-([0-9a-f]{32})")


@dataclass(frozen=True)
class Patient:
    """One patient under their keyed hash, with their scans: one unit of privacy."""

    pseudonym: str
    scans: tuple[Reading, ...]


@dataclass(frozen=True)
class Cohort:
    """The patients of a hospital as a study reads their scans; no patient is in both groups.

    Attributes:
        training: those with at least one scan that can be used.
        evaluation: all who are listed. Whoever has no usable scan has no scans here, and is a miss.
        findings: what the checks found, for the hospital's own use; without names.
    """

    training: tuple[Patient, ...]
    evaluation: tuple[Patient, ...]
    findings: tuple[str, ...] = ()


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


def load_cohort(cases: Sequence[CheckedCase], policy: Policy, key: bytes, split: Split) -> Cohort:
    """Return the patients of the listed `cases` as their scans can be read.

    Findings are logged at the hospital and returned; none of them raises, because an error could be
    seen from outside (docs/decisions/0014).
    """
    patients: dict[str, list[Reading]] = {}
    findings = []
    for case in cases:
        mine = patients.setdefault(pseudonym(key, case.files.patient), [])
        found = {policy.severities[finding.check] for finding in case.findings}
        if case.reading and "skip" not in found:
            mine.append(case.reading)
        named = f"case {case_id(key, case.files)}"
        findings += [f"{f.check}: {f.text}: {named}" for f in case.findings]
    for shared in check_together(cases, evaluator(split, key)):
        where = ", ".join(case_id(key, files) for files in shared.cases)
        findings.append(f"{shared.check}: {shared.text}{f': case {where}' if where else ''}")
    for finding in findings:
        log.warning("%s", finding)
    everybody = [Patient(name, tuple(patients[name])) for name in sorted(patients)]
    return Cohort(
        training=tuple(p for p in everybody if p.scans and not split.evaluates(p.pseudonym)),
        evaluation=tuple(p for p in everybody if split.evaluates(p.pseudonym)),
        findings=tuple(findings),
    )


def evaluator(split: Split, key: bytes) -> Callable[[str], bool]:
    """Return a function that checks if a patient, by their name in the list, evaluates."""
    return lambda patient: split.evaluates(pseudonym(key, patient))


def case_id(key: bytes, case: CaseFiles) -> str:
    """Return the identifier of a case in logs: its file name may contain a patient's name."""
    return pseudonym(key, f"case {case.image}")[:12]
