"""A plan says before anything is spent what a run will then cost."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.planning.plan import plan_of_patients, plan_of_wards, step_cost
from flows.runs.run import Run
from privacy.accounting import PrivacyEvent, epsilon
from sites.hospital import Hospital
from sites.setup.wards import wards_in


def test_the_plan_of_a_finished_run_is_what_its_releases_state(finished: Path) -> None:
    from flows.runs.paths import Home
    from flows.runs.run import runs_of

    run: Run = runs_of(Home(finished))[-1]
    stated = [each.statement for record in run.records() for each in record.releases.values()]
    plan = plan_of_patients(run.study, sorted({each.declared_training for each in stated}))
    (hospital,) = plan.hospitals
    assert hospital.epsilons == pytest.approx(sorted({each.epsilon for each in stated}))
    assert {round(each.event.noise_multiplier, 9) for each in stated} == {round(hospital.noise, 9)}
    sizes = {each.payload_bytes for each in stated}
    assert all(plan.release_bytes < size < 1.3 * plan.release_bytes for size in sizes)


def test_the_budget_counts_what_other_studies_have_spent(
    tmp_path: Path, small_wards, study_with
) -> None:
    small_wards(tmp_path / "wards")
    wards, study = wards_in(tmp_path / "wards"), study_with()
    fresh = plan_of_wards(study, wards)
    assert [each.budget for each in fresh.hospitals] == [(pytest.approx(20.0), 50.0)] * 3
    assert fresh.strength > 0
    hospital = Hospital.open(wards["north"])
    from privacy.ledger import Charge

    before = PrivacyEvent(0.3, 1.0, 1)
    hospital.ledger.reserve(
        Charge("other", "other-1", 1, "contribute", before), hospital.eligible.training
    )
    planned = {each.name: each for each in plan_of_wards(study, wards).hospitals}
    mine = PrivacyEvent(planned["south"].noise, 1.0, study.training.steps)
    due = epsilon([before, *[mine] * study.rounds], 1e-3, "gaussian")
    assert planned["north"].budget[0] == pytest.approx(due)


def test_a_hospital_that_would_refuse_is_named_with_its_reason(
    tmp_path: Path, small_wards, study_with, edit
) -> None:
    small_wards(tmp_path / "wards")
    edit(tmp_path / "wards" / "north" / "site.yaml", networks=["SegResNet"])
    edit(tmp_path / "wards" / "east" / "site.yaml", budget={"epsilon": 21.0, "delta": 1e-3})
    from privacy.ledger import Charge

    east = Hospital.open(tmp_path / "wards" / "east")
    before = Charge("other", "other-1", 1, "contribute", PrivacyEvent(0.5, 1.0, 1))
    east.ledger.reserve(before, east.eligible.training)
    plan = plan_of_wards(study_with(), wards_in(tmp_path / "wards"))
    refused = {each.name: each.refusal for each in plan.hospitals}
    assert "UNet" in refused["north"]
    assert "its budget of epsilon 21 would be exceeded: 2" in refused["east"]
    assert refused["south"] == ""
    assert plan.warnings[-1] == "1 hospitals would take part, the study's sites.min is 2."


def test_too_few_patients_for_an_epsilon_are_warned_of_and_the_exit_code_is_one(study_file) -> None:
    study = study_file(privacy={
        "mode": "local", "unit": "patient", "epsilon": 0.02, "delta": 1e-3,
        "clip": {"kind": "normalised", "norm": 1.0},
    })  # fmt: skip
    command = ["plan", str(study), "--patients", "6", "--patients", "6", "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert found["strength"] < found["strength_needed"]
    assert "are not expected to improve the start" in found["warnings"][0]


def test_a_study_without_privacy_costs_no_epsilon(study_with) -> None:
    plan = plan_of_patients(study_with(privacy={"mode": "none"}), [20, 20])
    assert [each.epsilons for each in plan.hospitals] == [(), ()]
    assert plan.strength is None


def test_a_step_costs_time_and_memory(study_with) -> None:
    cost = step_cost(study_with())
    assert 0 < cost.seconds < 5
    assert cost.memory_mib >= 1


def test_expected_either_hospitals_or_numbers(study_file) -> None:
    done = CliRunner().invoke(app, ["plan", str(study_file())])
    assert done.exit_code == 2
