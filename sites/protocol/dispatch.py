"""Dispatch of the coordinator's orders: survey, join, contribute, evaluate and others.

Each act ends in exactly one signed statement in the exchange. A repeated order writes the same bytes
again. The coordinator reads that statement and nothing else of the hospital.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from models.files import sha256_of
from models.spans import span
from privacy.ledger import BudgetExceeded, Charge
from privacy.statements import ReleaseManifest
from sites import export
from sites.admission.admission import admit, check_filter, check_free_answers, check_list, check_round
from sites.admission.approvals import check_export
from sites.admission.ledger_recovery import check_complete, unrecorded
from sites.audit.audit import audit
from sites.contribution.contribution import check, contribute, join
from sites.contribution.personal import update_personal_model
from sites.evaluation.evaluation import compare, evaluate, tell
from sites.exchange.exchange import Exchange
from sites.exchange.phases import SUM_MESSAGES, SUMS, Phase, refusal_of
from sites.hospital import Hospital
from sites.orders import Order, check_in_time
from sites.policy.opening_hours import Closed, check_open
from sites.policy.policy import Refused
from sites.progress import Progress
from sites.protocol.departure import check_has_not_left
from sites.secure_sum.attempt import forget_secrets
from sites.secure_sum.steps import announce_keys, open_sum, seal_shares, sign_survivors

log = logging.getLogger("wardround.site")


class Drained(Exception):
    """The hospital accepts no orders for now, for example before an upgrade."""


def carry_out(hospital: Hospital, order: Order, progress: Progress) -> None:
    """Carry out an order and publish the one statement in which it ends.

    The statement may be a refusal. An act that is already recorded is published again, not done again.

    Raises:
        Expired: the order has expired; nothing is charged after that.
        ApprovalNeeded: a person of the hospital has to answer first; the order stays valid.
        Drained: the hospital accepts no orders; the order stays valid until it does again.
        Closed: the hospital works at other hours; the order stays valid until then.
        ClockWentBack: nothing was charged; the order stays valid until the clock is set right.
    """
    act = Charge(order.study.name, order.run, order.round, order.act, event=None)
    with span("order", phase=order.phase, round=order.round), hospital.lock():
        if hospital.drained.exists():
            raise Drained("the hospital accepts no orders before `wardround site drain --off`")
        _carry_out(hospital, order, act, progress)


def _carry_out(hospital: Hospital, order: Order, act: Charge, progress: Progress) -> None:
    study, exchange = order.study, Exchange(order.exchange)
    check_in_time(order)
    try:
        if order.site != hospital.name:
            raise Refused("the order is for another hospital")
        check_round(order)
        hospital.trust(order.coordinator)
        check_has_not_left(hospital, study.name)
        _check_address(exchange)
        hospital.bind(order.run, study.sha256, order.exchange)
        hospital.remember(order.run, study)
        check_complete(hospital, exchange)
        _record_interrupted(hospital, act)
        if hospital.ledger.file_of(act) is None:
            _check_hours(hospital, order)
            check_free_answers(hospital, order)
            admit(hospital.policy, study)
            check_filter(hospital, study)
            check_list(hospital, study, for_survey=order.phase in SUMS["survey"])
            _PHASES[order.phase](hospital, order, act, progress)
        _check_export(hospital, act)
        check_has_not_left(hospital, study.name)
        with span("export"):
            export.publish(hospital, exchange, act)
        if order.sum and order.phase == order.sum_phases.opening:
            forget_secrets(hospital, order.run, order.sum_kind)
        if order.phase in SUMS["metrics"]:  # the round's update is done
            forget_secrets(hospital, order.run, "update")
        update_personal_model(hospital, order)
    except (Refused, BudgetExceeded) as reason:
        log.warning("%s, round %d of %s: refused: %s", act.purpose, act.round, act.run, reason)
        refused = replace(act, purpose=refusal_of(order.act, order.attempt))
        export.refusal(hospital, study, refused, str(reason))
        export.publish(hospital, exchange, refused)


def _check_export(hospital: Hospital, act: Charge) -> None:
    """Raise `ApprovalNeeded` if the act ended in a release that a person has to approve first."""
    statement, sha256 = export.statement_of(hospital, act)
    if isinstance(statement, ReleaseManifest):
        check_export(hospital, statement, sha256)


SHORT: Sequence[Phase] = ("check", "join", *SUM_MESSAGES)
"""Phases that take no time worth waiting for the hospital's hours."""


def _check_hours(hospital: Hospital, order: Order) -> None:
    """Raise `Closed` outside the hospital's hours, `Refused` if the order expires before they begin.

    Hours apply to long work only: short answers are given at any time.
    """
    if order.phase in SHORT:
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


def _record_interrupted(hospital: Hospital, act: Charge) -> None:
    """Record a statement of this act that a crash left in the outbox.

    Doing the act again would be a second output.
    """
    for left in unrecorded(hospital):
        if not left.act.is_same_act(act) or hospital.ledger.file_of(act):
            continue
        record = hospital.ledger.settle if left.is_charged else hospital.ledger.publish
        record(left.act, sha256_of(left.data))


_PHASES: Mapping[Phase, Callable[[Hospital, Order, Charge, Progress], None]] = {
    "check": check,
    "survey": tell,
    "join": join,
    "contribute": contribute,
    "evaluate": evaluate,
    "compare": compare,
    "audit": audit,
    **{phases.keys: announce_keys for phases in SUMS.values()},
    **{phases.shares: seal_shares for phases in SUMS.values()},
    **{phases.survivors: sign_survivors for phases in SUMS.values()},
    **{phases.opening: open_sum for phases in SUMS.values()},
}
