"""A federation of real hospitals: their keys, the exchange, and the orders to each hospital.

A hospital's own worker asks Prefect for work (`flows.hospitals.hospital_worker`); the signed order is
in the exchange. Prefect only announces that there is an order. What Prefect reports of a hospital's run
decides only whether the hospital is asked again.
"""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.states import Cancelled, Cancelling, Completed
from pydantic import Field, PositiveInt, field_validator

from flows.hospitals.heartbeats import Watch
from flows.hospitals.processes import HospitalLeftOut
from models.config import Config
from models.settings.tasks import Name
from privacy.signing import public_hex, sign, verified
from sites import yaml_files
from sites.exchange.answers import is_answered
from sites.exchange.exchange import COORDINATOR, Exchange
from sites.exchange.places import Place
from sites.orders import Order
from sites.protocol.order_inbox import OrderRef, flow_for

POLL_S = 1.0
LONGEST_PAUSE_S = 30


class Member(Config):
    """A hospital of a federation.

    Attributes:
        key: its public key, which `wardround site init` printed at the hospital.
        patients: the most patients that it may declare, as agreed with it. Its weight in the global
            model follows from what it declares; a hospital that declares more takes no part.
    """

    key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    patients: PositiveInt


class Federation(Config):
    """A `federation.yaml`.

    Attributes:
        exchange: its folder or address for the coordinator, such as the folder of its web server.
        hospitals: each hospital's public key and the most patients that it may declare.
    """

    exchange: str
    hospitals: Annotated[dict[Name, Member], Field(min_length=1)]

    @property
    def roster(self) -> dict[str, str]:
        """Each hospital's public key."""
        return {name: member.key for name, member in self.hospitals.items()}

    @property
    def most_patients(self) -> dict[str, int]:
        """The most patients that each hospital may declare."""
        return {name: member.patients for name, member in self.hospitals.items()}

    @field_validator("hospitals")
    @classmethod
    def _no_hospital_is_the_coordinator(cls, hospitals: dict[str, Member]) -> dict[str, Member]:
        if COORDINATOR in hospitals:
            raise ValueError(f"expected no hospital named {COORDINATOR}, whose objects are the models.")
        return hospitals


def load_federation(path: Path) -> Federation:
    """Return the federation in a YAML file, or raise `ConfigError`."""
    return yaml_files.load(path, Federation)


