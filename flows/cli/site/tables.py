"""Tables for hospital IT at the terminal: the ledger, the outbox, the findings of the checks."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from flows.runs.dates import minute
from models.tasks import (
    PLAIN,
    RGB,
    ClassificationConfig,
    RegressionConfig,
    SegmentationConfig,
    TaskConfig,
)
from privacy.accounting import PrivacyEvent
from privacy.ledger import LedgerError
from sites.admission.admission import check_list, free_answers, lacking
from sites.admission.approvals import waiting
from sites.admission.ledger_recovery import missing_statements
from sites.cohort import case_id, evaluator, pseudonym
from sites.exchange.exchange import Exchange
from sites.hospital import Hospital
from sites.imaging.checks import check_together
from sites.imaging.images import Unreadable, read_image
from sites.imaging.preprocessing import PreprocessingConfig
from sites.listing.cases import PICTURES, CaseFiles
from sites.listing.listing import EXCLUDED, excluded_patients
from sites.policy.policy import Refused
from sites.study import load_study


def ledger_table(folder: Path) -> Table:
    """Return the hospital's ledger: each charge, its state, and the epsilon spent up to it."""
    hospital = Hospital.open(folder)
    budget, plain = hospital.policy.budget, hospital.ledger.plain_charges()
    title = f"{hospital.name}: budget epsilon {budget.epsilon:g} at delta {budget.delta:g}"
    if plain:
        title += f"\nplus {plain} releases without privacy, which no epsilon covers"
    caption = (
        "What is spent holds for rounds that were planned in advance. For a run that was stopped "
        "because of what came out, count its study's whole budget."
    )
    table = Table(title=title, caption=caption)
    for heading in ("when", "study", "round", "event", "state", "epsilon so far", "left"):
        table.add_column(heading)
    entries = [e for e in hospital.ledger.entries() if e.action != "publish"]
    for entry, spent in hospital.ledger.spent_after(budget.delta):
        charge = entry.charge
        after = [e.action for e in entries if e.seq > entry.seq and e.charge.is_same_act(charge)]
        state = after[-1] if after else "reserve"
        table.add_row(
            f"{datetime.fromtimestamp(entry.at):%m-%d %H:%M}",
            charge.study,
            str(charge.round),
            _event_text(charge.event),
            STATES.get(state, state),
            f"{spent:.3f}",
            f"{max(budget.epsilon - spent, 0):.3f}",
        )
    return table


def withdrawn_table(folder: Path) -> Table:
    """Return the rounds in which withdrawn patients took part, for the hospital's own use only."""
    hospital = Hospital.open(folder)
    caption = "The models of these rounds, and all models made from them, have learned from the patient."
    table = Table(title="patients who have withdrawn", caption=caption)
    for heading in ("patient", "study", "run", "rounds"):
        table.add_column(heading)
    for name in sorted(excluded_patients(hospital.folder / EXCLUDED)):
        rounds: dict[tuple[str, str], list[str]] = {}
        for charge in hospital.ledger.charges_of(pseudonym(hospital.pseudonym_key, name)):
            if charge.purpose.startswith("contribute"):
                rounds.setdefault((charge.study, charge.run), []).append(str(charge.round))
        for (study, run), numbers in rounds.items():
            table.add_row(name, study, run, ", ".join(numbers))
        if not rounds:
            table.add_row(name, "none", "", "")
    return table


def waiting_table(folder: Path) -> Table:
    """Return the requests that wait for a person of the hospital."""
    caption = "Terms and findings of each are in state/approvals/<name>*.request.json."
    table = Table(title="requests that wait for approval", caption=caption)
    for heading in ("name", "act", "run", "round", "since", "findings", "code for yes", "code for no"):
        table.add_column(heading, no_wrap=heading.startswith(("name", "code")), overflow="fold")
    hospital = Hospital.open(folder)
    for each in waiting(hospital):
        request = each.request
        since = minute(request.asked_ms)
        where = (request.run, str(request.round))
        table.add_row(
            each.terms[:12],
            request.act,
            *where,
            since,
            str(len(request.findings)),
            each.codes["approved"],
            each.codes["refused"],
        )
    return table


