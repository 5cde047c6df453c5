"""The coordinator against hospitals that lie, fail or stay silent; without Prefect."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from puppets import HASH, SITES, Federation, declaring

from flows.rounds import aggregation, global_model, recording, releases, statements
from flows.rounds.statements import NO_ANSWERS, SILENT, Answers, TooFewHospitals
from flows.runs.records import Absence, RoundRecord
from models import checkpoints
from models import params as P
from models.networks.segmentation import SegResNetConfig, UNetConfig
from privacy import predictions
from privacy.distillation import imitation_loss
from privacy.eight_bits import to_eight_bits
from privacy.mechanisms import mechanism_for
from sites.exchange.places import Place
from sites.transfer_set import transfer_images


@pytest.fixture
def federation(tmp_path: Path, study_with) -> Federation:
    return Federation(tmp_path, study_with())


def test_a_silent_hospital_is_left_out_and_the_others_are_averaged(federation: Federation) -> None:
    federation.release("east")
    federation.release("north", federation.change(0.03))
    taken = federation.take_in()
    assert dict(taken.absent) == {"south": SILENT}
    model = aggregation.aggregate(federation.run, 1, federation.base, taken)
    for name, tensor in federation.run.model(federation.base).items():
        assert torch.allclose(model[name], tensor + 0.02, atol=1e-6)


def test_who_leaves_between_release_and_scores_is_named_in_the_record(federation: Federation) -> None:
    for site in SITES:
        federation.release(site)
    taken, known = federation.take_in(), federation.run.description
    staying = {site: member for site, member in known.participants.items() if site != "south"}
    without = federation.run.with_participants(staying, {}, {"south": known.participants["south"]})
    silent = Answers({}, {"east": SILENT, "north": SILENT})
    record = recording.round_record(without, 1, "0" * 64, taken, silent, 0.0)
    absences = {"east": SILENT, "north": SILENT, "south": recording.UNASKED}
    assert record.absences("scores") == absences
    assert sorted(record.releases) == sorted(SITES)
    assert record.software.keys() >= {"wardround", "torch"}
    assert RoundRecord.model_validate_json(record.data) == record


def test_too_few_releases_stop_the_round_with_every_reason(federation: Federation) -> None:
    federation.release("east")
    federation.say("north", kind="refusal", reason="the [bold]moon[/x] is full")
    with pytest.raises(TooFewHospitals, match=r"(?s)at least 2 .* in round 1 .*moon") as caught:
        federation.take_in()
    assert caught.value.begun
    assert releases.decided(federation.run, 1) is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"content": "weights"}, "expected student, got weights"),
        ({"base_sha256": HASH}, "another model"),
        ({"declared_training": 1000}, "declared 15 patients"),
        ({"event": {"noise_multiplier": 99.0, "sampling_rate": 1.0, "steps": 2}}, "not the study's"),
        ({"epsilon": 0.1}, "its releases cost"),
        ({"payload_sha256": "f" * 64}, "rejected"),
        ({"payload_bytes": 17}, "17 bytes as its manifest says"),
        ({"tensors": {}}, "other tensors"),
        ({"study_sha256": HASH}, "another study, run, round, act or hospital"),
        ({"purpose": "evaluate"}, "another study, run, round, act or hospital"),
        ({"delta": 1e-2}, "another delta than 0.001"),
        ({"epsilon_reported": {"rdp": 1.0}}, "other accountants than the study's"),
        ({"instead": {"site": "north"}}, "another study, run, round, act or hospital"),
        ({"epsilon": None}, "an event, epsilons, a delta and noise"),
        ({"noise": "none"}, "an event, epsilons, a delta and noise"),
    ],
)
def test_a_release_that_does_not_fit_leaves_out_its_hospital_alone(
    fields: dict[str, Any], reason: str, federation: Federation
) -> None:
    for site in ("east", "north"):
        federation.release(site)
    federation.release("south", **fields)
    taken = federation.take_in()
    assert set(taken.taken) == {"east", "north"}
    assert reason in str(taken.absent["south"])


@pytest.mark.parametrize(
    "tensors",
    [
        lambda change: {**change, "extra": torch.zeros(1)},
        lambda change: {n: t * float("nan") for n, t in change.items()},
        lambda change: {n: t.double() for n, t in change.items()},
        lambda change: {n: t.flatten() for n, t in change.items()},
        lambda change: {"huge": torch.zeros(10**6)},
        lambda change: {n: torch.full_like(t, 1e30) for n, t in change.items()},
    ],
)
def test_tensors_that_do_not_fit_leave_out_their_hospital_alone(
    tensors: Callable[[P.Params], P.Params], federation: Federation
) -> None:
    for site in ("east", "north"):
        federation.release(site)
    federation.release("south", tensors(federation.change()))
    assert set(federation.take_in().taken) == {"east", "north"}


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[" * 200_000, b"\xff" * 10, b" " * (2**20 + 1), b'{"statement": 5}']
)
def test_a_statement_that_is_none_leaves_out_its_hospital_alone(
    data: bytes, federation: Federation
) -> None:
    for site in ("east", "north"):
        federation.release(site)
    place = Place.statement(federation.run.name, 1, "contribute", "south")
    federation.run.exchange.put_statement(place, data)
    taken = federation.take_in()
    assert set(taken.taken) == {"east", "north"}
    assert "rejected" in str(taken.absent["south"])


def test_a_statement_signed_by_another_hospital_is_rejected(federation: Federation) -> None:
    federation.say("south", kind="refusal", reason="x", signer="north")
    answers = statements.answers(federation.run, 1, "contribute", SITES)
    assert "does not fit its statement" in str(answers.absent["south"])


def test_another_rounds_release_is_no_release_of_this_one(federation: Federation) -> None:
    federation.release("south")
    first = Place.statement(federation.run.name, 1, "contribute", "south")
    second = Place.statement(federation.run.name, 2, "contribute", "south")
    federation.run.exchange.put_statement(second, federation.run.exchange.statement(first))
    answers = statements.answers(federation.run, 2, "contribute", ("south",))
    assert "another study, run, round" in str(answers.absent["south"])


def test_a_metric_that_the_study_has_not_is_rejected(federation: Federation) -> None:
    scores = {"kind": "scores", "model_sha256": HASH, "chain_head": HASH, "metrics_policy": "exact"}
    federation.say("south", "evaluate", 0, **scores, metrics={"dice": 0.5})
    federation.say("north", "evaluate", 0, **scores, metrics={"greatness": 0.5})
    answers = statements.answers(federation.run, 0, "evaluate", SITES)
    assert set(answers.taken) == {"south"}
    assert "no metric 'greatness'" in str(answers.absent["north"])


def test_a_declared_number_for_which_there_is_no_mechanism_leaves_out_its_hospital_alone(
    federation: Federation,
) -> None:
    absurd = declaring(federation.run.description.participants["south"], declared_training=10**6)
    federation.run = federation.run.with_participants(
        {**federation.run.description.participants, "south": absurd}, {}
    )
    for site in ("east", "north"):
        federation.release(site)
    federation.release("south", declared_training=10**6)
    taken = federation.take_in()
    assert set(taken.taken) == {"east", "north"}
    assert "delta < 1/1000000" in str(taken.absent["south"])


def test_a_decided_round_keeps_to_its_releases_when_a_late_one_comes(federation: Federation) -> None:
    for site in ("east", "north"):
        federation.release(site)
    before = federation.take_in()
    federation.release("south", federation.change(9.0))
    decided = releases.decided(federation.run, 1)
    assert decided is not None
    assert dict(decided.taken) == dict(before.taken)
    assert dict(decided.absent) == {"south": SILENT}


def test_a_refusal_holds_for_its_attempt_alone(federation: Federation) -> None:
    federation.say("south", "contribute-refused-1", kind="refusal", reason="not today")
    refused = statements.answers(federation.run, 1, "contribute", SITES).absent["south"]
    assert refused == Absence(kind="refused", text="not today")
    federation.run.begin_attempt()
    assert statements.answers(federation.run, 1, "contribute", SITES).absent["south"] == SILENT


def test_quality_is_the_mean_by_declared_patients_over_what_was_published(
    tmp_path: Path, federation: Federation
) -> None:
    scores = {"kind": "scores", "model_sha256": federation.base.model_sha256, "chain_head": HASH}
    federation.say("south", "evaluate", 0, **scores, metrics_policy="exact", metrics={"dice": 0.2})
    federation.say("north", "evaluate", 0, **scores, metrics_policy="exact", metrics={"dice": 0.6})
    federation.say("east", "evaluate", 0, **scores, metrics_policy="withheld", metrics={})
    scored = statements.answers(federation.run, 0, "evaluate", SITES)
    record = recording.round_record(
        federation.run, 0, federation.base.model_sha256, NO_ANSWERS, scored, 0
    )
    assert record.quality == {"dice": pytest.approx(0.4)}


PREDICTIONS = {
    "export": "predictions",
    "distillation": {"transfer": "synthetic", "steps": 40, "images": 16, "lr": 1e-2},
}


@pytest.fixture
def fusing(tmp_path: Path, study_with) -> Federation:
    return Federation(tmp_path, study_with(**PREDICTIONS))


def teach(federation: Federation, site: str, network: torch.nn.Module, **fields: Any) -> None:
    """Release what `network` says of the transfer images."""
    study = federation.run.study
    images = transfer_images(study, study.distillation, federation.run.home.public)
    with torch.no_grad():
        packed = predictions.to_tensors(network(images), 2.0)
    federation.release(site, packed, **{"content": "predictions", **fields})


def test_the_global_student_learns_from_the_ensemble_whatever_the_teachers_are(
    fusing: Federation,
) -> None:
    study = fusing.run.study
    teachers = []
    for seed, config in enumerate(
        [UNetConfig(name="UNet", channels=(8, 16)), SegResNetConfig(name="SegResNet")]
    ):
        torch.manual_seed(seed)
        teachers.append(config.build(3, 3))
    for site, teacher in zip(SITES, teachers, strict=False):
        teach(fusing, site, teacher)
    taken = fusing.take_in()
    assert set(taken.taken) == {"east", "north"}
    images = transfer_images(study, study.distillation, fusing.run.home.public)
    student = study.network.build(3, 3)
    losses = []
    for params in (
        fusing.run.model(fusing.base),
        aggregation.aggregate(fusing.run, 1, fusing.base, taken),
    ):
        P.load_into(student, params)
        with torch.no_grad():
            mean = torch.stack([teacher(images) for teacher in teachers]).mean(0)
            losses.append(imitation_loss(student(images), mean, 2.0).item())
    assert losses[1] < 0.7 * losses[0]
    again = aggregation.aggregate(fusing.run, 1, fusing.base, taken)
    first = aggregation.aggregate(fusing.run, 1, fusing.base, taken)
    assert all(torch.equal(again[name], first[name]) for name in first)


@pytest.mark.parametrize(
    "tensors",
    [
        {"deflated": torch.zeros(100, dtype=torch.uint8)},
        {"deflated": torch.zeros(100)},
        {"other": torch.zeros(100, dtype=torch.uint8)},
        {"deflated": torch.zeros((10, 10), dtype=torch.uint8)},
        {"deflated": torch.zeros(10**7, dtype=torch.uint8)},
        {"deflated": torch.frombuffer(bytearray(zlib.compress(bytes(10**8))), dtype=torch.uint8)},
    ],
    ids=["garbage", "floats", "another name", "a table", "too large", "a bomb"],
)
def test_predictions_that_are_none_leave_out_their_hospital_alone(
    tensors: P.Params, fusing: Federation
) -> None:
    torch.manual_seed(0)
    network = UNetConfig(name="UNet", channels=(4, 8)).build(3, 3)
    for site in ("east", "north"):
        teach(fusing, site, network)
    fusing.release("south", tensors, content="predictions")
    taken = fusing.take_in()
    assert set(taken.taken) == {"east", "north"}
    assert "rejected" in str(taken.absent["south"])


@pytest.mark.parametrize(("steps", "is_taken"), [(1, False), (2, True), (3, True), (4, False)])
def test_a_hospital_takes_as_many_steps_as_the_study_has_place_for(
    steps: int, is_taken: bool, tmp_path: Path, study_with
) -> None:
    training = {"steps": 3, "fewest_steps": 2, "lr": 0.1, "lot": "all"}
    federation = Federation(tmp_path, study_with(training=training))
    budget = {"epsilon": 8, "delta": 1e-3}
    federation.say(
        "south", "join", 0, kind="acceptance", steps=steps, declared_training=15,
        declared_patients=20, budget=budget, charges=0, version="0.1.0", code_sha256=HASH,
    )  # fmt: skip
    answers = statements.answers(federation.run, 0, "join", ("south",))
    assert ("south" in answers.taken) == is_taken


def test_the_cost_of_fewer_steps_is_that_of_the_hospitals_own(tmp_path: Path, study_with) -> None:
    training = {"steps": 2, "fewest_steps": 1, "lr": 0.1, "lot": "all"}
    federation = Federation(tmp_path, study_with(training=training))
    slow = declaring(federation.run.description.participants["south"], steps=1)
    federation.run = federation.run.with_participants(
        {**federation.run.description.participants, "south": slow}, {}
    )
    for site in SITES:
        federation.release(site)  # south's as if it had taken two
    assert "not the study's" in str(federation.take_in().absent["south"])


def test_a_model_that_was_laid_down_before_an_interruption_stays_the_rounds(
    federation: Federation,
) -> None:
    first, second = federation.change(0.1), federation.change(0.2)
    sha256 = global_model.publish_model(federation.run, 1, first)
    assert global_model.publish_model(federation.run, 1, second) == sha256
    stored = checkpoints.read(federation.run.model_path(1), sha256)
    assert all(torch.equal(stored[name], first[name]) for name in first)


@pytest.mark.parametrize("share", [0.98, 1.02])
def test_under_privacy_trained_weights_move_as_far_as_the_mechanism_can_and_no_further(
    share: float, tmp_path: Path, study_with
) -> None:
    """Steps times rate times (clip norm and noise), with the momentum of the steps before."""
    federation = Federation(tmp_path, study_with(distillation=None, export="weights"))
    for site in ("east", "north"):
        federation.release(site, content="weights")
    manifest = federation.take_in().taken["north"].statement
    bound = releases.largest_change(federation.run, manifest)
    numel = sum(p.numel() for p in federation.change().values())
    mechanism = mechanism_for(federation.run.study.privacy, rounds=2, steps=2, lot=None, declared=15)
    assert bound == pytest.approx(0.1 * (1 + 1 + 0.9) * mechanism.longest_step(numel))
    assert bound < 100
    again = Federation(tmp_path / "again", federation.run.study)
    for site in ("east", "north"):
        again.release(site, content="weights")
    again.release("south", again.change(share * bound / numel**0.5), content="weights")
    taken = again.take_in()
    assert ("south" in taken.taken) == (share < 1)
    if share > 1:
        assert "a norm of at most" in str(taken.absent["south"])


def test_without_privacy_a_study_states_how_far_a_change_may_move(tmp_path: Path, study_with) -> None:
    privacy = {"privacy": {"mode": "none"}, "distillation": None, "export": "weights"}
    assert study_with(**privacy).largest_change == 1000
    assert study_with(**privacy, largest_change=3).largest_change == 3


def test_releases_in_eight_bits_are_averaged_as_what_they_stand_for(tmp_path: Path, study_with) -> None:
    federation = Federation(tmp_path, study_with(release_bits=8))
    shapes = {name: list(tensor.shape) for name, tensor in federation.change().items()}
    rng, stand_for = torch.Generator().manual_seed(3), []
    for site in ("east", "north"):
        change = {name: 0.01 * torch.randn(shape, generator=rng) for name, shape in shapes.items()}
        packed = to_eight_bits(change, rng)
        stand_for.append({name: packed[name].float() * packed[f"{name}/scale"] for name in shapes})
        federation.release(site, packed, tensors=shapes)
    federation.release("south")  # in 32 bits
    taken = federation.take_in()
    assert set(taken.taken) == {"east", "north"}
    assert "in eight bits" in str(taken.absent["south"])
    model = aggregation.aggregate(federation.run, 1, federation.base, taken)
    for name, tensor in federation.run.model(federation.base).items():
        expected = tensor + (stand_for[0][name] + stand_for[1][name]) / 2
        assert torch.allclose(model[name], expected, atol=1e-7)
