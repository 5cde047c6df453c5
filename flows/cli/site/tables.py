"""Tables for hospital IT at the terminal: the ledger, the outbox, requests, withdrawn patients."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from flows.runs.dates import minute
from privacy.accounting import PrivacyEvent
from privacy.ledger import LedgerError
from sites.admission.free_answers import free_answers
from sites.admission.ledger_recovery import missing_statements
from sites.admission.requests import waiting
from sites.exchange.exchange import Exchange
from sites.hospital import Hospital
from sites.listing.listing import EXCLUDED, excluded_patients
from sites.listing.pseudonyms import pseudonym

Row = dict[str, str | int | float | None]


def ledger_rows(folder: Path) -> list[Row]:
    """Return each charge of the hospital's ledger, its state, and the epsilon spent up to it."""
    hospital = Hospital.open(folder)
    budget = hospital.policy.budget
    entries = [e for e in hospital.ledger.entries() if e.action != "publish"]
    rows: list[Row] = []
    for entry, spent in hospital.ledger.spent_after(budget.delta):
        charge = entry.charge
        after = [e.action for e in entries if e.seq > entry.seq and e.charge.is_same_act(charge)]
        state = after[-1] if after else "reserve"
        rows.append(
            {
                "when": datetime.fromtimestamp(entry.at, UTC).isoformat(timespec="seconds"),
                "study": charge.study,
                "run": charge.run,
                "round": charge.round,
                "event": _event_text(charge.event),
                "state": STATES.get(state, state),
                "epsilon": spent,
                "left": max(budget.epsilon - spent, 0),
            }
        )
    return rows


def ledger_table(folder: Path) -> Table:
    """Return the hospital's ledger as a table for people."""
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
    for row in ledger_rows(folder):
        when = datetime.fromisoformat(str(row["when"])).astimezone()
        numbers = (f"{row['epsilon']:.3f}", f"{row['left']:.3f}")
        words = (str(row[name]) for name in ("study", "round", "event", "state"))
        table.add_row(f"{when:%m-%d %H:%M}", *words, *numbers)
    return table


def withdrawn_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rounds in which withdrawn patients took part, for the hospital's own use only."""
    hospital, rows = Hospital.open(folder), []
    for name in sorted(excluded_patients(hospital.folder / EXCLUDED)):
        rounds: dict[tuple[str, str], list[int]] = {}
        for charge in hospital.ledger.charges_of(pseudonym(hospital.pseudonym_key, name)):
            if charge.purpose.startswith("contribute"):
                rounds.setdefault((charge.study, charge.run), []).append(charge.round)
        rows += [
            {"patient": name, "study": study, "run": run, "rounds": numbers}
            for (study, run), numbers in (rounds or {("none", ""): []}).items()
        ]
    return rows


def withdrawn_table(folder: Path) -> Table:
    """Return the rows of `withdrawn_rows` as a table for people."""
    rows = withdrawn_rows(folder)
    learned = "The models of these rounds, and all models made from them, have learned from the patient."
    caption = learned if any(row["rounds"] for row in rows) else ""
    table = Table(title="patients who have withdrawn", caption=caption)
    for heading in ("patient", "study", "run", "rounds"):
        table.add_column(heading)
    for row in rows:
        table.add_row(row["patient"], row["study"], row["run"], ", ".join(map(str, row["rounds"])))
    return table


def waiting_rows(folder: Path) -> list[Row]:
    """Return the requests that wait for a person of the hospital."""
    return [
        {
            "name": each.terms[:12],
            "act": each.request.act,
            "run": each.request.run,
            "round": each.request.round,
            "since": minute(each.request.asked_ms),
            "findings": len(each.request.findings),
            "code for yes": each.codes["approved"],
            "code for no": each.codes["refused"],
        }
        for each in waiting(Hospital.open(folder))
    ]


def waiting_table(folder: Path) -> Table:
    """Return the rows of `waiting_rows` as a table for people."""
    caption = "Terms and findings of each are in state/approvals/<name>*.request.json."
    table = Table(title="requests that wait for approval", caption=caption)
    for heading in ("name", "act", "run", "round", "since", "findings", "code for yes", "code for no"):
        table.add_column(heading, no_wrap=heading.startswith(("name", "code")), overflow="fold")
    for row in waiting_rows(folder):
        table.add_row(*map(str, row.values()))
    return table


def scores_rows(folder: Path) -> list[Row]:
    """Return the metrics of the hospital's personal models beside the global ones, round by round."""
    rows: list[Row] = []
    for path in sorted((Hospital.open(folder).state / "scores").glob("*/*.json")):
        stored = json.loads(path.read_bytes())
        rows += [
            {
                "study": stored["study"],
                "run": path.parent.name,
                "round": stored["round"],
                "metric": name,
                "global": value,
                "personal": stored["personal"].get(name),
            }
            for name, value in stored["global"].items()
        ]
    return rows


def scores_table(folder: Path) -> Table:
    """Return the rows of `scores_rows` as a table for people."""
    table = Table(title=f"{Hospital.open(folder).name}: the global and the personal model")
    for heading in ("study", "run", "round", "metric", "global", "personal"):
        table.add_column(heading)
    for row in scores_rows(folder):
        *words, by_all, own = row.values()
        table.add_row(*map(str, words), f"{by_all:.3f}", "" if own is None else f"{own:.3f}")
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


def outbox_rows(folder: Path) -> list[dict[str, Any]]:
    """Return every statement that left, or is about to, with the size of the tensors it names."""
    hospital, rows = Hospital.open(folder), []
    for entry in hospital.ledger.entries():
        if not entry.file:
            continue
        statement = json.loads(hospital.outbox.statement(entry.file))["statement"]
        rows.append(
            {
                "when": f"{datetime.fromtimestamp(entry.at):%Y-%m-%d %H:%M}",
                "run": entry.charge.run,
                "round": entry.charge.round,
                "act": entry.charge.purpose,
                "kind": _kind_text(statement),
                "bytes": statement.get("payload_bytes", 0),
                "statement": entry.file,
                "tensors": statement.get("payload_sha256", ""),
            }
        )
    return rows


def outbox_table(folder: Path) -> Table:
    """Return the rows of `outbox_rows` as a table for people."""
    hospital = Hospital.open(folder)
    free, most = free_answers(hospital), hospital.policy.free_answers_per_week
    said = ("1 answer", "costs") if free == 1 else (f"{free} answers", "cost")
    caption = (
        f"{said[0]} of the last seven days {said[1]} nothing; the policy allows {most}.\n"
        "A statement is the file in state/outbox whose name begins so; --json has whole names."
    )
    table = Table(title=f"{hospital.name}: statements that left", caption=caption)
    for heading in OUTBOX:
        table.add_column(heading, overflow="fold")
    for row in outbox_rows(folder):
        shown = {**row, "bytes": f"{row['bytes']:,}", "statement": row["statement"][:12]}
        table.add_row(*(str(shown[heading]) for heading in OUTBOX))
    return table


OUTBOX = ("when", "run", "round", "act", "kind", "bytes", "statement")
"""The columns of the outbox's table."""


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