@dataclass(frozen=True)
class RemoteHospital:
    """A hospital behind its own firewall, as the coordinator, whose private key is `key`, asks it."""

    name: str
    public_key: str
    exchange: Exchange
    key: Ed25519PrivateKey
    invitations: list[FlowRun] = field(default_factory=list)

    def carry_out(self, order: Order, timeout_s: float) -> None:
        """Publish an order, notify the hospital's worker, and wait for the answer in the exchange.

        The order expires `timeout_s` after it was first published. Until then the worker is notified
        again whenever its run has ended without an answer. A person is called if the worker falls
        silent.

        Raises:
            HospitalLeftOut: the order has expired, or the run was cancelled.
        """
        order = self._published_order(order, timeout_s + _grace_s(order))
        times, flow_run, trouble = 0, None, ""
        until_ms = (order.expires_ms or 0) - int(1000 * _grace_s(order))
        watch = Watch(order)
        while not self._has_answer(order):
            watch.look()
            if _now_ms() >= until_ms:
                if not _grace_s(order):
                    _cancel(flow_run)
                raise HospitalLeftOut(f"{self.name}: no answer within {timeout_s:g} s.{trouble}")
            ended = flow_run and _ended(flow_run)
            if ended == StateType.CANCELLED:
                raise HospitalLeftOut(f"{self.name}: its run was cancelled.")
            if flow_run is None or ended:
                time.sleep(min(LONGEST_PAUSE_S, times**2))
                times += 1
                flow_run, trouble = self._scheduled(order, times)
            time.sleep(POLL_S)
        _close(flow_run)

    def invite(self, order: Order) -> None:
        """Publish an order that is valid until the run should have ended, and notify the worker.

        A later call notifies it again, if its run has ended without an answer.
        """
        if self.invitations and not _ended(self.invitations[-1]):
            return
        left = order.study.rounds - order.round + 1
        # a round waits for contributions and for evaluations
        invitation = self._published_order(order, 2 * left * order.study.sites.deadline_s)
        flow_run, _ = self._scheduled(invitation, len(self.invitations) + 1)
        if flow_run:
            self.invitations.append(flow_run)

    def withdraw(self) -> None:
        """Cancel every invitation whose run has not ended."""
        for flow_run in self.invitations:
            _cancel(flow_run)

    def _has_answer(self, order: Order) -> bool:
        """Return whether the exchange has the answer; False while the exchange is out of reach."""
        with suppress(OSError):
            return is_answered(self.exchange, order, self.public_key)
        return False

    def _published_order(self, order: Order, timeout_s: float) -> Order:
        """Return the order that the exchange holds, published now or by an earlier attempt."""
        place = Place.order(order.run, order.round, order.act, order.attempt, self.name)
        data = self.exchange.statement(place)
        if data is None:
            expires_ms = _now_ms() + int(1000 * timeout_s)
            order = order.model_copy(update={"exchange": "", "expires_ms": expires_ms})
            data = sign(order.model_dump(mode="json"), "coordinator", self.key)
            self.exchange.put_statement(place, data)
        return Order.model_validate(verified(data, "coordinator", {"coordinator": public_hex(self.key)}))

    def _scheduled(self, order: Order, times: int) -> tuple[FlowRun | None, str]:
        """Schedule a run of the hospital's worker in Prefect; return it, or None and the reason."""
        ref = OrderRef.to(order)
        named = f"{order.run} {order.round} {order.act} {self.name} {order.attempt}"
        try:
            flow_run: FlowRun = run_deployment(  # type: ignore[assignment]  # not in an event loop
                name=f"{flow_for(order.phase)}/{self.name}",
                parameters=ref.model_dump(mode="json"),
                flow_run_name=f"{order.study.name} {order.act} {order.round} {self.name}",
                idempotency_key=f"{named} {times}",
                tags=[order.run, self.name],
                timeout=0,
                as_subflow=False,  # Prefect suspends no subflows, and hospitals suspend
            )
        except ObjectNotFound:
            return None, " Its worker has never asked for work."
        except (httpx.HTTPError, PrefectException):
            return None, " Prefect was out of reach."
        return flow_run, ""


def _ended(flow_run: FlowRun) -> StateType | None:
    """Return how a run ended, None before its end or while Prefect is out of reach; read no data."""
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(flow_run.id).state
    except ObjectNotFound:
        return StateType.CRASHED  # it was deleted
    except (httpx.HTTPError, PrefectException):
        return None
    return state.type if state and state.is_final() else None


def _close(flow_run: FlowRun | None) -> None:
    """End a run that still waits for an approval, although its hospital has answered."""
    if flow_run is None:
        return
    with suppress(httpx.HTTPError, PrefectException), get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run.id).state
        if state is not None and state.is_paused():
            done: State = Completed(message="Answered at the hospital.")
            client.set_flow_run_state(flow_run.id, done, force=True)


def _cancel(flow_run: FlowRun | None) -> None:
    """Cancel a run, if Prefect can be reached; the order has expired anyway."""
    if flow_run is None or _ended(flow_run):
        return
    with suppress(httpx.HTTPError, PrefectException), get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run.id).state
        is_waiting = state is not None and (state.is_scheduled() or state.is_paused())
        ended: State = Cancelled() if is_waiting else Cancelling()
        client.set_flow_run_state(flow_run.id, ended)


def _grace_s(order: Order) -> float:
    """Return the seconds after a round's deadline in which the study still accepts a release."""
    staleness = order.study.sites.staleness
    if staleness is None or order.phase != "contribute":
        return 0.0
    return min(staleness.rounds, order.study.rounds - order.round) * order.study.sites.deadline_s


def _now_ms() -> int:
    return int(time.time() * 1000)
