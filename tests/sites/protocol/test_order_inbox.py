"""What a hospital makes of an order that lies in the exchange, whoever has named it."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import get_args

import pytest
from coordinator import Coordinator, first_model
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.signing import public_hex, sign
from sites import orders
from sites.contribution import contribution
from sites.exchange.exchange import Exchange
from sites.exchange.phases import SUMS, Phase
from sites.exchange.places import Place
from sites.exchange.storage import Filesystem, Sink, Source, StorageFailed
from sites.hospital import Hospital
from sites.orders import PROTOCOL, Expired, Order
from sites.policy.opening_hours import Closed
from sites.progress import ignore_progress
from sites.protocol import order_inbox
from sites.protocol.dispatch import carry_out
from sites.protocol.order_inbox import BadOrder, OrderRef, carry_out_ref, drain, fetch
from sites.yaml_files import ConfigError

JOIN = OrderRef(run="small-1", round=0, phase="join", attempt=1)


@pytest.fixture
def coordinator(tmp_path: Path, study_with) -> Coordinator:
    exchange = Exchange(str(tmp_path / "exchange"))
    return Coordinator(study_with(), exchange, Ed25519PrivateKey.generate())


@pytest.fixture
def hospital(tmp_path: Path, small_wards, coordinator: Coordinator, edit) -> Hospital:
    ward = small_wards(tmp_path / "wards") / "north"
    edit(
        ward / "site.yaml",
        coordinator={
            "key": public_hex(coordinator.key),
            "exchange": coordinator.exchange.url,
            "api": "https://hub.example.org/api",
        },
    )
    return Hospital.open(ward)


def lay_down(hub: Coordinator, key: Ed25519PrivateKey | None = None, **changes: object) -> None:
    """Lay the order of `JOIN` down for north, with some fields changed, signed by some key."""
    order = Order(
        phase="join", study=hub.study, site="north", run="small-1", round=0, attempt=1,
        exchange="", coordinator=public_hex(hub.key),
        expires_ms=int(1000 * (time.time() + 60)),
    )  # fmt: skip
    fields = order.model_dump(mode="json") | changes
    data = sign(fields, "coordinator", key or hub.key)
    hub.exchange.put_statement(Place.order("small-1", 0, "join", 1, "north"), data)


def lay_down_at(hub: Coordinator, phase: str, round: int) -> None:
    """Lay an order for north down at its own place."""
    order = Order(
        phase=phase, study=hub.study, site="north", run="small-1", round=round, attempt=1,
        exchange="", coordinator=public_hex(hub.key),
        expires_ms=int(1000 * (time.time() + 3 * 3600)),
    )  # fmt: skip
    data = sign(order.model_dump(mode="json"), "coordinator", hub.key)
    hub.exchange.put_statement(Place.order("small-1", round, phase, 1, "north"), data)


def is_answered(coordinator: Coordinator) -> bool:
    return coordinator.exchange.statement(Place.statement("small-1", 0, "join", "north")) is not None


def test_a_signed_order_is_carried_out(hospital: Hospital, coordinator: Coordinator) -> None:
    lay_down(coordinator)
    carry_out_ref(hospital, JOIN, ignore_progress)
    assert is_answered(coordinator)


def test_an_order_in_another_protocol_waits_until_both_are_upgraded(
    hospital: Hospital, coordinator: Coordinator
) -> None:
    lay_down(coordinator, protocol=99, unheard_of="a field of later code")
    with pytest.raises(BadOrder, match=f"uses protocol 99, this hospital {PROTOCOL};"):
        carry_out_ref(hospital, JOIN, ignore_progress)
    assert not coordinator.exchange.statements_of("north")


def test_a_drained_hospital_takes_no_order_until_it_is_told_to_and_the_order_stays_good(
    hospital: Hospital, coordinator: Coordinator
) -> None:
    lay_down(coordinator)
    drain(hospital, on=True)
    with pytest.raises(BadOrder, match="accepts no orders before"):
        carry_out_ref(hospital, JOIN, ignore_progress)
    assert not is_answered(coordinator)
    drain(hospital, on=False)
    carry_out_ref(hospital, JOIN, ignore_progress)
    assert is_answered(coordinator)


def test_draining_waits_for_the_order_at_work(hospital: Hospital) -> None:
    with ThreadPoolExecutor(1) as thread:
        with hospital.lock():
            drained = thread.submit(drain, hospital, on=True)
            time.sleep(0.5)
            assert not drained.done()
        drained.result(timeout=30)


def hours_from_now(first: int, last: int) -> list[str]:
    now = datetime.now()
    return [f"{now + timedelta(hours=first):%H:%M}-{now + timedelta(hours=last):%H:%M}"]


def test_outside_its_hours_a_hospital_refuses_what_cannot_wait_and_waits_with_the_rest(
    hospital: Hospital, coordinator: Coordinator, edit
) -> None:
    edit(hospital.folder / "site.yaml", hours=hours_from_now(2, 4))
    closed = Hospital.open(hospital.folder)
    coordinator.publish(0, first_model(coordinator.study))
    assert coordinator.order(closed, "join", 0).kind == "acceptance"
    assert coordinator.order(closed, "evaluate", 0).reason == "the hospital works at other hours"
    lay_down_at(coordinator, "contribute", 1)
    ref = JOIN.model_copy(update={"round": 1, "phase": "contribute"})
    with pytest.raises(Closed):
        carry_out(closed, fetch(closed, ref), ignore_progress)
    place = Place.statement("small-1", 1, "contribute", "north")
    assert coordinator.exchange.statement(place) is None
    edit(hospital.folder / "site.yaml", hours=hours_from_now(-1, 1))
    carry_out_ref(Hospital.open(hospital.folder), ref, ignore_progress)
    sent = coordinator.exchange.statement(place)
    edit(hospital.folder / "site.yaml", hours=hours_from_now(2, 4))
    carry_out_ref(Hospital.open(hospital.folder), ref, ignore_progress)  # what is done needs no hours
    assert coordinator.exchange.statement(place) == sent


def test_a_training_stops_at_the_end_of_the_hours_and_goes_on_in_the_next_ones(
    hospital: Hospital, coordinator: Coordinator, edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hours are over at the training's second step, and begin again at once."""
    edit(hospital.folder / "site.yaml", device={"checkpoint_s": 0})
    coordinator.publish(0, first_model(coordinator.study))
    lay_down_at(coordinator, "contribute", 1)
    steps: list[int] = []

    def closes_once(hours: object) -> None:
        if steps == [0, 1]:
            steps.append(-1)
            raise Closed(datetime.now())

    monkeypatch.setattr(order_inbox, "check_open", closes_once)
    ref = JOIN.model_copy(update={"round": 1, "phase": "contribute"})
    carry_out_ref(Hospital.open(hospital.folder), ref,
               lambda what, step, of: steps.append(step) if what == "train" else None)  # fmt: skip
    assert steps == [0, 1, -1, 0]  # nothing was left to train
    assert len(Hospital.open(hospital.folder).ledger.charges()) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"site": "south"},
        {"run": "small-2"},
        {"round": 1},
        {"phase": "contribute"},
        {"attempt": 2},
        {"coordinator": "0" * 64},
        {"command": "rm -rf /"},
        {"expires_ms": 1},
    ],
)
def test_an_order_for_something_else_or_of_another_time_does_nothing(
    hospital: Hospital, coordinator: Coordinator, changes: dict[str, object]
) -> None:
    lay_down(coordinator, **changes)
    with pytest.raises(BadOrder):
        carry_out_ref(hospital, JOIN, ignore_progress)
    assert not is_answered(coordinator)
    assert not hospital.ledger.entries()


