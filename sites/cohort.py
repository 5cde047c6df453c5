"""A hospital's patients under keyed hashes, split by hash: some train, the others never do."""

import hmac
import logging
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from models.objectives import TaskConfig
from privacy.signing import secret_file
from sites.imaging.checks import CheckedCase, SharedFinding, check_together
from sites.imaging.intake import Finding
from sites.imaging.listing import CaseFiles
from sites.imaging.reading import Reading
from sites.policy.policy import Policy, Refused

log = logging.getLogger("wardround.site")

_IMPORTED = re.compile("imported-([0-9a-f]{32})")


@dataclass(frozen=True)
class Patient:
    """One patient under their keyed hash, with their scans: one unit of privacy."""

    pseudonym: str
    scans: tuple[Reading, ...]


@dataclass(frozen=True)
class Cohort:
    """The patients of a hospital; no patient is in both groups."""

    training: tuple[Patient, ...]
    evaluation: tuple[Patient, ...]


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


def load_cohort(
    cases: Sequence[CheckedCase],
    declared: Mapping[int, str],
    policy: Policy,
    task: TaskConfig,
    key: bytes,
    split: Split,
) -> Cohort:
    """Return the patients of `cases` whose scans can be used.

    Args:
        declared: the labels that the hospital declares for its data.

    Raises:
        Refused: the study has other labels than `declared`; a finding has the severity `stop`; fewer
            training patients than `min_patients` remain. The text contains no count and no case; each
            finding is in the hospital's own log.
    """
    _check_labels(declared, task)
    patients: dict[str, list[Reading]] = {}
    for case in cases:
        is_left_out = _gate(policy, case, key)
        if case.reading and not is_left_out:
            patients.setdefault(pseudonym(key, case.files.patient), []).append(case.reading)
    for finding in check_together(cases, evaluator(split, key)):
        where = ", ".join(case_id(key, files) for files in finding.cases)
        log.warning("%s: %s%s", finding.check, finding.text, f": case {where}" if where else "")
        if policy.severities[finding.check] == "stop":
            raise Refused(_stopped(finding))
    everybody = [Patient(name, tuple(patients[name])) for name in sorted(patients)]
    aside = {p.pseudonym for p in everybody if split.evaluates(p.pseudonym)}
    cohort = Cohort(
        training=tuple(p for p in everybody if p.pseudonym not in aside),
        evaluation=tuple(p for p in everybody if p.pseudonym in aside),
    )
    if len(cohort.training) < policy.min_patients:
        raise Refused("fewer training patients can be used than the policy's min_patients")
    return cohort


def evaluator(split: Split, key: bytes) -> Callable[[str], bool]:
    """Return a function that checks if a patient, by their name in the list, evaluates."""
    return lambda patient: split.evaluates(pseudonym(key, patient))


def case_id(key: bytes, case: CaseFiles) -> str:
    """Return the identifier of a case in logs: its file name may contain a patient's name."""
    return pseudonym(key, f"case {case.image}")[:12]


def _gate(policy: Policy, case: CheckedCase, key: bytes) -> bool:
    """Log a case's findings; return whether to skip the case; raise `Refused` for the severity stop."""
    found = {policy.severities[finding.check]: finding for finding in case.findings}
    for finding in case.findings:
        log.warning("case %s: %s: %s", case_id(key, case.files), finding.check, finding.text)
    if "stop" in found:
        raise Refused(_stopped(found["stop"]))
    return "skip" in found


def _stopped(finding: Finding | SharedFinding) -> str:
    return f"the check {finding.check} of the hospital's data, with the severity stop, found a fault"


def _check_labels(declared: Mapping[int, str], task: TaskConfig) -> None:
    """Refuse a study with other labels than declared: the cases left out would reveal their labels."""
    background = {0} if task.kind == "segmentation" else set()
    if set(declared) - background != set(task.labels):
        raise Refused(
            f"the study's labels {sorted(task.labels)} differ from those of the hospital's data, "
            f"{sorted(set(declared) - background)}"
        )
