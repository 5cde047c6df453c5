"""Hospitals are asked in tasks; those that share one are asked side by side, and again on their own."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.testing.utilities import prefect_test_harness
from puppets import Federation

from flows.asking import SHORT, TRAININGS, ask, groups
from flows.hospitals.processes import HospitalFailed, HospitalLeftOut
from flows.hospitals.session import session
from sites.orders import Order

SITES = ["east", "north", "south"]


class Recorder:
    """A hospital that does with each order what `does` says."""

    def __init__(self, does: Callable[[Order], None]) -> None:
        self.does, self.asked = does, 0

    def carry_out(self, order: Order, timeout_s: float) -> None:
        del timeout_s
        self.asked += 1
        self.does(order)

    def invite(self, order: Order) -> None:
        raise AssertionError(order)


@pytest.fixture
def asked(tmp_path: Path, study_with) -> Federation:
    return Federation(tmp_path, study_with())


def test_every_hospital_is_in_one_group_and_no_phase_has_more_tasks_than_it_may() -> None:
    for count in (1, 4, 8, 9, 20, 100, 101, 1000, 1001):
        sites = [f"site-{number}" for number in range(count)]
        for phase, most in (("contribute", TRAININGS), ("evaluate", SHORT)):
            found = groups(phase, sites)
            assert [site for some in found for site in some] == sites
            assert len(found) <= most
            assert max(map(len, found)) - min(map(len, found[:-1] or found)) == 0
    assert groups("evaluate", []) == []


def test_hospitals_of_a_task_are_asked_at_the_same_time(asked: Federation) -> None:
    together = threading.Barrier(len(SITES), timeout=10)
    hospitals = {site: Recorder(lambda order: together.wait()) for site in SITES}
    with session(asked.run, hospitals):
        ask.fn(asked.run.name, 1, "contribute", SITES, "all", str(asked.run.home.folder))
    assert [each.asked for each in hospitals.values()] == [1, 1, 1]
    assert set(asked.run.waits(1, "contribute")) == set(SITES)


def test_one_that_failed_stops_no_other_and_is_named(asked: Federation) -> None:
    def fail(order: Order) -> None:
        raise HospitalFailed(f"{order.site}: its process has died.")

    def leave(order: Order) -> None:
        raise HospitalLeftOut(f"{order.site}: no answer within 3 s.")

    hospitals = {
        "east": Recorder(fail), "north": Recorder(lambda order: None), "south": Recorder(leave),
    }  # fmt: skip
    with (
        session(asked.run, hospitals),
        pytest.raises(HospitalFailed, match=r"east: its process has died\."),
    ):
        ask.fn(asked.run.name, 1, "contribute", SITES, "all", str(asked.run.home.folder))
    assert [each.asked for each in hospitals.values()] == [1, 1, 1]
    assert asked.run.failure(1, "contribute", "east") == "east: its process has died."
    assert asked.run.failure(1, "contribute", "south") == "south: no answer within 3 s."
    assert not asked.run.failure(1, "contribute", "north")


@pytest.mark.slow
def test_a_task_that_failed_asks_again_those_without_an_answer(asked: Federation) -> None:
    answered = []

    def answer_once_in_two(order: Order) -> None:
        answered.append(order.site)
        if answered.count(order.site) < 2 and order.site == "east":
            raise HospitalFailed("east: its process has died.")
        asked.release(order.site)

    hospitals = {site: Recorder(answer_once_in_two) for site in SITES}
    with prefect_test_harness(), session(asked.run, hospitals):
        ask(asked.run.name, 1, "contribute", SITES, "all", str(asked.run.home.folder))
    assert {site: each.asked for site, each in hospitals.items()} == {"east": 2, "north": 1, "south": 1}
