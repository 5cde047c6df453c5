"""What Prefect's UI is told of a round: public values, and what a person has to look at."""

from pathlib import Path
from typing import Any

import pytest

from flows.reporting.prefect_artifacts import events, rows
from flows.runs.paths import Home
from flows.runs.run import GENESIS, Accepted, Participant, RoundRecord, Run
from privacy.accounting import Budget


@pytest.fixture
def run(tmp_path: Path, study_with) -> Run:
    home = Home(tmp_path)
    made = Run.create(home, study_with(), {"north": "0" * 64, "east": "1" * 64}, home.exchange)
    member = Participant(
        public_key="0" * 64, declared_patients=20, declared_training=15, steps=2,
        budget=Budget(epsilon=8, delta=1e-4),
    )  # fmt: skip
    return made.with_participants({"north": member, "east": member}, {})


def record_of(run: Run, epsilon: float, **left_out: str) -> RoundRecord:
    release = Accepted(
        site="north", statement_sha256=GENESIS, public_key=GENESIS, payload_sha256=GENESIS,
        payload_bytes=1000, weight=15, steps=2, event=None, epsilon=epsilon, epsilon_reported={},
        plain_releases=0, noise="system",
        ledger_head=GENESIS,
    )  # fmt: skip
    fields: dict[str, Any] = dict.fromkeys(
        ("study_sha256", "previous", "base_sha256", "model_sha256"), GENESIS
    )
    return RoundRecord(
        study="small", run=run.name, round=1, releases=(release,), left_out=left_out,
        scores={"north": {"dice": 0.5, "dice/head": 0.4}}, metrics={"north": "exact"},
        scored={},
        quality={"dice": 0.5}, train_seconds={}, seconds=1.0, finished_ms=1, **fields,
    )  # fmt: skip


def test_each_hospital_has_a_row_and_the_missing_one_its_reason(run: Run) -> None:
    east, north = rows(run, record_of(run, 1.0, east="it did not answer within the deadline"))
    assert (east["hospital"], east["bytes"]) == ("east", 0)
    assert "did not answer" in east["missing because"]
    assert (north["epsilon"], north["of budget"], north["dice"]) == ("1.000", "8", "0.500")
    assert "dice/head" not in north


@pytest.mark.parametrize(
    ("epsilon", "reason", "names"),
    [
        (1.0, None, ["wardround.round.done"]),
        (1.0, "it refused: no", ["wardround.site.refused", "wardround.round.done"]),
        (1.0, "its run was cancelled", ["wardround.site.missing", "wardround.round.done"]),
        (7.5, None, ["wardround.budget.low", "wardround.round.done"]),
    ],
)
def test_events_tell_of_refusals_and_budgets_that_end(
    run: Run, epsilon: float, reason: str | None, names: list[str]
) -> None:
    record = record_of(run, epsilon, **({"east": reason} if reason else {}))
    assert [name for name, _ in events(run, record)] == names
