"""What a hospital does when the coordinator asks: tell of its scans, join a run, contribute, evaluate.

Each act ends in exactly one signed statement in the exchange, and asking again lays down the same
bytes: the coordinator reads that statement and nothing else of the hospital.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from models.files import sha256_of
from privacy.ledger import BudgetExceeded, Charge
from privacy.release import ReleaseManifest
from sites import export
from sites.admission.admission import admit
from sites.admission.approvals import check_export
from sites.admission.ledger_recovery import check_complete, unrecorded
from sites.contribution.contribution import check, contribute, join
from sites.contribution.personal import update_personal_model
from sites.evaluation.evaluation import compare, evaluate, tell
from sites.exchange.exchange import Exchange
from sites.hospital import Hospital
from sites.orders import Order, Phase, check_in_time, refusal_of
from sites.policy.opening_hours import Closed, check_open
from sites.policy.policy import Refused
from sites.progress import Progress
from sites.protocol.departure import check_has_not_left

log = logging.getLogger("wardround.site")


class Drained(Exception):
    """The hospital takes no orders for now, as before an upgrade."""


def carry_out(hospital: Hospital, order: Order, progress: Progress) -> None:
    """Do what the order asks and publish the one statement in which it ends.

    A refusal is such a statement too. An act that is on record already is published again, not
    done again.

    Raises:
        Expired: the order's time is over; nothing is charged from then on.
        ApprovalNeeded: a person of the hospital has to say something first; the order stays good.
        Drained: the order stays good until the hospital takes orders again.
        Closed: the hospital works at other hours; the order stays good until then.
        ClockWentBack: nothing was charged; the order stays good until somebody has set the clock.
    """
    act = Charge(order.study.name, order.run, order.round, order.phase, event=None)
    with hospital.lock():
        if hospital.drained.exists():
            raise Drained("the hospital takes no orders before `wardround site drain --off`")
        _carry_out(hospital, order, act, progress)


def _carry_out(hospital: Hospital, order: Order, act: Charge, progress: Progress) -> None:
    study, exchange = order.study, Exchange(order.exchange)
    check_in_time(order)
    try:
        if order.site != hospital.name:
            raise Refused("the order is for another hospital")
        hospital.trust(order.coordinator)
        check_has_not_left(hospital, study.name)
        _check_address(exchange)
        hospital.bind(order.run, study.sha256, order.exchange)
        hospital.remember(order.run, study)
        check_complete(hospital, exchange)
        _take_up(hospital, act)
        if hospital.ledger.file_of(act) is None:
            _check_hours(hospital, order)
            admit(hospital.policy, study)
            _PHASES[order.phase](hospital, order, act, progress)
        _check_export(hospital, act)
        check_has_not_left(hospital, study.name)
        export.publish(hospital, exchange, act)
        update_personal_model(hospital, order)
    except (Refused, BudgetExceeded) as reason:
        log.warning("%s, round %d of %s: refused: %s", act.purpose, act.round, act.run, reason)
        refused = replace(act, purpose=refusal_of(order.phase, order.attempt))
        export.refusal(hospital, study, refused, str(reason))
        export.publish(hospital, exchange, refused)


def _check_export(hospital: Hospital, act: Charge) -> None:
    """Let a release wait for a person of the hospital, where the policy says so."""
    statement, sha256 = export.statement_of(hospital, act)
    if isinstance(statement, ReleaseManifest):
        check_export(hospital, statement, sha256)


def _check_hours(hospital: Hospital, order: Order) -> None:
    """Raise `Closed` outside of the hospital's hours, `Refused` where they begin too late.

    Hours are for what takes long, not for saying whether the hospital takes part.
    """
    if order.phase in ("check", "join"):
        return
    try:
        check_open(hospital.policy.hours)
    except Closed as closed:
        if order.expires_ms is None or 1000 * closed.opens.timestamp() >= order.expires_ms:
            raise Refused("the hospital works at other hours") from closed
        raise


def _check_address(exchange: Exchange) -> None:
    try:
        exchange.check()
    except ValueError as error:
        raise Refused(f"the exchange can't be used: {error}") from error


def _take_up(hospital: Hospital, act: Charge) -> None:
    """Record what a crash left in the outbox for this act: doing it again would be a second output."""
    for said in unrecorded(hospital):
        if not said.act.is_same_act(act) or hospital.ledger.file_of(act):
            continue
        record = hospital.ledger.settle if said.is_charged else hospital.ledger.publish
        record(said.act, sha256_of(said.data))


_PHASES: Mapping[Phase, Callable[[Hospital, Order, Charge, Progress], None]] = {
    "check": check,
    "survey": tell,
    "join": join,
    "contribute": contribute,
    "evaluate": evaluate,
    "compare": compare,
}