def test_an_order_that_nobody_gave_or_somebody_else_signed_does_nothing(
    hospital: Hospital, coordinator: Coordinator
) -> None:
    with pytest.raises(BadOrder, match="holds no such order"):
        carry_out_ref(hospital, JOIN, ignore_progress)
    lay_down(coordinator, Ed25519PrivateKey.generate())
    with pytest.raises(BadOrder, match="can't be trusted"):
        carry_out_ref(hospital, JOIN, ignore_progress)
    assert not hospital.ledger.entries()


def test_a_hospital_that_knows_no_coordinator_fetches_no_orders(hospital: Hospital, edit) -> None:
    edit(hospital.folder / "site.yaml", coordinator=None)
    with pytest.raises(ConfigError, match=r"expected \{key, exchange, api\}"):
        carry_out_ref(Hospital.open(hospital.folder), JOIN, ignore_progress)


def test_an_order_that_expires_while_it_is_carried_out_comes_to_nothing(
    hospital: Hospital, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_down(coordinator)
    order = order_inbox.fetch(hospital, JOIN)
    heard: list[int] = []
    over = order_inbox._until_over(hospital, order, lambda what, step, of: heard.append(step))
    over("train", 1, 4)
    monkeypatch.setattr(orders.time, "time", lambda: order.expires_ms / 1000 + 1)
    with pytest.raises(Expired):
        over("train", 2, 4)
    assert heard == [1]


def out_of_reach(monkeypatch: pytest.MonkeyPatch, times: int) -> Callable[[], int]:
    """Let the exchange be out of reach for its first `times` uses; return how often it was."""
    failed, read_into = [0], Filesystem.read_into

    def maybe(self: Filesystem, sink: Sink, name: str, max_bytes: int) -> None:
        if failed[0] < times:
            failed[0] += 1
            raise StorageFailed("the exchange can't be reached")
        read_into(self, sink, name, max_bytes)

    monkeypatch.setattr(Filesystem, "read_into", maybe)
    return lambda: failed[0]


def test_a_hospital_waits_for_an_exchange_that_is_out_of_reach(
    hospital: Hospital, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_down(coordinator)
    monkeypatch.setattr(order_inbox, "PAUSE_S", 0.01)
    failed = out_of_reach(monkeypatch, 3)
    carry_out_ref(hospital, JOIN, ignore_progress)
    assert failed() == 3
    assert is_answered(coordinator)


def test_what_was_ordered_can_be_found_and_done_by_hand(
    hospital: Hospital, coordinator: Coordinator
) -> None:
    lay_down(coordinator)
    assert order_inbox.open_orders(hospital, "small", "site-round") == [JOIN]
    assert not order_inbox.open_orders(hospital, "small", "site-score")
    assert not order_inbox.open_orders(hospital, "other", "site-round")
    carry_out_ref(hospital, JOIN, ignore_progress)
    assert not order_inbox.open_orders(hospital, "small", "site-round")


@pytest.mark.parametrize("changes", [{"expires_ms": 1}, {"attempt": 2}])
def test_an_order_that_does_not_hold_is_not_found(
    hospital: Hospital, coordinator: Coordinator, changes: dict[str, object]
) -> None:
    lay_down(coordinator, **changes)
    coordinator.exchange._storage.write_new("orders/north/no-order-at-all.json", Source(b"{}"))
    assert not order_inbox.open_orders(hospital, "small", "site-round")


def test_an_order_that_expires_while_scans_are_read_is_not_paid_for(
    hospital: Hospital, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator.publish(0, first_model(coordinator.study))
    order = Order(
        phase="contribute", study=coordinator.study, site="north", run="small-1", round=1, attempt=1,
        exchange=coordinator.exchange.url, coordinator=public_hex(coordinator.key),
        expires_ms=int(1000 * (time.time() + 60)),
    )  # fmt: skip
    read = contribution.prepare

    def slowly(*arguments: object) -> object:
        monkeypatch.setattr(orders.time, "time", lambda: order.expires_ms / 1000 + 1)
        return read(*arguments)

    monkeypatch.setattr(contribution, "prepare", slowly)
    with pytest.raises(Expired):
        carry_out(hospital, order, ignore_progress)
    assert [entry.action for entry in hospital.ledger.entries()] == ["resolve", "reserve", "void"]


@pytest.mark.parametrize("act", ["contribute", "contribute-try-2", "sum-keys", "sum-opening-try-12"])
def test_a_reference_names_an_order_of_any_attempt_at_a_secure_sum(act: str) -> None:
    place = Place.parse(f"orders/north/small-1.003.{act}.2")
    assert place is not None
    ref = OrderRef.at(place)
    assert Place.order(ref.run, ref.round, ref.act, ref.attempt, "north") == place


def test_every_phase_has_a_flow_that_carries_it_out() -> None:
    carried_out = [phase for phases in order_inbox.FLOWS.values() for phase in phases]
    vectors = {phases.vector for phases in SUMS.values()}
    assert set(carried_out) | vectors == set(get_args(Phase))
    assert len(carried_out) == len(set(carried_out))
