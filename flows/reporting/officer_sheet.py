"""A hospital's sheet for its data-protection officer: one HTML page, made from what is on record there.

It names no patient. What nobody has recorded is called that. The page has no script and loads nothing,
so it can be printed and archived; a browser prints it as a PDF.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

from flows.reporting.templates import rendered
from flows.runs.dates import minute
from privacy.accounting import PrivacyEvent, epsilon, most_found
from sites.admission.requests import ApprovalRow, Request, folder_of, stored_row
from sites.audit.audit import HospitalAudit, reports
from sites.hospital import Hospital
from sites.listing.listing import EXCLUDED, excluded_patients
from sites.listing.pseudonyms import pseudonym

FALSE_ALARMS = 0.05
NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class StudyCost:
    """What a study has cost its patients here so far, at the budget's delta."""

    study: str
    runs: int
    charges: int
    epsilon: float
    plain: int


@dataclass(frozen=True)
class Departed:
    """A statement that has left, with the sha256 of its tensors, and who approved it."""

    at_ms: int
    run: str
    round: int
    kind: str
    bytes: int
    statement_sha256: str
    tensors_sha256: str
    approved_by: str


@dataclass(frozen=True)
class Withdrawal:
    """What a patient who has withdrawn took part in; the patient is not named."""

    number: int
    rounds: int
    runs: tuple[str, ...]


def officer_sheet(hospital: Hospital) -> bytes:
    """Return the sheet of a hospital as the bytes of an HTML file."""
    budget, ledger = hospital.policy.budget, hospital.ledger
    worst = max(
        ledger.histories() or [[]], key=lambda events: epsilon(events, budget.delta, ledger.rule)
    )
    return rendered(
        "officer.html.j2",
        NOT_RECORDED,
        hospital=hospital.name,
        policy=hospital.policy,
        made_ms=int(time.time() * 1000),
        spent=ledger.spent(budget.delta),
        rule=ledger.rule,
        found=_found(worst, budget.delta),
        false_alarms=FALSE_ALARMS,
        studies=list(_studies(hospital)),
        departed=list(_departed(hospital)),
        withdrawals=list(_withdrawals(hospital)),
        audits=reports(hospital),
        attack=_strongest,
        head=ledger.head,
    )


def _found(events: list[PrivacyEvent], delta: float) -> float | None:
    """Return the largest share of patients that any attack finds, by all that was charged."""
    return most_found(events, delta, FALSE_ALARMS) if events else None


def _studies(hospital: Hospital) -> Iterator[StudyCost]:
    charges = hospital.ledger.charges()
    for study in sorted({charge.study for charge in charges}):
        mine = [charge for charge in charges if charge.study == study]
        events = [charge.event for charge in mine if charge.event]
        spent = epsilon(events, hospital.policy.budget.delta, hospital.ledger.rule) if events else 0.0
        plain = sum(charge.event is None for charge in mine)
        yield StudyCost(study, len({charge.run for charge in mine}), len(events), spent, plain)


def _departed(hospital: Hospital) -> Iterator[Departed]:
    """Yield everything that has left or is about to, with the person who approved it where one did."""
    approved = dict(_approvals(hospital))
    for entry in hospital.ledger.entries():
        if not entry.file:
            continue
        statement = json.loads(hospital.outbox.statement(entry.file))["statement"]
        content = f": {statement['content']}" if "content" in statement else ""
        by = approved.get(entry.file) or approved.get(entry.charge.run, "")
        yield Departed(
            at_ms=int(entry.at * 1000),
            run=entry.charge.run,
            round=entry.charge.round,
            kind=f"{statement['kind']}{content}".replace("_", " "),
            bytes=int(statement.get("payload_bytes", 0)),
            statement_sha256=entry.file,
            tensors_sha256=str(statement.get("payload_sha256", "")),
            approved_by=by or "by the policy alone",
        )


def _approvals(hospital: Hospital) -> Iterator[tuple[str, str]]:
    """Yield who approved a statement (by its sha256), or a whole run (by its name)."""
    for path in sorted(folder_of(hospital).glob("*.request.json")):
        request = Request.model_validate_json(path.read_bytes())
        row = stored_row(hospital, path.name.removesuffix(".request.json"))
        if row is None or row.answer != "approved":
            continue
        what = request.terms.get("statement_sha256") if request.act == "export" else None
        yield str(what or request.run), _words(row)


def _words(row: ApprovalRow) -> str:
    return f"{row.by}, {minute(row.at_ms)}"


def _withdrawals(hospital: Hospital) -> Iterator[Withdrawal]:
    for number, name in enumerate(sorted(excluded_patients(hospital.folder / EXCLUDED)), start=1):
        charges = hospital.ledger.charges_of(pseudonym(hospital.pseudonym_key, name))
        yield Withdrawal(number, len(charges), tuple(sorted({charge.run for charge in charges})))


def _strongest(report: HospitalAudit, model: str) -> str:
    """Return the attack with the largest AUC on a kind of model, in words."""
    found = [each for each in report.attacks if each.model == model]
    if not found:
        return NOT_RECORDED
    best = max(found, key=lambda each: each.auc.value)
    return f"{best.auc.value:.2f} ({best.auc.low:.2f} to {best.auc.high:.2f}) by {best.attack}"
