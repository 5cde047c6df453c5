"""A task finds its run's session by the run's name."""

from pathlib import Path

import pytest

from flows.hospitals.session import session, session_of
from flows.runs.paths import Home
from flows.runs.run import Run


@pytest.fixture
def runs(tmp_path: Path, study_with) -> list[Run]:
    home = Home(tmp_path)
    return [Run.create(home, study_with(), {"north": "0" * 64}, home.exchange) for _ in range(2)]


def test_each_run_has_the_session_that_was_opened_for_it(runs: list[Run]) -> None:
    heard: list[str] = []
    first, second = runs
    with (
        session(first, {"north": "one"}, lambda run, record: heard.append(run.name)),
        session(second, {"north": "two"}),
    ):
        again = Run.open(first.home, first.name)  # as a task opens it
        assert session_of(again).hospitals == {"north": "one"}
        assert session_of(second).hospitals == {"north": "two"}
        session_of(again).on_record(again, None)
        session_of(second).on_record(second, None)
    assert heard == [first.name]


def test_a_session_ends_also_when_its_work_fails(runs: list[Run]) -> None:
    with pytest.raises(ValueError, match="failed"), session(runs[0], {}):
        raise ValueError("failed")
    with pytest.raises(LookupError, match=rf"run {runs[0].name}.*`wardround run`"):
        session_of(runs[0])