def scores_table(folder: Path) -> Table:
    """Return the metrics of the hospital's personal models beside the global ones, round by round."""
    hospital = Hospital.open(folder)
    table = Table(title=f"{hospital.name}: the global and the personal model")
    for heading in ("study", "run", "round", "metric", "global", "personal"):
        table.add_column(heading)
    for path in sorted((hospital.state / "scores").glob("*/*.json")):
        stored = json.loads(path.read_bytes())
        for name, value in stored["global"].items():
            personal = stored["personal"].get(name)
            shown = "" if personal is None else f"{personal:.3f}"
            table.add_row(
                stored["study"], path.parent.name, str(stored["round"]), name, f"{value:.3f}", shown
            )
    return table


def verified_entries(folder: Path) -> int:
    """Return the number of entries in the ledger, after a check of its chain and of every file it names.

    Raises:
        LedgerError: an entry does not follow from the one before, or a file is missing.
        CorruptCheckpoint: a file of the outbox was changed.
    """
    hospital = Hospital.open(folder)
    entries = hospital.ledger.entries()
    for entry in entries:
        if not entry.file:
            continue
        try:
            statement = json.loads(hospital.outbox.statement(entry.file))["statement"]
            if statement["kind"] == "release":
                hospital.outbox.tensors(statement["payload_sha256"])
        except FileNotFoundError as error:
            raise LedgerError(f"Entry {entry.seq} names a file that is not in the outbox.") from error
    return len(entries)


STATES = {"reserve": "reserved", "start": "started", "settle": "released", "void": "given back"}


def _event_text(event: PrivacyEvent | None) -> str:
    if event is None:
        return "no privacy"
    return f"{event.steps} x noise {event.noise_multiplier:.2f}"


def outbox_table(folder: Path) -> Table:
    """Return every statement that left, or is about to, with the size of the tensors it names."""
    hospital = Hospital.open(folder)
    free, most = free_answers(hospital), hospital.policy.free_answers_per_week
    caption = (
        f"{free} answers of the last seven days cost nothing; the policy allows {most}.\n"
        "A statement is the file in state/outbox whose name begins so."
    )
    table = Table(title=f"{hospital.name}: statements that left", caption=caption)
    for heading in ("when", "run", "round", "act", "kind", "bytes", "statement"):
        table.add_column(heading, overflow="fold")
    for entry in hospital.ledger.entries():
        if not entry.file:
            continue
        statement = json.loads(hospital.outbox.statement(entry.file))["statement"]
        table.add_row(
            f"{datetime.fromtimestamp(entry.at):%Y-%m-%d %H:%M}",
            entry.charge.run,
            str(entry.charge.round),
            entry.charge.purpose,
            _kind_text(statement),
            f"{statement.get('payload_bytes', 0):,}",
            entry.file[:12],
        )
    return table


def _kind_text(statement: Mapping[str, Any]) -> str:
    """Return the kind of a statement in words.

    >>> _kind_text({"kind": "release", "masked": {"members": {"a": "", "b": ""}}})
    'release (masked; readable only in the sum of 2 hospitals)'
    """
    words = str(statement["kind"]).replace("_", " ")
    if masked := statement.get("masked"):
        words += f" (masked; readable only in the sum of {len(masked['members'])} hospitals)"
    return words


def missing_table(
    hospital: Hospital, exchanges: list[Exchange], former_keys: Sequence[str] = ()
) -> tuple[Table, int]:
    """Return the hospital's published statements that its ledger lacks, and their number."""
    found = list(missing_statements(hospital, exchanges, former_keys=former_keys))
    table = Table(title=f"{hospital.name}: {len(found)} statements that the ledger lacks")
    for heading in ("run", "round", "act", "kind", "cost", "signed by"):
        table.add_column(heading)
    for each in found:
        act, kind = each.act, each.statement.kind
        cost = _event_text(act.event) if act.event or kind == "release" else "nothing"
        signer = f"key {each.signer[:12]}" if each.signer else "this hospital"
        table.add_row(act.run, str(act.round), act.purpose, kind, cost, signer)
    return table, len(found)


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
