"""Acceptance and contribution of a hospital, with a real ledger, outbox and exchange."""

import json
from io import StringIO

import pytest
import torch
from coordinator import first_model

from models import spans
from models.networks.segmentation import UNetConfig
from sites.admission.requests import waiting
from sites.hospital import Hospital


def test_joining_promises_no_more_than_the_budget_holds(
    hospital: Hospital, coordinator_of, study_with
) -> None:
    coordinator = coordinator_of(study_with())
    assert coordinator.order(hospital, "join", 0).kind == "acceptance"
    coordinator.publish(0, first_model(coordinator.study))
    coordinator.order(hospital, "contribute", 1)
    coordinator.run = "small-2"
    coordinator.study = study_with(privacy={**study_with().privacy.model_dump(), "epsilon": 49})
    refusal = coordinator.order(hospital, "join", 0)
    assert refusal.kind == "refusal"
    assert "Rounds like this that still fit" in refusal.reason


def test_a_policy_that_changed_since_the_hospital_joined_is_refused_before_anything_is_spent(
    hospital: Hospital, coordinator_of, study_with, edit
) -> None:
    training = {"steps": 2, "fewest_steps": 1, "lr": 0.1, "lot": "all"}
    coordinator = coordinator_of(study_with(training=training))
    coordinator.publish(0, first_model(coordinator.study))
    assert coordinator.order(hospital, "join", 0).steps == 2
    edit(hospital.folder / "site.yaml", device={"kind": "cpu", "most_steps": 1})
    opened = Hospital.open(hospital.folder, test_noise=1)
    refusal = coordinator.order(opened, "contribute", 1)
    assert "2 steps a round; its policy now gives 15 and 1" in refusal.reason
    assert opened.ledger.spent(1e-3) == 0


def test_a_charge_is_given_back_where_the_scans_cannot_be_prepared_and_stays_once_training_began(
    hospital: Hospital, coordinator_of, study_with, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise MemoryError("no room for the scans")

    coordinator = coordinator_of(study_with())
    coordinator.publish(0, first_model(coordinator.study))
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr("sites.contribution.contribution.prepare", no_room)
        coordinator.order(hospital, "contribute", 1)
    assert [e.action for e in hospital.ledger.entries()] == ["resolve", "reserve", "void"]
    assert hospital.ledger.spent(1e-3) == 0
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(torch.optim, "SGD", no_room)
        coordinator.order(hospital, "contribute", 1)
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr("sites.contribution.contribution.prepare", no_room)
        coordinator.order(hospital, "contribute", 1)
    assert [e.action for e in hospital.ledger.entries()][3:] == ["reserve", "start"]
    assert hospital.ledger.spent(1e-3) > 0
    assert coordinator.order(hospital, "contribute", 1).kind == "release"


def test_what_was_sound_is_tried_again_only_after_a_change(
    hospital: Hospital, coordinator_of, study_with, edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = StringIO()
    monkeypatch.setattr(spans, "_sink", recorded)

    def times() -> int:
        return sum(json.loads(line)["name"] == "rehearse" for line in recorded.getvalue().splitlines())

    coordinator = coordinator_of(study_with())
    coordinator.publish(0, first_model(coordinator.study))
    for phase, number in (("check", 0), ("join", 0), ("contribute", 1)):
        coordinator.order(hospital, phase, number)
        assert times() == 1
    coordinator.run = "small-2"
    coordinator.study = study_with(preprocessing={"shape": [32, 24, 24], "intensity": "z_score"})
    coordinator.order(hospital, "check", 0)
    assert times() == 2
    coordinator.run = "small-3"
    edit(hospital.folder / "site.yaml", device={"kind": "cpu", "memory_mb": 10_000})
    coordinator.order(Hospital.open(hospital.folder, test_noise=1), "check", 0)
    assert times() == 3


@pytest.mark.parametrize("phase", ["check", "join", "contribute"])
def test_a_network_that_mixes_patients_is_refused_before_anything_is_charged(
    phase: str, hospital: Hospital, coordinator_of, study_with, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = UNetConfig.arguments

    def with_batch_norm(config: UNetConfig, *sizes: int) -> dict[str, object]:
        return {**arguments(config, *sizes), "norm": "BATCH"}

    monkeypatch.setattr(UNetConfig, "arguments", with_batch_norm)
    coordinator = coordinator_of(study_with())
    coordinator.publish(0, first_model(coordinator.study))
    refusal = coordinator.order(hospital, phase, 1 if phase == "contribute" else 0)
    assert refusal.kind == "refusal"
    assert "BatchNorm3d" in refusal.reason
    assert [e.action for e in hospital.ledger.entries()] == ["publish"]
    assert not hospital.ledger.charges()


def test_a_check_answers_ready_without_an_approval_or_a_charge(
    hospital: Hospital, coordinator_of, study_with, edit
) -> None:
    edit(hospital.folder / "site.yaml", approve={"join": "manual", "export": "manual"})
    coordinator = coordinator_of(study_with())
    strict = Hospital.open(hospital.folder)
    statement = coordinator.order(strict, "check", 0)
    assert (statement.kind, statement.event) == ("readiness", None)
    assert [e.action for e in strict.ledger.entries()] == ["publish"]
    assert not strict.ledger.charges()
    assert not waiting(strict)
    edit(hospital.folder / "site.yaml", budget={"epsilon": 1.0, "delta": 1e-3})
    poor = Hospital.open(hospital.folder)
    coordinator.run = "small-2"
    assert "allows 1" in coordinator.order(poor, "check", 0).reason
    assert not poor.ledger.charges()


@pytest.mark.parametrize("phase", ["check", "join", "contribute"])
@pytest.mark.parametrize(("accountant", "delta"), [("pld", 1e-16), ("prv", 1e-16)])
def test_an_accountant_that_can_report_no_epsilon_is_found_before_a_charge(
    accountant: str, delta: float, phase: str, hospital: Hospital, coordinator_of, study_with
) -> None:
    """Google's PLD accountant says infinity there, Opacus' PRV accountant raises."""
    privacy = {
        **study_with().model_dump(mode="json")["privacy"],
        "delta": delta,
        "accountants": [accountant],
    }
    coordinator = coordinator_of(study_with(privacy=privacy))
    coordinator.publish(0, first_model(coordinator.study))
    refusal = coordinator.order(hospital, phase, 1 if phase == "contribute" else 0)
    assert refusal.kind == "refusal"
    assert f"the accountant {accountant}" in refusal.reason
    assert hospital.ledger.charges() == []
