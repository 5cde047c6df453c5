"""What `wardround status` shows of the newest run."""

from pathlib import Path

from rich.console import Console

from flows.reporting.status import status, status_table
from flows.runs.paths import Home
from flows.runs.run import named_run


def test_a_finished_runs_table_has_each_hospitals_last_round_and_what_it_spent_of_what_it_may(
    finished: Path,
) -> None:
    run, found = named_run(Home(finished), None), status(Home(finished))
    assert found is not None
    last = run.records()[-1]
    assert (found.is_finished, found.round, found.epsilon) == (True, run.study.rounds, 20)
    spent = {name: release.statement.epsilon for name, release in last.releases.items()}
    assert {each.name: each.epsilon for each in found.hospitals} == spent
    console = Console(width=160, record=True)
    console.print(status_table(found))
    text = console.export_text()
    assert "finished" in text
    assert "epsilon of 20" in text
    assert all(f"{value:.3f}" in text for value in spent.values())


def test_before_the_first_run_there_is_no_status(tmp_path: Path) -> None:
    assert status(Home(tmp_path)) is None
