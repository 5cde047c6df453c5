"""Orders that a hospital fetches itself: whoever names one can neither write it nor change it.

What reaches a hospital from outside is an `OrderRef`, which only names an order in the exchange that the
hospital's policy states. The order counts if the coordinator that the policy names has signed it for
this hospital, and until it expires.
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
from sites.exchange.places import Place
from sites.exchange.storage import StorageFailed
from sites.hospital import Hospital
from sites.orders import PROTOCOL, Expired, Order, Phase, RunName, check_in_time
from sites.policy.opening_hours import Closed, check_open
from sites.policy.policy import CoordinatorConfig
from sites.progress import Progress
from sites.protocol.departure import check_has_not_left
from sites.protocol.dispatch import Drained, carry_out
from sites.yaml_files import ConfigError

FLOWS: Mapping[str, Sequence[Phase]] = {
    "site-round": ("survey", "join", "contribute"),
    "site-score": ("evaluate", "compare"),
    "site-check": ("check",),
}
"""What a hospital can be asked for, by the name under which it is scheduled."""

PATIENCE_S = 600
"""How long a hospital tries to reach the exchange; then it has to be asked again."""

PAUSE_S = 5
"""How long a hospital waits before it tries an exchange again that could not be reached."""


class OrderRef(Config):
    """The name of an order, which is all that a server may tell a hospital."""

    run: RunName
    round: Annotated[int, Field(ge=0)]
    phase: Phase
    attempt: Annotated[int, Field(ge=1)]


class BadOrder(AskSomebody):
    """There is no such order, nobody who may give orders signed it, or its time is over."""


def carry_out_ref(hospital: Hospital, ref: OrderRef, progress: Progress) -> None:
    """Carry out the order that a reference names, through times in which the exchange is out of reach.

    Raises:
        BadOrder: nothing was done, or not all before the order expired.
        StorageFailed: the exchange was out of reach for too long.
        ApprovalNeeded: it waits for a person; the reference is stored with the request.
    """
    until = time.time() + PATIENCE_S
    while True:
        try:
            order = fetch(hospital, ref)
            carry_out(hospital, order, _until_over(hospital, order, progress))
            return
        except Closed as closed:
            until = _wait_for(closed) + PATIENCE_S
            hospital = Hospital.open(hospital.folder, hospital.test_noise)  # as the policy is now
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
    """Let a hospital take no more orders, and wait for the one at work; or let it take them again.

    Orders that come meanwhile stay good until their round's deadline.
    """
    if not on:
        hospital.drained.unlink(missing_ok=True)
        return
    hospital.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    hospital.drained.touch()
    with hospital.lock():
        pass


def resume(hospital: Hospital, terms: str, progress: Progress) -> bool:
    """Go on with the order that waited for an approval of terms; return whether there was one.

    Raises what `carry_out_ref` raises.
    """
    path = _ref_path(hospital, terms)
    if not path.exists():
        return False
    carry_out_ref(hospital, OrderRef.model_validate_json(path.read_bytes()), progress)
    return True


def open_orders(hospital: Hospital, study: str, flow: str) -> list[OrderRef]:
    """Return the orders of a study that this hospital has not answered and still can, oldest first.

    Args:
        flow: one of `FLOWS`, which says what kind of order is asked for.
    """
    exchange = Exchange(coordinator_of(hospital).exchange)
    found: list[tuple[int, OrderRef]] = []
    for place in exchange.orders_of(hospital.name):
        try:
            ref = OrderRef.model_validate(
                {"run": place.run, "round": place.round, "phase": place.act, "attempt": place.attempt}
            )
            order = fetch(hospital, ref)
            check_in_time(order)
        except (ValueError, BadOrder, Expired):
            continue
        answer = Place.statement(order.run, order.round, order.phase, hospital.name)
        if (
            order.study.name == study
            and order.phase in FLOWS[flow]
            and exchange.statement(answer) is None
        ):
            found.append((order.expires_ms or 0, ref))
    return [ref for _, ref in sorted(found, key=lambda pair: pair[0])]


def fetch(hospital: Hospital, ref: OrderRef) -> Order:
    """Return the order that a reference names, as the coordinator signed it for this hospital."""
    coordinator = coordinator_of(hospital)
    place = Place.order(ref.run, ref.round, ref.phase, ref.attempt, hospital.name)
    data = Exchange(coordinator.exchange).statement(place)
    if data is None:
        raise BadOrder("the exchange holds no such order")
    try:
        fields = verified(data, "coordinator", {"coordinator": coordinator.key})
        _check_protocol(fields)
        order = Order.model_validate({**fields, "exchange": coordinator.exchange})
    except (BadSignature, ValueError) as error:
        raise BadOrder(f"the order can't be trusted: {type(error).__name__}") from error
    named = (order.run, order.round, order.phase, order.attempt, order.site)
    if named != (ref.run, ref.round, ref.phase, ref.attempt, hospital.name):
        raise BadOrder("the order is another than its place says")
    if order.coordinator != coordinator.key:
        raise BadOrder("the order names another coordinator than the policy")
    return order


def _check_protocol(fields: Mapping[str, Any]) -> None:
    """Raise `BadOrder` where the coordinator's code and this could misunderstand each other."""
    if (spoken := fields.get("protocol")) != PROTOCOL:
        raise BadOrder(
            f"the coordinator speaks protocol {spoken}, this hospital {PROTOCOL}; once the older one "
            f"is upgraded the order is carried out"
        )


def flow_for(phase: Phase) -> str:
    """Return the name under which a phase is scheduled.

    >>> flow_for("evaluate")
    'site-score'
    """
    return next(flow for flow, phases in FLOWS.items() if phase in phases)


def coordinator_of(hospital: Hospital) -> CoordinatorConfig:
    """Return whom the hospital works for, or raise `ConfigError`."""
    if hospital.policy.coordinator is None:
        raise ConfigError(
            f"{hospital.folder / 'site.yaml'}: coordinator: expected {{key, exchange, api}} at a "
            f"hospital that fetches its orders, and it is missing."
        )
    return hospital.policy.coordinator


def _ref_path(hospital: Hospital, terms: str) -> Path:
    return hospital.state / "approvals" / f"{terms}.ref.json"


def _wait_for(closed: Closed) -> float:
    """Wait until the hospital's hours begin; return the time then."""
    while (left := closed.opens.timestamp() - time.time()) > 0:
        time.sleep(min(left, PAUSE_S))
    return time.time()


def _until_over(hospital: Hospital, order: Order, progress: Progress) -> Progress:
    """Return `progress` that ends the work at its next step once the answer could not count, or once the
    hospital's hours are over or it has left the study."""

    def checked(what: str, step: int, of: int) -> None:
        check_in_time(order)
        check_has_not_left(hospital, order.study.name)
        check_open(hospital.policy.hours)
        progress(what, step, of)

    return checked
