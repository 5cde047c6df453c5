"""A hospital's patients under keyed hashes, split by hash: some train, the others never do."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from sites.imaging.checks import CheckedCase, check_together
from sites.imaging.reading import Reading
from sites.listing.pseudonyms import Split, case_id, evaluator, pseudonym
from sites.policy.policy import Policy

log = logging.getLogger("wardround.site")


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
