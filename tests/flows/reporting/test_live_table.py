"""The table on a terminal: it fills round by round, and shows no more than the record has."""

from pathlib import Path

import pytest
from homes import moved
from puppets import SITES, Federation
from rich.console import Console

from flows.reporting.live_table import MOST_ROUNDS, MOST_ROWS, Step, live_table
from flows.reporting.progress import Live
from flows.runs.run import Run


@pytest.fixture(scope="module")
def run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return moved(finished, tmp_path_factory.mktemp("live") / "home")


def drawn(table: object, width: int = 160) -> str:
    console = Console(width=width, record=True, force_terminal=False)
    console.print(table)
    return console.export_text()


def test_it_fills_round_by_round(run: Run) -> None:
    records, sites = run.records(), sorted(run.description.roster)
    before = drawn(live_table(run, sites, [], {}))
    assert "before the first round" in before and before.count("waits") == len(sites)
    for count in range(1, len(records) + 1):
        text = drawn(live_table(run, sites, records[:count], {}))
        for record in records[:count]:
            for values in record.metrics.values():
                assert f"{values['dice']:.3f}" in text
        for record in records[count:]:
            assert f"round {record.round} │" not in text
    spent = records[-1].releases["north"].statement.epsilon
    assert f"{spent:.2f} of 50" in text
    assert "all 2 rounds" in text


def test_it_shows_where_each_hospital_is(run: Run) -> None:
    steps = {"north": Step("train", 3, 12), "east": Step("distil", 4, 4)}
    text = drawn(live_table(run, ["east", "north", "south"], run.records()[:1], steps))
    assert "trains" in text and "3/12" in text
    assert "distils: done" in text
    assert "waits" in text
    assert text.index("north") < text.index("east")  # who works stands first


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_epsilon_and_the_newest_round_are_whole_on_a_narrow_terminal(run: Run, width: int) -> None:
    records, sites = run.records(), sorted(run.description.roster)
    steps = {site: Step("distil", 100, 120) for site in sites}
    text = drawn(live_table(run, sites, records, {}, width), width)
    busy = drawn(live_table(run, sites, records[:-1], steps, width), width)
    assert "100/120" in busy
    for site, release in records[-1].releases.items():
        (row,) = [line for line in text.splitlines() if f" {site} " in line]
        assert f"{release.statement.epsilon:.2f} of 50" in row
        assert f"{records[-1].metrics[site]['dice']:.3f}" in row
    for line in (text + busy).splitlines():
        assert len(line) <= width and "…" not in line


def test_a_thousand_hospitals_fit(tmp_path: Path, study_with) -> None:
    run = Federation(tmp_path, study_with()).run
    many = [f"h{k:04d}" for k in range(1000)]
    text = drawn(live_table(run, many, run.records(), {}))
    assert text.count("waits") == MOST_ROWS
    assert f"and {1000 - MOST_ROWS} hospitals more" in text


def test_only_the_newest_rounds_have_columns(run: Run) -> None:
    first, *_, last = run.records()
    many = [first, *(last.model_copy(update={"round": k}) for k in range(1, 12))]
    text = drawn(live_table(run, list(SITES), many, {}))
    assert text.count("round 1") == 2  # 10 and 11
    assert f"round {11 - MOST_ROUNDS}" not in text
    assert "before" in text


def test_without_a_terminal_there_are_plain_lines_alone(run: Run, capsys) -> None:
    live = Live(Console(force_terminal=False, width=200))
    with live.showing(run):
        live.step("north", "train", 1, 2)
        live.round(run, run.records()[-1])
    printed = capsys.readouterr().out
    assert "round 2/2  dice" in printed and "│" not in printed


def test_on_a_terminal_lines_stand_above_the_table_which_goes_when_it_ends(run: Run, capsys) -> None:
    live = Live(Console(force_terminal=True, width=200))
    with live.showing(run):
        live.step("north", "train", 1, 2)
        live.round(run, run.records()[-1])
    printed = capsys.readouterr().out
    assert "round 2/2  dice" in printed and "north" in printed
    assert printed.rstrip().endswith(("\x1b[2K", "\x1b[?25h", "\x1b[1A"))
