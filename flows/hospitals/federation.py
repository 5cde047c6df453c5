"""A federation of real hospitals: who they are, where the exchange is, and how each is asked.

A hospital's own worker asks Prefect for work (`flows.hospitals.hospital_worker`); what it is to do
lies in the exchange, signed. Prefect only says that there is something, and what it says of a
hospital's run decides nothing but whether to ask again.
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
from pydantic import Field, field_validator

from flows.hospitals.heartbeats import Watch
from flows.hospitals.processes import HospitalLeftOut
from models.config import Config
from models.objectives import Name
from privacy.signing import public_hex, sign, verified
from sites import yaml_files
from sites.exchange.exchange import COORDINATOR, Exchange
from sites.exchange.places import Place
from sites.orders import Order, is_answered
from sites.protocol.order_inbox import OrderRef, flow_for

POLL_S = 1.0
LONGEST_PAUSE_S = 30


class Federation(Config):
    """A `federation.yaml`.

    Attributes:
        exchange: as the coordinator reaches it, such as the folder that its web server serves.
        hospitals: each hospital's public key, which `wardround site init` printed there.
    """

    exchange: str
    hospitals: Annotated[
        dict[Name, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]], Field(min_length=1)
    ]

    @field_validator("hospitals")
    @classmethod
    def _no_hospital_is_the_coordinator(cls, hospitals: dict[str, str]) -> dict[str, str]:
        if COORDINATOR in hospitals:
            raise ValueError(f"expected no hospital named {COORDINATOR}, whose objects are the models.")
        return hospitals


def load_federation(path: Path) -> Federation:
    """Return the federation in a YAML file, or raise `ConfigError`."""
    return yaml_files.load(path, Federation)


@dataclass(frozen=True)
class RemoteHospital:
    """A hospital behind its own firewall, as the coordinator asks it."""

    name: str
    exchange: Exchange
    key: Ed25519PrivateKey
    invitations: list[FlowRun] = field(default_factory=list)

    def carry_out(self, order: Order, timeout_s: float) -> None:
        """Lay an order down, have the hospital's worker told, and wait for the answer in the exchange.

        The order expires `timeout_s` after it was first given; until then the worker is told again
        whenever its run has ended without an answer. A person is called if the worker falls silent.

        Raises:
            HospitalLeftOut: the order has expired, or somebody has cancelled the run.
        """
        order, times, told, trouble = self._laid_down(order, timeout_s + _grace_s(order)), 0, None, ""
        until_ms = (order.expires_ms or 0) - int(1000 * _grace_s(order))
        watch = Watch(order)
        while not self._has_answer(order):
            watch.look()
            if _now_ms() >= until_ms:
                if not _grace_s(order):
                    _cancel(told)
                raise HospitalLeftOut(f"{self.name}: later than {timeout_s:g} s.{trouble}")
            ended = told and _ended(told)
            if ended == StateType.CANCELLED:
                raise HospitalLeftOut(f"{self.name}: its run was cancelled.")
            if told is None or ended:
                time.sleep(min(LONGEST_PAUSE_S, times**2))
                times += 1
                told, trouble = self._told(order, times)
            time.sleep(POLL_S)
        _close(told)

    def invite(self, order: Order) -> None:
        """Lay an order down that is good until the run should have ended, and have the worker told.

        It is told again, by a later call, if it has ended without an answer.
        """
        if self.invitations and not _ended(self.invitations[-1]):
            return
        left = order.study.rounds - order.round + 1
        # a round waits for contributions and for evaluations
        invitation = self._laid_down(order, 2 * left * order.study.sites.deadline_s)
        told, _ = self._told(invitation, len(self.invitations) + 1)
        if told:
            self.invitations.append(told)

    def withdraw(self) -> None:
        """Take back every invitation that the hospital's worker has not taken up."""
        for told in self.invitations:
            _cancel(told)

    def _has_answer(self, order: Order) -> bool:
        """Return whether the answer is there, as far as the exchange can be reached."""
        with suppress(OSError):
            return is_answered(self.exchange, order)
        return False

    def _laid_down(self, order: Order, timeout_s: float) -> Order:
        """Return the order as it lies in the exchange, from now on or from an earlier try."""
        place = Place.order(order.run, order.round, order.phase, order.attempt, self.name)
        data = self.exchange.statement(place)
        if data is None:
            expires_ms = _now_ms() + int(1000 * timeout_s)
            order = order.model_copy(update={"exchange": "", "expires_ms": expires_ms})
            data = sign(order.model_dump(mode="json"), "coordinator", self.key)
            self.exchange.put_statement(place, data)
        return Order.model_validate(verified(data, "coordinator", {"coordinator": public_hex(self.key)}))

    def _told(self, order: Order, times: int) -> tuple[FlowRun | None, str]:
        """Have Prefect tell the hospital's worker; return the run in which it works, or the trouble."""
        ref = OrderRef(run=order.run, round=order.round, phase=order.phase, attempt=order.attempt)
        named = f"{order.run} {order.round} {order.phase} {self.name} {order.attempt}"
        try:
            told: FlowRun = run_deployment(  # type: ignore[assignment]  # not in an event loop
                name=f"{flow_for(order.phase)}/{self.name}",
                parameters=ref.model_dump(mode="json"),
                flow_run_name=f"{order.study.name} {order.phase} {order.round} {self.name}",
                idempotency_key=f"{named} {times}",
                tags=[order.run, self.name],
                timeout=0,
                as_subflow=False,  # Prefect suspends no subflows, and hospitals suspend
            )
        except ObjectNotFound:
            return None, " Its worker has never asked for work."
        except (httpx.HTTPError, PrefectException):
            return None, " Prefect was out of reach."
        return told, ""


def _ended(flow_run: FlowRun) -> StateType | None:
    """Return how a run ended, None before or while Prefect is out of reach; its data stay unread."""
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(flow_run.id).state
    except ObjectNotFound:
        return StateType.CRASHED  # somebody has deleted it
    except (httpx.HTTPError, PrefectException):
        return None
    return state.type if state and state.is_final() else None


def _close(flow_run: FlowRun | None) -> None:
    """End a run that still waits for a word, although its hospital has answered."""
    if flow_run is None:
        return
    with suppress(httpx.HTTPError, PrefectException), get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run.id).state
        if state is not None and state.is_paused():
            done: State = Completed(message="Answered at the hospital.")
            client.set_flow_run_state(flow_run.id, done, force=True)


def _cancel(flow_run: FlowRun | None) -> None:
    """Have a run ended, as far as Prefect can be reached; the order has expired anyway."""
    if flow_run is None or _ended(flow_run):
        return
    with suppress(httpx.HTTPError, PrefectException), get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run.id).state
        is_waiting = state is not None and (state.is_scheduled() or state.is_paused())
        ended: State = Cancelled() if is_waiting else Cancelling()
        client.set_flow_run_state(flow_run.id, ended)


def _grace_s(order: Order) -> float:
    """Return how much longer than the round waits for it a release may take, as the study says."""
    staleness = order.study.sites.staleness
    if staleness is None or order.phase != "contribute":
        return 0.0
    return min(staleness.rounds, order.study.rounds - order.round) * order.study.sites.deadline_s


def _now_ms() -> int:
    return int(time.time() * 1000)
