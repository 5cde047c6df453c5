"""Ways of learning in a round: teachers of one's own, predictions, personal models, fewer steps."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from coordinator import first_model

from models import checkpoints
from models import params as P
from models.checkpoints import StoredParams
from privacy import predictions
from privacy.accounting import epsilon
from privacy.eight_bits import EightBits, to_eight_bits
from privacy.mechanisms import mechanism_for
from sites.contribution import personal
from sites.hospital import Hospital
from sites.training.config import TrainingConfig
from sites.transfer_set import transfer_images

PLAIN = {"privacy": {"mode": "none"}, "distillation": None, "export": "weights"}
PREDICTIONS = {
    "export": "predictions",
    "distillation": {"transfer": "synthetic", "steps": 4, "images": 8},
}


@pytest.fixture
def hospital(tmp_path: Path, small_wards, edit) -> Hospital:
    ward = small_wards(tmp_path / "wards") / "east"
    edit(ward / "site.yaml", plain_studies="allow")
    return Hospital.open(ward, test_noise=1)


def released(hospital: Hospital, manifest) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(hospital.outbox.tensors(manifest.payload_sha256))


def again(hospital: Hospital, edit, **changes: object) -> Hospital:
    edit(hospital.folder / "site.yaml", **changes)
    return Hospital.open(hospital.folder, test_noise=1)


def test_where_predictions_leave_no_weight_does(hospital: Hospital, coordinator_of, study_with) -> None:
    coordinator = coordinator_of(study_with(**PREDICTIONS))
    coordinator.publish(0, first_model(coordinator.study))
    manifest = coordinator.order(hospital, "contribute", 1)
    assert manifest.content == "predictions"
    assert manifest.epsilon is not None
    tensors = released(hospital, manifest)
    assert set(tensors) == {predictions.NAME}
    said = predictions.from_tensors(tensors[predictions.NAME], (8, 3, 16, 16, 16), 2.0)
    teacher = coordinator.study.network.build(3, 3)
    P.load_into(teacher, safetensors.torch.load_file(hospital.stored("teacher", "small-1", 1)))
    config = coordinator.study.distillation
    images = transfer_images(coordinator.study, config, hospital.public)
    with torch.no_grad():
        soft = (teacher(images) / 2.0).softmax(1)
    assert ((said / 2.0).softmax(1) - soft).abs().max() < 3 / predictions.LEVELS


def test_with_one_distillation_at_the_end_trained_weights_leave_before_and_a_student_last(
    hospital: Hospital, coordinator_of, study_with
) -> None:
    distillation = {"transfer": "synthetic", "steps": 4, "images": 8, "rounds": "last"}
    coordinator = coordinator_of(study_with(distillation=distillation))
    coordinator.publish(0, first_model(coordinator.study))
    before = coordinator.order(hospital, "contribute", 1)
    coordinator.publish(1, first_model(coordinator.study))
    last = coordinator.order(hospital, "contribute", 2)
    assert [each.content for each in (before, last)] == ["weights", "student"]
    assert last.epsilon == pytest.approx(coordinator.study.privacy.epsilon, rel=1e-3)
    teacher = hospital.stored("teacher", coordinator.run, 1)
    base = first_model(coordinator.study)
    left, kept = released(hospital, before), safetensors.torch.load_file(teacher)
    assert all(torch.equal(left[name], kept[name] - base[name]) for name in left)


def test_the_runs_rate_is_the_hospitals_and_without_it_nothing_is_trained_or_charged(
    hospital: Hospital, coordinator_of, study_with
) -> None:
    start = {"kind": "synthetic", "steps": 1, "images": 8}
    auto = {"steps": 2, "lr": "auto", "lot": "all"}
    changes = []
    coordinator = coordinator_of(
        study_with(training=auto, start=start, distillation=None, export="weights")
    )
    for rate in (0.1, 0.05):
        coordinator.run = f"small-{rate:g}".replace(".", "-")
        coordinator.publish(0, first_model(coordinator.study), rate)
        manifest = coordinator.order(hospital, "contribute", 1)
        changes.append(P.norm(released(hospital, manifest)))
    assert changes[0] == pytest.approx(2 * changes[1], rel=0.2)
    spent = hospital.ledger.spent(1e-3)
    coordinator.run = "small-silent"
    coordinator.publish(0, first_model(coordinator.study))
    assert "expected a learning rate" in coordinator.order(hospital, "contribute", 1).reason
    assert hospital.ledger.spent(1e-3) == spent


@pytest.mark.parametrize("export", ["predictions", "student"])
def test_a_hospital_may_have_an_architecture_of_its_own(
    export: str, hospital: Hospital, coordinator_of, study_with, edit
) -> None:
    opened = again(hospital, edit, teacher={"name": "SegResNet", "init_filters": 8})
    changes = {"evaluation": {"teachers": True}, **(PREDICTIONS if export == "predictions" else {})}
    coordinator = coordinator_of(study_with(**changes))
    coordinator.publish(0, first_model(coordinator.study))
    assert coordinator.order(opened, "join", 0).kind == "acceptance"
    assert coordinator.order(opened, "contribute", 1).kind == "release"
    kept = safetensors.torch.load_file(opened.stored("teacher", "small-1", 1))
    assert set(kept) == {name for name, _ in opened.policy.teacher.build(3, 3).named_parameters()}
    coordinator.publish(1, first_model(coordinator.study))
    scores = coordinator.order(opened, "evaluate", 1).metrics
    assert "teacher/dice" in scores
    assert ("student/dice" in scores) == (export == "student")


def test_a_teacher_that_the_policy_or_the_images_rule_out_is_refused(
    hospital: Hospital, coordinator_of, study_with, edit
) -> None:
    coordinator = coordinator_of(study_with(**PREDICTIONS))
    for teacher, networks, reason in (
        ({"name": "SegResNet"}, ["SegResNet"], "network UNet is not among"),
        ({"name": "UNet", "channels": [2] * 6}, ["UNet"], "expected multiples of 32"),
    ):
        opened = again(hospital, edit, teacher=teacher, networks=networks)
        refusal = coordinator.order(opened, "join", 0)
        assert refusal.kind == "refusal"
        assert reason in refusal.reason
        coordinator.run += "-again"


def test_a_hospital_with_fewer_steps_pays_for_them_alone(
    hospital: Hospital, coordinator_of, study_with, edit
) -> None:
    opened = again(hospital, edit, device={"kind": "cpu", "most_steps": 1})
    training = {"steps": 3, "lr": 0.1, "lot": "all", "fewest_steps": 1}
    coordinator = coordinator_of(
        study_with(training=training, strategy={"name": "fed_nova"}, export="weights", distillation=None)
    )
    coordinator.publish(0, first_model(coordinator.study))
    assert coordinator.order(opened, "join", 0).steps == 1
    manifest = coordinator.order(opened, "contribute", 1)
    mechanism = mechanism_for(
        coordinator.study.privacy, rounds=2, steps=1, lot=None, declared=manifest.declared_training
    )
    assert manifest.event.model_dump() == vars(mechanism.event)


def test_a_study_with_more_steps_than_a_hospital_takes_is_refused(
    hospital: Hospital, coordinator_of, study_with, edit
) -> None:
    opened = again(hospital, edit, device={"kind": "cpu", "most_steps": 1})
    refusal = coordinator_of(study_with()).order(opened, "join", 0)
    assert "takes 2 steps a round" in refusal.reason
    assert "device.most_steps allows 1" in refusal.reason


def test_a_personal_model_stays_and_changes_nothing_of_what_leaves(
    hospital: Hospital, coordinator_of, study_with
) -> None:
    runs = {}
    for name in ("ditto", "fed_avg"):
        coordinator = coordinator_of(study_with(**PLAIN, strategy={"name": name}, name=name))
        coordinator.run = name
        (hospital.state / "keys" / "coordinator.pub").unlink(missing_ok=True)
        base = first_model(coordinator.study)
        coordinator.publish(0, base)
        change = released(hospital, coordinator.order(hospital, "contribute", 1))
        coordinator.publish(1, P.add(base, change))
        runs[name] = change, coordinator.order(hospital, "evaluate", 1).metrics
    (shared, metrics), (plain, others) = runs["ditto"], runs["fed_avg"]
    assert set(shared) == set(plain)
    assert "personal/dice" in metrics
    assert "personal/dice" not in others
    own = safetensors.torch.load_file(hospital.stored("personal", "ditto", 1))
    whole = P.add(base, shared)
    assert not all(torch.allclose(own[name], whole[name], atol=1e-6) for name in own)
    for path in (Path(coordinator.exchange.url)).rglob("*"):
        if path.is_file():
            assert hospital.stored("personal", "ditto", 1).read_bytes() != path.read_bytes()


def test_under_privacy_the_personal_models_figures_stay_in_the_hospital(
    hospital: Hospital, coordinator_of, study_with
) -> None:
    coordinator = coordinator_of(study_with(strategy={"name": "ditto"}))
    for round in (1, 2):
        coordinator.publish(round - 1, first_model(coordinator.study))
        manifest = coordinator.order(hospital, "contribute", round)
    assert hospital.ledger.spent(1e-3) == pytest.approx(manifest.epsilon)
    coordinator.publish(2, first_model(coordinator.study))
    scores = coordinator.order(hospital, "evaluate", 2)
    assert not any("personal" in name for name in scores.metrics)
    noted = json.loads(hospital.scored("small-1", 2).read_bytes())
    assert set(noted["personal"]) == set(noted["global"])
    assert noted["global"]["dice"] == pytest.approx(scores.metrics["dice"], abs=5e-4)


def test_local_heads_stay_and_train_from_round_to_round(
    hospital: Hospital, coordinator_of, study_with
) -> None:
    coordinator = coordinator_of(study_with(**PLAIN, strategy={"name": "fed_per"}))
    strategy = coordinator.study.bound_strategy()
    model = dict(first_model(coordinator.study))
    for round in (1, 2):
        coordinator.publish(round - 1, model)
        change = released(hospital, coordinator.order(hospital, "contribute", round))
        assert not any(strategy.is_local(name) for name in change)
        model |= P.add({name: model[name] for name in change}, change)
    first, second = (
        safetensors.torch.load_file(hospital.stored("local", "small-1", round)) for round in (1, 2)
    )
    assert set(first) == {name for name in model if strategy.is_local(name)}
    assert not all(torch.equal(first[name], second[name]) for name in first)


def public_set(folder: Path, images: np.ndarray) -> str:
    folder.mkdir()
    np.savez_compressed(folder / "others.npz", images=images)
    return hashlib.sha256((folder / "others.npz").read_bytes()).hexdigest()


def on_public(sha256: str) -> dict[str, object]:
    return {"distillation": {"transfer": {"public": sha256}, "steps": 2, "images": 8}}


def test_a_public_set_is_used_where_the_hospital_keeps_it_and_calls_it_public(
    hospital: Hospital, coordinator_of, study_with
) -> None:
    images = np.random.default_rng(0).integers(0, 999, (9, 20, 14, 18)).astype(np.int16)
    sha256 = public_set(hospital.public, images)
    coordinator = coordinator_of(study_with(**on_public(sha256)))
    coordinator.publish(0, first_model(coordinator.study))
    assert coordinator.order(hospital, "contribute", 1).kind == "release"
    seen = transfer_images(coordinator.study, coordinator.study.distillation, hospital.public)
    assert seen.shape == (8, 1, 16, 16, 16)
    middle = images[0, 2:18, :, 1:17].astype(np.float32)
    scaled = (middle - images[0].mean()) / images[0].std()
    assert np.allclose(seen[0, 0, :, 1:15], scaled, atol=1e-4)


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (None, "no file with the public set"),
        (np.zeros((3, 20, 20, 20)), "expected 8 images of 3 dimensions"),
        (np.zeros((9, 20, 20)), "expected 8 images of 3 dimensions"),
        (np.full((9, 20, 20, 20), np.nan), "the prepared image is empty, or has NaN"),
    ],
)
def test_a_public_set_that_is_missing_or_unfit_is_refused_and_nothing_is_spent(
    images: np.ndarray | None, reason: str, hospital: Hospital, coordinator_of, study_with
) -> None:
    sha256 = "0" * 64 if images is None else public_set(hospital.public, images)
    coordinator = coordinator_of(study_with(**on_public(sha256)))
    coordinator.publish(0, first_model(coordinator.study))
    for phase, round in (("join", 0), ("contribute", 1)):
        refusal = coordinator.order(hospital, phase, round)
        assert refusal.kind == "refusal"
        assert reason in refusal.reason
    assert hospital.ledger.spent(1e-3) == 0


def test_how_far_steps_move_is_counted_with_their_momentum() -> None:
    """Against SGD itself on a constant gradient."""
    for momentum in (0.0, 0.5, 0.9):
        config = TrainingConfig(steps=7, lr=0.2, momentum=momentum, lot="all")
        w = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=0.2, momentum=momentum)
        for _ in range(7):
            w.grad = torch.ones(1)
            optimizer.step()
        assert config.length(1, 1) == pytest.approx(-w.item(), rel=1e-5)


def private_parameters(hospital: Hospital, kind: str, round: int) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(hospital.stored(kind, "small-1", round))


def test_nothing_follows_from_a_try_that_was_interrupted(
    hospital: Hospital, coordinator_of, study_with, edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One charge pays for one output: what a killed try left is used by no later act."""
    opened = again(hospital, edit, teacher={"name": "SegResNet"})
    coordinator = coordinator_of(study_with(**PREDICTIONS, evaluation={"teachers": True}))
    for round in (0, 1):
        coordinator.publish(round, first_model(coordinator.study))
    with monkeypatch.context() as patched:
        patched.setattr(predictions, "to_tensors", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            coordinator.order(opened, "contribute", 1)
    assert opened.stored("teacher", "small-1", 1).exists()
    assert "teacher/dice" not in coordinator.order(opened, "evaluate", 1).metrics
    assert coordinator.order(opened, "contribute", 1).kind == "release"
    assert len(opened.ledger.histories()[0]) == 1


def test_a_round_that_diverged_leaves_nothing_to_the_next(
    hospital: Hospital, coordinator_of, study_with, edit
) -> None:
    opened = again(hospital, edit, teacher={"name": "SegResNet"})
    training = {"steps": 2, "lr": 1e30, "lot": "all", "schedule": "cosine"}
    coordinator = coordinator_of(study_with(**PREDICTIONS, training=training))
    coordinator.publish(0, first_model(coordinator.study))
    assert "diverged" in coordinator.order(opened, "contribute", 1).reason
    assert not opened.stored("teacher", "small-1", 1).exists()


def test_a_teacher_that_the_hospital_has_changed_starts_anew(
    hospital: Hospital, coordinator_of, study_with, edit
) -> None:
    coordinator = coordinator_of(study_with(**PREDICTIONS, evaluation={"teachers": True}))
    for round, teacher in ((1, {"name": "UNet", "channels": [4, 8, 8]}), (2, {"name": "SegResNet"})):
        opened = again(hospital, edit, teacher=teacher)
        coordinator.publish(round - 1, first_model(coordinator.study))
        assert coordinator.order(opened, "contribute", round).kind == "release"
    coordinator.publish(2, first_model(coordinator.study))
    opened = again(hospital, edit, teacher={"name": "UNet", "channels": [4, 8, 8]})
    assert "teacher/dice" not in coordinator.order(opened, "evaluate", 2).metrics


def test_a_hospital_that_missed_a_round_goes_on_where_it_left_off(
    hospital: Hospital, coordinator_of, study_with
) -> None:
    coordinator = coordinator_of(study_with(**PLAIN, strategy={"name": "fed_per"}, rounds=3))
    model = first_model(coordinator.study)
    for round in (1, 3):
        coordinator.publish(round - 1, model)
        coordinator.order(hospital, "contribute", round)
    coordinator.publish(3, model)
    local = coordinator.study.bound_strategy().is_local
    first, third = (private_parameters(hospital, "local", round) for round in (1, 3))
    fresh = {name: model[name] for name in model if local(name)}
    assert P.norm(P.subtract(third, first)) < P.norm(P.subtract(third, fresh))


def test_a_personal_model_that_fails_changes_nothing_that_leaves(
    hospital: Hospital, coordinator_of, study_with, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(personal, "train_plainly", lambda *_: 1 / 0)
    coordinator = coordinator_of(study_with(strategy={"name": "ditto"}))
    coordinator.publish(0, first_model(coordinator.study))
    assert coordinator.order(hospital, "contribute", 1).kind == "release"
    coordinator.publish(1, first_model(coordinator.study))
    assert coordinator.order(hospital, "evaluate", 1).metrics


def test_a_release_in_eight_bits_stands_for_the_students_change_and_costs_the_same(
    hospital: Hospital, coordinator_of, study_with
) -> None:
    """Each number within a step; which way it was rounded, anybody can repeat."""
    coordinator = coordinator_of(study_with(release_bits=8))
    base = first_model(coordinator.study)
    coordinator.publish(0, base)
    manifest = coordinator.order(hospital, "contribute", 1)
    told = EightBits(StoredParams(hospital.outbox.tensors(manifest.payload_sha256)))
    told.check()
    student = safetensors.torch.load_file(hospital.stored("student", "small-1", 1))
    change = P.subtract(student, base)
    assert dict(manifest.tensors) == told.shapes == {n: tuple(t.shape) for n, t in change.items()}
    for name, value in change.items():
        step = float(told.stored[f"{name}/scale"])
        assert (told[name] - value).abs().max() <= step * (1 + 1e-5)
    seed = coordinator.study.seed_for(1, "east", "rounding")
    again = to_eight_bits(change, torch.Generator().manual_seed(seed))
    assert all(torch.equal(told.stored[name], again[name]) for name in again)
    mechanism = mechanism_for(
        coordinator.study.privacy, rounds=coordinator.study.rounds,
        steps=coordinator.study.training.steps, lot=None,
        declared=hospital.policy.declared_training,
    )  # fmt: skip
    assert manifest.epsilon == epsilon([mechanism.event], coordinator.study.privacy.delta)
    assert manifest.payload_bytes < len(checkpoints.to_bytes(change)) / 2  # of a tiny network
