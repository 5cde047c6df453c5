"""The hospital's books for a program: the same rows as the tables for people, with whole values."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from sites.hospital import Hospital


def listed(*words: object) -> list[dict[str, object]]:
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def ward(finished: Path) -> Path:
    return finished / "wards" / "north"


def test_the_ledgers_rows_end_with_what_is_spent(ward: Path) -> None:
    hospital = Hospital.open(ward)
    rows = listed("site", "ledger", ward)
    spent = hospital.ledger.spent(hospital.policy.budget.delta)
    assert rows[-1]["epsilon"] == pytest.approx(spent)
    assert rows[-1]["left"] == pytest.approx(hospital.policy.budget.epsilon - spent)
    assert [row["epsilon"] for row in rows] == sorted(row["epsilon"] for row in rows)
    assert {row["state"] for row in rows} == {"released"}


@pytest.mark.parametrize("book", ["waiting", "scores", "withdrawn"])
def test_an_empty_book_is_an_empty_list(book: str, ward: Path) -> None:
    assert listed("site", book, ward) == []


def test_a_table_in_a_pipe_has_each_row_on_one_line(ward: Path) -> None:
    shown = CliRunner().invoke(app, ["site", "outbox", str(ward)]).stdout
    for row in listed("site", "outbox", ward):
        (line,) = (line for line in shown.splitlines() if row["statement"][:12] in line)
        assert row["run"] in line and str(row["when"]) in line
