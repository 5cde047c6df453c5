"""A hospital's patients, under keyed hashes, split by hash: those who train and those who never do."""

import hmac
import logging
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from models.objectives import ClassificationConfig, SegmentationConfig
from privacy.signing import secret_file
from sites.intake import BrokenCase, CaseFiles, Scan, declared_labels, read_scan
from sites.policy import Policy, Refused

log = logging.getLogger("wardround.site")


@dataclass(frozen=True)
class Patient:
    """One patient under his keyed hash, with his scans: one unit of privacy."""

    pseudonym: str
    scans: tuple[Scan, ...]


@dataclass(frozen=True)
class Cohort:
    """The patients of a hospital; the two groups share nobody."""

    training: tuple[Patient, ...]
    evaluation: tuple[Patient, ...]


@dataclass(frozen=True)
class Eligible:
    """Who may take part in an event, under keyed hashes: fixed before it, whatever the images show."""

    training: frozenset[str]
    evaluation: frozenset[str]


def pseudonym_key(state: Path, make: Callable[[], bytes] = lambda: secrets.token_bytes(32)) -> bytes:
    """Return the hospital's secret key for pseudonyms, made by `make` on first use."""
    return secret_file(state / "keys" / "pseudonyms", make)


def pseudonym(key: bytes, patient: str) -> str:
    """Return the keyed hash by which the hospital knows `patient`: 32 hexadecimal digits."""
    return hmac.new(key, patient.encode(), sha256).hexdigest()[:32]


def evaluates(pseudonym: str, fraction: float) -> bool:
    """Return whether this patient is one of the `fraction` who evaluate.

    It depends on the pseudonym alone, so adding patients moves nobody to the other group.
    """
    return int(pseudonym[:13], 16) / 16**13 < fraction


def eligible(cases: Iterable[CaseFiles], fraction: float, key: bytes) -> Eligible:
    """Return the patients of the listed `cases`; no file is opened."""
    everybody = frozenset(pseudonym(key, case.patient) for case in cases)
    aside = frozenset(name for name in everybody if evaluates(name, fraction))
    return Eligible(training=everybody - aside, evaluation=aside)


def load_cohort(
    data: Path,
    cases: Iterable[CaseFiles],
    policy: Policy,
    task: SegmentationConfig | ClassificationConfig,
    key: bytes,
) -> Cohort:
    """Return the patients of the listed `cases` whose scans can be used.

    Raises:
        Refused: the study has other labels than `dataset.json` declares; a case is broken and the
            policy says `on_broken_case: stop`; fewer training patients than `min_patients` remain.
            The text tells no count and no case; the hospital's own log names each broken case.
    """
    _check_labels(declared_labels(data), task)
    scans, faults = read_cases(data, cases, task)
    for fault in faults:
        log.warning("broken case %s", fault)
    if faults and policy.on_broken_case == "stop":
        raise Refused("a case is broken and the policy has on_broken_case: stop")
    patients: dict[str, list[Scan]] = {}
    for case, scan in scans:
        patients.setdefault(pseudonym(key, case.patient), []).append(scan)
    everybody = [Patient(name, tuple(patients[name])) for name in sorted(patients)]
    aside = {p.pseudonym for p in everybody if evaluates(p.pseudonym, policy.evaluation_fraction)}
    cohort = Cohort(
        training=tuple(p for p in everybody if p.pseudonym not in aside),
        evaluation=tuple(p for p in everybody if p.pseudonym in aside),
    )
    if len(cohort.training) < policy.min_patients:
        raise Refused("fewer training patients than the policy's min_patients can be used")
    return cohort


def _check_labels(declared: Mapping[int, str], task: SegmentationConfig | ClassificationConfig) -> None:
    """Refuse a study with labels of its own choice: who is left out would tell who has which."""
    background = {0} if task.kind == "segmentation" else set()
    if set(declared) - background != set(task.labels):
        raise Refused(
            f"the study's labels {sorted(task.labels)} are not those of the hospital's data, "
            f"{sorted(set(declared) - background)}"
        )


def read_cases(
    data: Path, cases: Iterable[CaseFiles], task: SegmentationConfig | ClassificationConfig
) -> tuple[list[tuple[CaseFiles, Scan]], list[BrokenCase]]:
    """Return the scans that can be used and what is wrong with the others."""
    scans, faults = [], []
    for case in cases:
        try:
            scans.append((case, read_scan(data, case, task)))
        except BrokenCase as fault:
            faults.append(fault)
    return scans, faults
