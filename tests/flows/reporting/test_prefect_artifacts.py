"""What Prefect's UI is told of a round: public values, and what a person has to look at."""

from pathlib import Path

import pytest
from puppets import participant

from flows.reporting.prefect_artifacts import events, rows
from flows.rounds.statements import SILENT
from flows.runs.paths import Home
from flows.runs.records import GENESIS, Absence, HospitalRound, RoundRecord
from flows.runs.run import Run


@pytest.fixture
def run(tmp_path: Path, study_with) -> Run:
    home = Home(tmp_path)
    made = Run.create(home, study_with(), {"north": "0" * 64, "east": "1" * 64}, home.exchange)
    budget = {"epsilon": 8, "delta": 1e-4}
    members = {site: participant(made, site, budget=budget) for site in ("north", "east")}
    return made.with_participants(members, {})


def record_of(run: Run, epsilon: float, east: Absence | None = None) -> RoundRecord:
    about = {
        "study": "small", "study_sha256": GENESIS, "run": run.name, "round": 1, "site": "north",
        "ledger_head": GENESIS, "charges": 1,
    }  # fmt: skip
    event = {"noise_multiplier": 5.0, "sampling_rate": 1.0, "steps": 2}
    manifest = about | {
        "kind": "release", "purpose": "contribute", "content": "student", "base_sha256": GENESIS,
        "chain_head": GENESIS, "payload_sha256": GENESIS, "payload_bytes": 1000, "tensors": {},
        "declared_training": 15, "event": event, "epsilon": epsilon, "delta": 1e-4,
        "epsilon_reported": {"prv": epsilon}, "plain_releases": 0, "noise": "system",
    }  # fmt: skip
    scores = about | {
        "kind": "scores", "purpose": "evaluate", "event": None, "model_sha256": GENESIS,
        "chain_head": GENESIS, "metrics_policy": "exact", "metrics": {"dice": 0.5, "dice/head": 0.4},
    }  # fmt: skip
    signed = {"statement_sha256": GENESIS, "public_key": GENESIS}
    return RoundRecord.model_validate(
        {
            "study": "small", "run": run.name, "round": 1, "quality": {"dice": 0.5}, "seconds": 1.0,
            "finished_ms": 1, "software": {},
            "hospitals": {
                "east": HospitalRound(release=east),
                "north": {
                    "release": {"statement": manifest, "weight": 15, **signed},
                    "scores": {"statement": scores, **signed},
                },
            },
            **dict.fromkeys(("study_sha256", "previous", "base_sha256", "model_sha256"), GENESIS),
        }
    )  # fmt: skip


def test_each_hospital_has_a_row_and_the_missing_one_its_reason(run: Run) -> None:
    east, north = rows(run, record_of(run, 1.0, SILENT))
    assert (east["hospital"], east["bytes"]) == ("east", 0)
    assert "did not answer" in east["missing because"]
    assert (north["epsilon"], north["of budget"], north["dice"]) == ("1.000", "8", "0.500")
    assert "dice/head" not in north


@pytest.mark.parametrize(
    ("epsilon", "reason", "names"),
    [
        (1.0, None, ["wardround.round.done"]),
        (1.0, Absence(kind="refused", text="no"), ["wardround.site.refused", "wardround.round.done"]),
        (
            1.0,
            Absence(kind="missing", text="its run was cancelled"),
            ["wardround.site.missing", "wardround.round.done"],
        ),
        (7.5, None, ["wardround.budget.low", "wardround.round.done"]),
    ],
)
def test_events_tell_of_refusals_and_budgets_that_end(
    run: Run, epsilon: float, reason: Absence | None, names: list[str]
) -> None:
    record = record_of(run, epsilon, reason)
    assert [name for name, _ in events(run, record)] == names
