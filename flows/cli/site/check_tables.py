"""Tables for hospital IT at the terminal: what the checks find in the data."""

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from models.settings.images import PreprocessingConfig
from models.settings.tasks import (
    PLAIN,
    RGB,
    ClassificationConfig,
    RegressionConfig,
    SegmentationConfig,
    TaskConfig,
)
from sites.admission.admission import check_list, lacking
from sites.hospital import Hospital
from sites.imaging.checks import check_together
from sites.imaging.images import Unreadable, read_image
from sites.listing.cases import PICTURES, CaseFiles
from sites.listing.pseudonyms import case_id, evaluator
from sites.policy.policy import Refused
from sites.study import load_study


@dataclass(frozen=True)
class CheckLine:
    """One finding for hospital IT; it may contain names of files, and stays in the hospital."""

    severity: str
    check: str
    cases: str
    text: str


def check_lines(folder: Path, study: Path | None) -> list[CheckLine]:
    """Return everything that the checks find in a hospital's data, the worst first."""
    hospital = Hospital.open(folder)
    policy, key = hospital.policy, hospital.pseudonym_key
    task, preprocessing = _asked_of(hospital, study)
    cases = hospital.checked_cases(task, preprocessing)
    lines = [
        CheckLine(policy.severities[f.check], f.check, _known_as(case.files, key), f.text)
        for case in cases
        for f in case.findings
    ]
    evaluates = evaluator(hospital.split, key)
    for shared in check_together(cases, evaluates):
        names = "\n".join(_known_as(files, key) for files in shared.cases)
        lines.append(CheckLine(policy.severities[shared.check], shared.check, names, shared.text))
    usable = {case.files.patient for case in cases if case.reading}
    training = [patient for patient in usable if not evaluates(patient)]
    if len(training) < policy.min_patients:
        text = f"{len(training)} training patients can be used, min_patients is {policy.min_patients}"
        lines.append(CheckLine("stop", "small_cohort", "", text))
    lines += [CheckLine("warn", "list", "", note) for note in hospital.listing.notes]
    if study:
        try:
            loaded = load_study(study)
            for name in lacking(hospital.current, loaded.task):
                text = f"no case has the study's channel {name}; zeros would take its place"
                lines.append(CheckLine("warn", "list", "", text))
            check_list(hospital, loaded)
        except Refused as reason:
            lines.append(CheckLine("stop", "list", "", str(reason)))
    missed = {f.patient: f for case in cases if (f := case.files).patient not in usable}
    for files in (files for patient, files in missed.items() if evaluates(patient)):
        text = "an evaluation patient without a usable scan counts as a miss: mend it, or exclude it"
        lines.append(CheckLine("warn", "missed", _known_as(files, key), text))
    return sorted(lines, key=lambda line: SEVERITIES.index(line.severity))


def check_table(lines: list[CheckLine]) -> Table:
    """Return the findings as a table for people: equal ones in one row, and what to do below."""
    grouped: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    for line in lines:
        grouped[line.severity, line.check, line.text].append(line.cases)
    worst = {line.severity for line in lines}
    table = Table(
        title="findings of the checks (for the hospital's own use only)",
        caption="What to do: " + " ".join(ADVICE[each] for each in SEVERITIES if each in worst),
    )
    for heading in ("severity", "check", "cases (ids in the log)", "finding"):
        table.add_column(heading)
    for (severity, check, text), cases in grouped.items():
        named = [case for case in cases if case]
        shown = "\n".join(named[:MOST_NAMED])
        if len(named) > MOST_NAMED:
            shown = f"{len(named)} cases:\n{shown}\n..."
        table.add_row(severity, check, shown, text)
    return table


SEVERITIES = ("stop", "skip", "warn")

ADVICE = {
    "stop": "a person of the hospital decides before it joins a study.",
    "skip": "the cases that are skipped add nothing; mend the files, or take them off the list.",
    "warn": "look at the warnings; cases with them are used.",
}

MOST_NAMED = 3
"""Number of cases that a row names; `--json` names all."""


def _known_as(files: CaseFiles, key: bytes) -> str:
    return f"{files.case} ({case_id(key, files)})"


def _asked_of(hospital: Hospital, study: Path | None) -> tuple[TaskConfig, PreprocessingConfig]:
    """Return the task and preprocessing of a study, or those that the hospital's list suggests."""
    if study:
        loaded = load_study(study)
        return loaded.task, loaded.preprocessing
    task = _task_of(hospital)
    return task, PreprocessingConfig(shape=(64,) * task.dims)


def _task_of(hospital: Hospital) -> TaskConfig:
    listing = hospital.listing
    names = {value: f"label-{value}" for value in listing.labels}
    names |= dict(enumerate(sorted(listing.structures), start=1))
    kind = _images_of(hospital)
    if listing.has_values:
        return RegressionConfig(
            kind="regression", labels={0: "value"}, low=-1e9, high=1e9, tolerance=1, **kind
        )
    if listing.has_classes:
        several = listing.has_several
        return ClassificationConfig(kind="classification", labels=names, multi_label=several, **kind)
    foreground = {value: name for value, name in names.items() if value > 0}
    return SegmentationConfig(kind="segmentation", labels=foreground, **kind)


def _images_of(hospital: Hospital) -> dict[str, Any]:
    """Return the dimensions and channels that a hospital's first image suggests."""
    listing = hospital.listing
    first = listing.cases[0].image
    dims, is_coloured = 3 if _is_volume(first) else 2, False
    with suppress(Unreadable):
        image = read_image(hospital.data, first)
        dims, is_coloured = min(max(image.voxels.ndim, 2), 3), image.is_coloured
    if PLAIN[0] in listing.channels:
        return {"dims": dims, "channels": RGB if is_coloured and dims == 2 else PLAIN}
    missing = "zeros" if len(listing.channels) > 1 else "skip"
    return {"dims": dims, "channels": tuple(sorted(listing.channels)), "missing_channel": missing}


def _is_volume(name: str) -> bool:
    return not name.partition("#")[0].lower().endswith((*PICTURES, ".npz"))
