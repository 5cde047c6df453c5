"""What hospital IT reads at the terminal: the ledger, the outbox, broken cases."""

import json
from datetime import datetime
from pathlib import Path

from rich.table import Table

from models.objectives import ClassificationConfig, SegmentationConfig
from privacy.accounting import epsilon
from sites.cohort import read_cases
from sites.hospital import Hospital
from sites.intake import declared_labels, list_cases
from sites.study import load_study


def ledger_table(folder: Path) -> Table:
    """Return the hospital's ledger: each entry, and what was spent with it."""
    hospital = Hospital.open(folder)
    budget, plain = hospital.policy.budget, hospital.ledger.plain_charges()
    title = f"{hospital.name}: budget epsilon {budget.epsilon:g} at delta {budget.delta:g}"
    if plain:
        title += f"\nbeside it {plain} releases without privacy, which no epsilon covers"
    table = Table(title=title)
    for heading in ("when", "study", "round", "act", "entry", "event", "epsilon so far", "left"):
        table.add_column(heading)
    standing = []
    for entry in hospital.ledger.entries():
        charge = entry.charge
        if entry.action == "publish":
            continue
        if entry.action == "reserve" and charge.event:
            standing.append(charge)
        if entry.action == "void":
            standing = [c for c in standing if not c.is_same_act(charge)]
        spent = epsilon([c.event for c in standing if c.event], budget.delta)
        event = charge.event
        table.add_row(
            f"{datetime.fromtimestamp(entry.at):%Y-%m-%d %H:%M:%S}",
            charge.study,
            str(charge.round),
            charge.purpose,
            entry.action,
            f"{event.steps} steps, noise {event.noise_multiplier:.3f}" if event else "no privacy",
            f"{spent:.3f}",
            f"{max(budget.epsilon - spent, 0):.3f}",
        )
    return table


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


def faults_table(folder: Path, study: Path | None) -> tuple[Table, int]:
    """Return the hospital's broken cases, for the hospital's eyes, and how many there are."""
    hospital = Hospital.open(folder)
    data = folder / hospital.policy.data
    task = load_study(study).task if study else _task_of(data)
    _, faults = read_cases(data, list_cases(data), task)
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
