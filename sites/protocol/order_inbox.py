"""Order inbox: orders that a hospital fetches itself from the exchange in its policy.

From outside, a hospital receives only an `OrderRef`, the name of an order. Its sender can neither write
nor change an order. An order is valid until it expires, if the coordinator in the hospital's policy
signed it for this hospital.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from models.config import Config
from models.errors import AskSomebody
from models.files import write_atomically
from privacy.signing import BadSignature, verified
from sites.admission.approvals import ApprovalNeeded
from sites.exchange.exchange import Exchange
from sites.exchange.phases import SUM_MESSAGES, Phase, RunName, act_of
from sites.exchange.places import Place
from sites.exchange.storage import StorageFailed
from sites.hospital import Hospital
from sites.orders import PROTOCOL, Expired, Order, check_in_time
from sites.policy.opening_hours import Closed, check_open
from sites.policy.policy import CoordinatorConfig
from sites.progress import Progress
from sites.protocol.departure import check_has_not_left
from sites.protocol.dispatch import Drained, carry_out
from sites.yaml_files import ConfigError

FLOWS: Mapping[str, Sequence[Phase]] = {
    "site-round": ("survey", "join", "contribute", *SUM_MESSAGES),
    "site-score": ("evaluate", "compare"),
    "site-audit": ("audit",),
    "site-check": ("check",),
}
"""Phases of orders by the name of the flow that carries them out."""

PATIENCE_S = 600
"""Seconds for which a hospital tries to reach the exchange; after that, it has to be asked again."""

PAUSE_S = 5
"""Seconds that a hospital waits before it tries again to reach an exchange."""


class OrderRef(Config):
    """Name of an order: the only thing that a server can send to a hospital."""

    run: RunName
    round: Annotated[int, Field(ge=0)]
    phase: Phase
    attempt: Annotated[int, Field(ge=1)]
    sum_attempt: Annotated[int, Field(ge=1)] = 1

    @classmethod
    def to(cls, order: Order) -> "OrderRef":
        """Return the reference to an order."""
        return cls(
            run=order.run,
            round=order.round,
            phase=order.phase,
            attempt=order.attempt,
            sum_attempt=order.sum_attempt,
        )

    @classmethod
    def at(cls, place: Place) -> "OrderRef":
        """Return the reference to the order at a place, or raise ValueError."""
        phase, _, number = place.act.partition("-try-")
        fields = {"run": place.run, "round": place.round, "phase": phase, "attempt": place.attempt}
        return cls.model_validate({**fields, "sum_attempt": int(number or 1)})

    @property
    def act(self) -> str:
        """The purpose of the answer, as the order's place has it."""
        return act_of(self.phase, self.sum_attempt)


class BadOrder(AskSomebody):
    """The order does not exist, is not signed by the coordinator for this hospital, or has expired."""


def carry_out_ref(hospital: Hospital, ref: OrderRef, progress: Progress) -> None:
    """Carry out the order that a reference names; wait for opening hours and for the exchange.

    Raises:
        BadOrder: the order is not valid, the hospital accepts none, or it expired during the work.
        StorageFailed: the exchange could not be reached for `PATIENCE_S` seconds.
        ApprovalNeeded: the order waits for a person; the reference is stored with the request.
    """
    until = time.time() + PATIENCE_S
    while True:
        try:
            order = fetch(hospital, ref)
            carry_out(hospital, order, _until_over(hospital, order, progress))
            return
        except Closed as closed:
            until = _wait_for(closed) + PATIENCE_S
            hospital = Hospital.open(hospital.folder, hospital.test_noise)  # with the current policy
        except BadOrder as error:
            hospital.security_log.write(
                "order_refused",
                "its sender",
                run=ref.run,
                round=ref.round,
                phase=ref.phase,
                why=str(error),
            )
            raise
        except (Expired, Drained) as error:
            raise BadOrder(str(error)) from error
        except ApprovalNeeded as needed:
            write_atomically(_ref_path(hospital, needed.terms), ref.model_dump_json().encode())
            raise
        except StorageFailed:
            if time.time() + PAUSE_S > until:
                raise
            time.sleep(PAUSE_S)


def drain(hospital: Hospital, *, on: bool) -> None:
    """Stop accepting orders and wait for the one in progress (`on`), or accept orders again.

    Orders that come in between stay valid until their round's deadline.
    """
    hospital.security_log.write("drained" if on else "accepts_orders")
    if not on:
        hospital.drained.unlink(missing_ok=True)
        return
    hospital.close_state()
    hospital.drained.touch()
    with hospital.lock():
        pass


