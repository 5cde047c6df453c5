"""What hospital IT reads at the terminal: the ledger, the outbox, broken cases."""

import json
from datetime import datetime
from pathlib import Path

from rich.table import Table

from models.objectives import ClassificationConfig, SegmentationConfig
from privacy.accounting import PrivacyEvent
from privacy.ledger import LedgerError
from sites.cohort import read_cases
from sites.exchange import Exchange
from sites.forgotten import forgotten
from sites.hospital import Hospital
from sites.intake import declared_labels
from sites.study import load_study


def ledger_table(folder: Path) -> Table:
    """Return the hospital's ledger: each charge, how far it came, and what was spent with it."""
    hospital = Hospital.open(folder)
    budget, plain = hospital.policy.budget, hospital.ledger.plain_charges()
    title = f"{hospital.name}: budget epsilon {budget.epsilon:g} at delta {budget.delta:g}"
    if plain:
        title += f"\nbeside it {plain} releases without privacy, which no epsilon covers"
    table = Table(title=title)
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
            _words(charge.event),
            STATES[state],
            f"{spent:.3f}",
            f"{max(budget.epsilon - spent, 0):.3f}",
        )
    return table


def verified_entries(folder: Path) -> int:
    """Return how many entries the ledger has, after checking its chain and every file it names.

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


def _words(event: PrivacyEvent | None) -> str:
    if event is None:
        return "no privacy"
    return f"{event.steps} x noise {event.noise_multiplier:.2f}"


def outbox_table(folder: Path) -> Table:
    """Return every statement that left, or is about to, with the tensors it names."""
    hospital = Hospital.open(folder)
    table = Table(title=f"{hospital.name}: what left")
    for heading in ("when", "run", "round", "kind", "bytes of tensors", "statement (sha256)"):
        table.add_column(heading)
    for entry in hospital.ledger.entries():
        if not entry.file:
            continue
        statement = json.loads(hospital.outbox.statement(entry.file))["statement"]
        table.add_row(
            f"{datetime.fromtimestamp(entry.at):%Y-%m-%d %H:%M:%S}",
            entry.charge.run,
            str(entry.charge.round),
            statement["kind"],
            f"{statement.get('payload_bytes', 0):,}",
            entry.file,
        )
    return table


def forgotten_table(hospital: Hospital, exchanges: list[Exchange]) -> tuple[Table, int]:
    """Return what the hospital has said and its ledger does not know, and how much that is."""
    found = list(forgotten(hospital, exchanges))
    table = Table(title=f"{hospital.name}: {len(found)} statements that the ledger does not know")
    for heading in ("run", "round", "act", "kind", "what it cost"):
        table.add_column(heading)
    for each in found:
        act, kind = each.act, each.statement.kind
        cost = _words(act.event) if act.event or kind == "release" else "nothing"
        table.add_row(act.run, str(act.round), act.purpose, kind, cost)
    return table, len(found)


def faults_table(folder: Path, study: Path | None) -> tuple[Table, int]:
    """Return the hospital's broken cases, for the hospital's eyes, and how many there are."""
    hospital = Hospital.open(folder)
    data = folder / hospital.policy.data
    task = load_study(study).task if study else _task_of(data)
    _, faults = read_cases(data, hospital.cases, task)
    table = Table(title=f"{hospital.name}: {len(faults)} broken cases")
    table.add_column("case")
    table.add_column("what is wrong")
    for fault in faults:
        table.add_row(fault.case, fault.reason)
    return table, len(faults)


def _task_of(data: Path) -> SegmentationConfig | ClassificationConfig:
    """Return the task that the data's own description suggests."""
    labels = {value: f"label-{value}" for value in declared_labels(data) if value > 0}
    return SegmentationConfig(kind="segmentation", dims=3, labels=labels)