def resume(hospital: Hospital, terms: str, progress: Progress) -> bool:
    """Continue the order that waited for an approval of `terms`; return False if there is none.

    Raises as `carry_out_ref` does.
    """
    path = _ref_path(hospital, terms)
    if not path.exists():
        return False
    carry_out_ref(hospital, OrderRef.model_validate_json(path.read_bytes()), progress)
    return True


def open_orders(hospital: Hospital, study: str, flow: str) -> list[OrderRef]:
    """Return this hospital's valid, unanswered orders of a study, in the order in which they expire.

    Args:
        flow: a name in `FLOWS`; only orders for its phases are returned.
    """
    exchange = Exchange(coordinator_of(hospital).exchange)
    found: list[tuple[int, OrderRef]] = []
    for place in exchange.orders_of(hospital.name):
        try:
            ref = OrderRef.at(place)
            order = fetch(hospital, ref)
            check_in_time(order)
        except (ValueError, BadOrder, Expired):
            continue
        answer = Place.statement(order.run, order.round, order.act, hospital.name)
        if (
            order.study.name == study
            and order.phase in FLOWS[flow]
            and exchange.signed_answer(answer, hospital.keys) is None
        ):
            found.append((order.expires_ms or 0, ref))
    return [ref for _, ref in sorted(found, key=lambda pair: pair[0])]


def fetch(hospital: Hospital, ref: OrderRef) -> Order:
    """Return the order that a reference names, after checking its signature and its content.

    Raises:
        BadOrder: there is no such order, or it can't be trusted.
        ConfigError: the policy names no coordinator.
    """
    coordinator = coordinator_of(hospital)
    place = Place.order(ref.run, ref.round, ref.act, ref.attempt, hospital.name)
    data = Exchange(coordinator.exchange).statement(place)
    if data is None:
        raise BadOrder("the exchange holds no such order")
    try:
        fields = verified(data, "coordinator", {"coordinator": coordinator.key})
        _check_protocol(fields)
        order = Order.model_validate({**fields, "exchange": coordinator.exchange})
    except (BadSignature, ValueError) as error:
        raise BadOrder(f"the order can't be trusted: {type(error).__name__}") from error
    if (OrderRef.to(order), order.site) != (ref, hospital.name):
        raise BadOrder("the order is another than its place names")
    if order.coordinator != coordinator.key:
        raise BadOrder("the order names another coordinator than the policy")
    return order


def _check_protocol(fields: Mapping[str, Any]) -> None:
    """Raise `BadOrder` if the coordinator uses another version of the protocol."""
    if (theirs := fields.get("protocol")) != PROTOCOL:
        raise BadOrder(
            f"the coordinator uses protocol {theirs}, this hospital {PROTOCOL}; the order is carried "
            f"out after the older one is upgraded"
        )


def flow_for(phase: Phase) -> str:
    """Return the name of the flow that carries out a phase.

    >>> flow_for("evaluate")
    'site-score'
    """
    return next(flow for flow, phases in FLOWS.items() if phase in phases)


def coordinator_of(hospital: Hospital) -> CoordinatorConfig:
    """Return the coordinator in the hospital's policy, or raise `ConfigError` if there is none."""
    if hospital.policy.coordinator is None:
        raise ConfigError(
            f"{hospital.folder / 'site.yaml'}: coordinator: expected {{key, exchange, api}} for a "
            f"hospital that fetches its orders, and it is missing."
        )
    return hospital.policy.coordinator


def _ref_path(hospital: Hospital, terms: str) -> Path:
    return hospital.state / "approvals" / f"{terms}.ref.json"


def _wait_for(closed: Closed) -> float:
    """Wait until the hospital's hours begin; return the time at which they do."""
    while (left := closed.opens.timestamp() - time.time()) > 0:
        time.sleep(min(left, PAUSE_S))
    return time.time()


def _until_over(hospital: Hospital, order: Order, progress: Progress) -> Progress:
    """Return `progress` with checks that end the work at its next step.

    It ends if the order has expired, the hospital's hours are over, or the hospital has left the study.
    """

    def checked(what: str, step: int, of: int) -> None:
        check_in_time(order)
        check_has_not_left(hospital, order.study.name)
        check_open(hospital.policy.hours)
        progress(what, step, of)

    return checked
