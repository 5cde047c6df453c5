"""A hospital's acts, with a real ledger, outbox and exchange, and without Prefect."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import safetensors.torch
import torch
from coordinator import Coordinator, first_model
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from models import checkpoints
from models import params as P
from models.files import sha256_of
from models.settings.metrics import SPREAD, metric_names
from models.strategies import STRATEGIES, Strategy, fed_avg
from privacy.accounting import epsilon
from privacy.ledger import Charge, ClockWentBack
from privacy.mechanisms import mechanism_for
from privacy.optimizer import PatientOptimizer
from privacy.signing import public_hex
from sites.datasets.medmnist import make_hospitals
from sites.datasets.public_sets import PICTURES
from sites.exchange.exchange import Exchange
from sites.exchange.phases import Phase
from sites.hospital import Hospital
from sites.listing.pseudonyms import pseudonym, pseudonym_key
from sites.orders import Order
from sites.protocol.dispatch import carry_out
from sites.yaml_files import ConfigError


def test_a_contribution_is_charged_signed_in_the_outbox_and_finite(
    hospital: Hospital, coordinator_of, study_with
) -> None:
    coordinator = coordinator_of(study_with())
    base = coordinator.publish(0, first_model(coordinator.study))
    manifest = coordinator.order(hospital, "contribute", 1)
    assert manifest.kind == "release"
    assert manifest.content == "student"
    assert manifest.base_sha256 == base
    assert manifest.noise == "test"
    assert manifest.declared_training == 15
    (events,) = hospital.ledger.histories()
    assert manifest.epsilon == pytest.approx(epsilon(events, 1e-3))
    assert set(manifest.epsilon_reported) == {"prv", "pld"}
    for reported in manifest.epsilon_reported.values():
        assert reported == pytest.approx(manifest.epsilon, rel=0.02)
    change = hospital.outbox.tensors(manifest.payload_sha256).read_bytes()
    assert len(change) == manifest.payload_bytes
    actions = [e.action for e in hospital.ledger.entries()]
    assert actions == ["resolve", "reserve", "start", "settle"]


def test_asked_again_a_hospital_lays_down_the_same_bytes_and_pays_once(
    hospital: Hospital, coordinator_of, study_with
) -> None:
    coordinator = coordinator_of(study_with())
    coordinator.publish(0, first_model(coordinator.study))
    first = coordinator.order(hospital, "contribute", 1)
    spent = hospital.ledger.spent(1e-3)
    assert coordinator.order(hospital, "contribute", 1) == first
    assert hospital.ledger.spent(1e-3) == spent


def test_two_rounds_cost_what_two_events_cost(hospital: Hospital, coordinator_of, study_with) -> None:
    coordinator = coordinator_of(study_with())
    for round in (1, 2):
        coordinator.publish(round - 1, first_model(coordinator.study))
        manifest = coordinator.order(hospital, "contribute", round)
    assert manifest.epsilon == pytest.approx(20, rel=1e-3)


@pytest.mark.parametrize(
    ("phase", "round"),
    [
        ("contribute", 0),
        ("contribute", 3),
        ("join", 3),
        ("evaluate", 3),
        ("evaluate", 1),
        ("compare", 1),
    ],
)
def test_an_order_outside_the_studys_rounds_is_refused_and_costs_nothing(
    phase: Phase, round: int, hospital: Hospital, coordinator_of, study_with
) -> None:
    coordinator = coordinator_of(study_with(rounds=2, evaluation={"every": 2}))
    coordinator.publish(0, first_model(coordinator.study))
    coordinator.publish(1, first_model(coordinator.study))
    refusal = coordinator.order(hospital, phase, round)
    assert refusal.kind == "refusal"
    assert f"round {round}" in refusal.reason
    assert not hospital.ledger.charges()


def test_a_run_spends_at_most_what_its_study_declares(
    hospital: Hospital, coordinator_of, study_with, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sites.protocol.dispatch.check_round", lambda _: None)  # the ledger alone
    coordinator = coordinator_of(study_with())
    for round in (1, 2, 3):
        coordinator.publish(round - 1, first_model(coordinator.study))
        answer = coordinator.order(hospital, "contribute", round)
    assert "Expected epsilon of at most 20" in answer.reason
    assert hospital.ledger.spent(1e-3) == pytest.approx(20, rel=1e-3)


def first_patient(hospital: Hospital, group: str) -> str:
    key = pseudonym_key(hospital.state)
    return next(
        case.patient
        for case in hospital.cases
        if pseudonym(key, case.patient) in getattr(hospital.eligible, group)
    )


def test_every_eligible_patient_is_charged_whatever_his_images_show(
    hospital: Hospital, coordinator_of, study_with
) -> None:
    broken = first_patient(hospital, "training")
    for case in hospital.cases:
        if case.patient == broken:
            (hospital.folder / case.image).write_bytes(b"no image")
    coordinator = coordinator_of(study_with())
    coordinator.publish(0, first_model(coordinator.study))
    assert coordinator.order(hospital, "contribute", 1).kind == "release"
    assert hospital.ledger.patients() == hospital.eligible.training
    trained = {patient.pseudonym for patient in hospital.cohort(coordinator.study).training}
    assert trained < hospital.eligible.training


def test_a_patient_who_withdraws_is_in_no_later_event_and_what_he_spent_stays(
    hospital: Hospital, coordinator_of, study_with
) -> None:
    coordinator = coordinator_of(study_with())
    coordinator.publish(0, first_model(coordinator.study))
    coordinator.order(hospital, "contribute", 1)
    left = first_patient(hospital, "training")
    gone = {left, first_patient(hospital, "evaluation")}
    (hospital.folder / "excluded.csv").write_text("subject\n" + "\n".join(sorted(gone)) + "\n")
    names = {pseudonym(pseudonym_key(hospital.state), patient) for patient in gone}
    cohort = hospital.cohort(coordinator.study)
    assert not names & {p.pseudonym for p in (*cohort.training, *cohort.evaluation)}
    coordinator.publish(1, first_model(coordinator.study))
    coordinator.order(hospital, "contribute", 2)
    histories = sorted(map(len, hospital.ledger.histories()))
    assert histories == [1, 2]
    for name, rounds in ((left, [1]), (first_patient(hospital, "training"), [1, 2])):
        known = pseudonym(hospital.pseudonym_key, name)
        assert [charge.round for charge in hospital.ledger.charges_of(known)] == rounds
    assert names & hospital.ledger.patients()


def test_who_withdraws_between_a_charge_and_its_training_does_not_train(
    hospital: Hospital, coordinator_of, study_with
) -> None:
    coordinator = coordinator_of(study_with())
    coordinator.publish(0, first_model(coordinator.study))
    mechanism = mechanism_for(coordinator.study.privacy, rounds=2, steps=2, lot=None, declared=15)
    charge = Charge("small", "small-1", 1, "contribute", mechanism.event)
    hospital.ledger.reserve(charge, hospital.eligible.training)
    (hospital.folder / "excluded.csv").write_text(f"subject\n{first_patient(hospital, 'training')}\n")
    assert coordinator.order(hospital, "contribute", 1).kind == "release"
    (charged,) = [e for e in hospital.ledger.entries() if e.action == "reserve"]
    assert charged.charge == charge
    assert len(hospital.eligible.training) == len(hospital.ledger.patients()) - 1


def test_while_a_clock_has_gone_back_nothing_is_spent_and_the_same_order_stays_good(
    hospital: Hospital, coordinator_of, study_with, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = coordinator_of(study_with())
    for round in (0, 1):
        coordinator.publish(round, first_model(coordinator.study))
    coordinator.order(hospital, "contribute", 1)
    spent, now = hospital.ledger.spent(1e-3), time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    with pytest.raises(ClockWentBack, match="Expected a time after"):
        coordinator.order(hospital, "contribute", 2)
    assert hospital.ledger.spent(1e-3) == spent
    monkeypatch.undo()
    assert coordinator.order(hospital, "contribute", 2).kind == "release"


@pytest.mark.parametrize("content", ["", "name\nx\n", "subject\n,\n", "subject\n\xff"])
def test_a_list_of_excluded_patients_in_another_form_stops_everything(
    hospital: Hospital, content: str
) -> None:
    (hospital.folder / "excluded.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match="expected the columns subject|can't be read"):
        _ = hospital.eligible


def test_an_excluded_name_that_is_not_listed_is_reported_without_the_name(
    hospital: Hospital, caplog: pytest.LogCaptureFixture
) -> None:
    (hospital.folder / "excluded.csv").write_text("subject\nsomebody-else\n")
    _ = hospital.eligible
    assert "names a patient who is not in the list of scans" in caplog.text
    assert "somebody-else" not in caplog.text


def test_every_file_of_the_exchange_lies_in_the_outbox(
    hospital: Hospital, coordinator_of, study_with
) -> None:
    coordinator = coordinator_of(study_with())
    base = coordinator.publish(0, first_model(coordinator.study))
    for phase, round in (("join", 0), ("evaluate", 0), ("contribute", 1)):
        coordinator.order(hospital, phase, round)
    outbox = {path.stem for path in hospital.outbox.folder.iterdir()}
    root = Path(coordinator.exchange.url)
    files = [p for p in root.rglob("*") if p.is_file()]
    left = [p for p in files if p.name != base and p.parent.name != "models"]
    assert len(left) == 4
    assert {sha256_of(p.read_bytes()) for p in left} <= outbox
    recorded = {e.file for e in hospital.ledger.entries() if e.file}
    assert len(recorded) == 3 and recorded <= outbox


def test_nothing_that_leaves_names_a_patient_or_a_true_count(
    hospital: Hospital, coordinator_of, study_with
) -> None:
    coordinator = coordinator_of(study_with())
    coordinator.publish(0, first_model(coordinator.study))
    for phase, round in (("join", 0), ("evaluate", 0), ("contribute", 1)):
        coordinator.order(hospital, phase, round)
    cohort = hospital.cohort(coordinator.study)
    secrets = ["patient_", "phantom_", *(p.pseudonym for p in (*cohort.training, *cohort.evaluation))]
    for path in hospital.outbox.folder.glob("*.json"):
        text = path.read_text()
        assert not any(secret in text for secret in secrets)
        counts = {v for k, v in json.loads(text)["statement"].items() if "declared" in k}
        assert counts <= {20, 15}


def test_a_hospital_that_was_put_right_takes_part_in_a_later_attempt(
    hospital: Hospital, coordinator_of, study_with, edit
) -> None:
    coordinator = coordinator_of(study_with())
    coordinator.publish(0, first_model(coordinator.study))
    edit(hospital.folder / "site.yaml", min_patients=1000)
    strict = Hospital.open(hospital.folder)
    assert coordinator.order(strict, "contribute", 1).kind == "refusal"
    assert coordinator.order(hospital, "contribute", 1).kind == "refusal"  # the same attempt
    assert coordinator.order(hospital, "contribute", 1, attempt=2).kind == "release"


def test_a_recorded_release_is_not_handed_to_a_stranger_or_another_exchange(
    hospital: Hospital, coordinator_of, study_with, tmp_path: Path
) -> None:
    coordinator = coordinator_of(study_with())
    coordinator.publish(0, first_model(coordinator.study))
    coordinator.order(hospital, "contribute", 1)
    honest_key, honest_exchange = coordinator.key, coordinator.exchange
    coordinator.exchange = Exchange(str(tmp_path / "elsewhere"))
    refusal = coordinator.order(hospital, "contribute", 1, attempt=2)
    assert "another study or another exchange" in refusal.reason
    coordinator.key, coordinator.exchange = Ed25519PrivateKey.generate(), Exchange(str(tmp_path / "e2"))
    assert "not the one" in coordinator.order(hospital, "contribute", 1, attempt=3).reason
    for folder in ("elsewhere", "e2"):
        assert not (tmp_path / folder / "objects").exists()
    coordinator.key, coordinator.exchange = honest_key, honest_exchange
    assert coordinator.order(hospital, "contribute", 1).kind == "release"


@pytest.mark.parametrize("fault", ["another network's", "not finite"])
def test_a_signed_model_that_cannot_be_trained_is_refused_before_anything_is_spent(
    fault: str, hospital: Hospital, coordinator_of, study_with
) -> None:
    coordinator = coordinator_of(study_with())
    model = dict(first_model(coordinator.study))
    name = min(model)
    model[name] = torch.zeros(7) if fault == "another network's" else model[name] * float("nan")
    coordinator.publish(0, model)
    assert "can't be trusted" in coordinator.order(hospital, "contribute", 1).reason
    assert not hospital.ledger.charges()


def test_a_study_whose_images_its_network_cannot_take_is_refused_when_it_would_join(
    hospital: Hospital, coordinator_of, study_with
) -> None:
    network = {"name": "UNet", "channels": [4, 4, 4, 4]}
    coordinator = coordinator_of(study_with(network=network, preprocessing={"shape": [8, 8, 8]}))
    assert "cannot train on images of its shape" in coordinator.order(hospital, "join", 0).reason


def test_a_study_cannot_choose_labels_to_learn_who_has_them(
    hospital: Hospital, coordinator_of, study_with
) -> None:
    task = {"kind": "segmentation", "dims": 3, "labels": {1: "head"}}
    coordinator = coordinator_of(study_with(task=task))
    refusal = coordinator.order(hospital, "join", 0)
    assert "differ from those of the hospital's data" in refusal.reason


def test_later_manifests_say_how_many_releases_had_no_privacy(
    hospital: Hospital, coordinator_of, study_with, edit
) -> None:
    edit(hospital.folder / "site.yaml", plain_studies="allow")
    lax = Hospital.open(hospital.folder, test_noise=1)
    coordinator = coordinator_of(
        study_with(privacy={"mode": "none"}, export="weights", distillation=None)
    )
    coordinator.publish(0, first_model(coordinator.study))
    coordinator.order(lax, "contribute", 1)
    coordinator.study, coordinator.run = study_with(), "small-2"
    coordinator.publish(0, first_model(coordinator.study))
    assert coordinator.order(lax, "contribute", 1).plain_releases == 1


def test_a_refused_round_spends_nothing(hospital: Hospital, coordinator_of, study_with, edit) -> None:
    edit(hospital.folder / "site.yaml", min_patients=1000)
    strict = Hospital.open(hospital.folder)
    coordinator = coordinator_of(study_with())
    coordinator.publish(0, first_model(coordinator.study))
    assert coordinator.order(strict, "contribute", 1).kind == "refusal"
    assert strict.ledger.spent(1e-3) == 0
    assert not strict.ledger.charges()


@pytest.mark.parametrize("fault", ["missing", "another signer", "another study", "changed bytes"])
def test_a_global_model_that_cannot_be_trusted_is_refused_before_anything_is_spent(
    fault: str, hospital: Hospital, coordinator_of, study_with
) -> None:
    coordinator = coordinator_of(study_with())
    honest_key, honest_study = coordinator.key, coordinator.study
    if fault == "another signer":
        coordinator.key = Ed25519PrivateKey.generate()
    if fault == "another study":
        coordinator.study = study_with(seed=9)
    if fault != "missing":
        sha256 = coordinator.publish(0, first_model(honest_study))
    if fault == "changed bytes":
        path = Path(coordinator.exchange.url) / "objects" / "coordinator" / sha256
        path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    coordinator.key, coordinator.study = honest_key, honest_study
    answer = coordinator.order(hospital, "contribute", 1)
    assert answer.kind == "refusal"
    assert "global model" in answer.reason
    assert not hospital.ledger.charges()


def test_another_coordinator_is_refused_until_the_hospital_says_otherwise(
    hospital: Hospital, coordinator_of, study_with
) -> None:
    assert coordinator_of(study_with()).order(hospital, "join", 0).kind == "acceptance"
    stranger = coordinator_of(study_with())
    stranger.run = "small-2"
    refusal = stranger.order(hospital, "join", 0)
    assert "not the one that this hospital knows" in refusal.reason
    (hospital.state / "keys" / "coordinator.pub").unlink()
    stranger.run = "small-3"
    assert stranger.order(hospital, "join", 0).kind == "acceptance"


@pytest.mark.parametrize(
    ("changes", "published"),
    [({}, True), ({"metrics": "withheld"}, False), ({"min_evaluation_patients": 1000}, False)],
)
def test_metrics_leave_as_the_policy_says(
    changes: dict[str, object], published: bool, hospital: Hospital, coordinator_of, study_with, edit
) -> None:
    edit(hospital.folder / "site.yaml", **changes)
    coordinator = coordinator_of(study_with())
    coordinator.publish(0, first_model(coordinator.study))
    scores = coordinator.order(Hospital.open(hospital.folder), "evaluate", 0)
    expected = {"dice", "dice/head", "dice/tail", "hd95_mm", "surface_dice"} if published else set()
    assert set(scores.metrics) == expected
    assert scores.metrics_policy == ("exact" if published else "withheld")


def test_whoever_has_trained_never_evaluates_whatever_the_policy_says_later(
    hospital: Hospital, coordinator_of, study_with, edit
) -> None:
    coordinator = coordinator_of(study_with())
    coordinator.publish(0, first_model(coordinator.study))
    coordinator.order(hospital, "contribute", 1)
    trained = hospital.eligible.training
    edit(hospital.folder / "site.yaml", evaluation_fraction=0.9)
    changed = Hospital.open(hospital.folder, test_noise=1)
    cohort = changed.cohort(coordinator.study)
    assert trained
    assert changed.eligible.training == trained
    assert {patient.pseudonym for patient in cohort.training} <= trained
    assert not {patient.pseudonym for patient in cohort.evaluation} & trained


def test_noised_metrics_are_charged_to_the_evaluation_patients_and_have_intervals(
    hospital: Hospital, coordinator_of, study_with, edit
) -> None:
    noised = {"epsilon": 5.0, "evaluations": 2}
    edit(hospital.folder / "site.yaml", metrics="noised", noised_metrics=noised)
    shy = Hospital.open(hospital.folder, test_noise=1)
    coordinator = coordinator_of(study_with())
    for round in (0, 1):
        coordinator.publish(round, first_model(coordinator.study))
        scores = coordinator.order(shy, "evaluate", round)
        assert scores.metrics_policy == "noised"
        ends = {
            f"{end}/{name}" for end in ("low", "high") for name in ("dice", "dice-head", "dice-tail")
        }
        assert set(scores.metrics) == {"dice", "dice/head", "dice/tail"} | ends
        assert all(abs(value) < 10 for value in scores.metrics.values())
        assert coordinator.order(shy, "evaluate", round) == scores
    coordinator.publish(2, first_model(coordinator.study))
    assert coordinator.order(shy, "evaluate", 2).metrics_policy == "withheld"
    assert shy.ledger.spent(1e-3) == pytest.approx(5.0, rel=1e-3)
    assert {charge.purpose for charge in shy.ledger.charges()} == {"evaluate"}
    assert shy.ledger.patients() == shy.eligible.evaluation


def test_a_teacher_of_another_network_stays_and_its_student_leaves(
    hospital: Hospital, coordinator_of, study_with
) -> None:
    teacher = {"name": "SegResNet", "blocks_down": [1, 1]}
    distillation = {"transfer": "synthetic", "steps": 4, "images": 16, "teacher": teacher}
    coordinator = coordinator_of(study_with(distillation=distillation))
    model = first_model(coordinator.study)
    coordinator.publish(0, model)
    manifest = coordinator.order(hospital, "contribute", 1)
    assert set(manifest.tensors) == set(model)
    private = checkpoints.StoredParams(hospital.stored("teacher", "small-1", 1))
    assert set(private) != set(model)


def test_the_weights_of_a_plain_study_leave_only_where_the_policy_allows(
    hospital: Hospital, coordinator_of, study_with, edit
) -> None:
    plain = study_with(privacy={"mode": "none"}, export="weights", distillation=None)
    coordinator = coordinator_of(plain)
    coordinator.publish(0, first_model(plain))
    assert "plain_studies" in coordinator.order(hospital, "contribute", 1).reason
    edit(hospital.folder / "site.yaml", plain_studies="allow")
    coordinator.run = "small-2"
    coordinator.publish(0, first_model(plain))
    manifest = coordinator.order(Hospital.open(hospital.folder), "contribute", 1)
    assert (manifest.event, manifest.epsilon, manifest.noise) == (None, None, "none")


def test_layers_that_a_strategy_keeps_local_stay_at_the_hospital_from_round_to_round(
    hospital: Hospital, coordinator_of, study_with, monkeypatch: pytest.MonkeyPatch
) -> None:
    def local_bias() -> Strategy:
        return replace(fed_avg(), is_local=lambda name: name.endswith("bias"))

    monkeypatch.setitem(STRATEGIES, "local_bias", local_bias)
    coordinator = coordinator_of(study_with(strategy={"name": "local_bias"}))
    model = first_model(coordinator.study)
    biases = {name for name in model if name.endswith("bias")}
    for round in (1, 2):
        coordinator.publish(round - 1, model)
        manifest = coordinator.order(hospital, "contribute", round)
        assert set(manifest.tensors) == set(model) - biases
    first, second = (
        checkpoints.StoredParams(hospital.stored("local", "small-1", round)) for round in (1, 2)
    )
    assert set(first) == set(second) == biases
    assert not all(torch.equal(first[name], model[name]) for name in biases)
    assert not all(torch.equal(first[name], second[name]) for name in biases)


def test_an_adaptive_clip_norm_goes_on_where_the_round_before_left_it_and_stays_in_the_hospital(
    hospital: Hospital, coordinator_of, study_with
) -> None:
    clip = {"kind": "adaptive", "norm": 100.0, "rate": 0.5}
    coordinator = coordinator_of(study_with(privacy={**study_with().privacy.model_dump(), "clip": clip}))
    norms = []
    for round in (1, 2):
        coordinator.publish(round - 1, first_model(coordinator.study))
        manifest = coordinator.order(hospital, "contribute", round)
        stored = checkpoints.StoredParams(hospital.stored("clip", "small-1", round))
        norms.append(float(stored["norm"]))
    assert 100 > norms[0] > norms[1]
    assert manifest.epsilon == pytest.approx(20, rel=1e-3)
    assert not {"clip", "norm"} & set(manifest.model_dump())


def test_a_hospital_tells_of_its_scans_as_its_policy_says(
    hospital: Hospital, coordinator_of, study_with, edit
) -> None:
    coordinator = coordinator_of(study_with())
    for number, (statistics, told) in enumerate(
        [
            ("withheld", 0),
            ({"kind": "suppressed", "smallest": 3}, 6),
            ({"kind": "noised", "epsilon": 1}, 6),
        ]
    ):
        edit(hospital.folder / "site.yaml", statistics=statistics)
        coordinator.run = f"small-{number}"
        opened = Hospital.open(hospital.folder, test_noise=1)
        statement = coordinator.order(opened, "survey", 0)
        assert statement.kind == "survey"
        assert len(statement.histograms) == told
        assert statement.statistics_policy == (statistics if told == 0 else statistics["kind"])
        assert coordinator.order(opened, "survey", 0) == statement
    assert statement.event is not None
    assert hospital.ledger.spent(1e-3) == pytest.approx(1, rel=1e-3)
    charged = hospital.ledger.patients()
    assert charged == hospital.eligible.training | hospital.eligible.evaluation


def test_a_survey_that_the_budget_can_not_pay_is_refused_and_nothing_is_spent(
    hospital: Hospital, coordinator_of, study_with, edit
) -> None:
    edit(hospital.folder / "site.yaml", statistics={"kind": "noised", "epsilon": 51})
    opened = Hospital.open(hospital.folder, test_noise=1)
    statement = coordinator_of(study_with()).order(opened, "survey", 0)
    assert statement.kind == "refusal"
    assert opened.ledger.spent(1e-3) == 0


def test_patches_changes_and_another_spacing_train_privately_and_are_scored_on_the_scans_own_voxels(
    hospital: Hospital, coordinator_of, study_with
) -> None:
    preprocessing = {
        "shape": [16, 16, 16], "spacing_mm": [1.6, 1.6, 1.6], "crop": "foreground",
        "fit": {"kind": "patches", "per_scan": 2},
        "augmentation": {"copies": 2, "flip": [0], "rotate_deg": 10, "noise": 0.05},
    }  # fmt: skip
    coordinator = coordinator_of(study_with(preprocessing=preprocessing))
    coordinator.publish(0, first_model(coordinator.study))
    manifest = coordinator.order(hospital, "contribute", 1)
    assert manifest.kind == "release", manifest
    assert manifest.epsilon == pytest.approx(epsilon(hospital.ledger.histories()[0], 1e-3))
    scores = coordinator.order(hospital, "evaluate", 0)
    assert set(scores.metrics) == {"dice", "dice/head", "dice/tail", "hd95_mm", "surface_dice"}


@pytest.mark.parametrize("export", ["student", "weights"])
def test_pictures_of_several_labels_train_privately_and_are_scored(
    export: str, tmp_path: Path, coordinator_of, study_with, edit
) -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 14)) < 0.3).astype(np.uint8)
    images = rng.integers(0, 255, (60, 28, 28), dtype=np.uint8)
    np.savez_compressed(tmp_path / "chest.npz", train_images=images, train_labels=labels)
    (ward,) = make_hospitals(
        tmp_path / "chest.npz", tmp_path / "w", 1, PICTURES["chest"], skew=1, seed=0
    )
    edit(ward / "site.yaml", budget={"epsilon": 50.0, "delta": 1e-3})
    opened = Hospital.open(ward)
    names = dict(PICTURES["chest"].labels)
    coordinator = coordinator_of(
        study_with(
            task={"kind": "classification", "dims": 2, "labels": names, "multi_label": True},
            network={"name": "resnet10", "width": 8},
            preprocessing={"shape": [32, 32], "augmentation": {"flip": [1]}},
            export=export,
            **({"distillation": None} if export == "weights" else {}),
        )
    )
    coordinator.publish(0, first_model(coordinator.study))
    assert coordinator.order(opened, "join", 0).kind == "acceptance"
    manifest = coordinator.order(opened, "contribute", 1)
    assert manifest.kind == "release", manifest
    scores = coordinator.order(opened, "evaluate", 0)
    spread = {name for name in scores.metrics if name.partition("/")[0] in SPREAD}
    assert scores.metrics.keys() - spread == metric_names(coordinator.study.task)
    assert scores.metrics.keys() <= coordinator.study.metric_names


@pytest.mark.parametrize("kind", ["segmentation", "classification"])
def test_adversarial_studies_train_privately_and_tell_how_the_model_stands_an_attack(
    kind: str, hospital: Hospital, coordinator_of, study_with, edit
) -> None:
    attack = {"kind": "pgd", "radius": 0.2, "steps": 2}
    changes: dict[str, object] = {
        "training": {"steps": 1, "lr": 0.1, "lot": "all", "adversarial": attack},
        "evaluation": {"attack": attack},
    }
    if kind == "classification":
        rows = ["patient,image,label"]
        for number, case in enumerate(hospital.cases):
            rows.append(f"{case.patient},{case.image},{number % 2}")
        (hospital.folder / "dataset.json").unlink()
        (hospital.folder / "cases.csv").write_text("\n".join(rows))
        (hospital.folder / "labels.csv").write_text("value,name\n0,well\n1,ill\n")
        edit(hospital.folder / "site.yaml", networks=["DenseNet121"])
        changes["task"] = {"kind": kind, "dims": 3, "labels": {0: "well", 1: "ill"}}
        changes["network"] = {"name": "DenseNet121", "init_features": 16, "growth_rate": 8}
        changes["preprocessing"] = {"shape": [32, 32, 32]}
    coordinator = coordinator_of(study_with(**changes))
    coordinator.publish(0, first_model(coordinator.study))
    opened = Hospital.open(hospital.folder, test_noise=1)
    assert coordinator.order(opened, "contribute", 1).kind == "release"
    scores = coordinator.order(opened, "evaluate", 0)
    assert scores.metrics.keys() <= coordinator.study.metric_names
    name = "dice" if kind == "segmentation" else "calibration_error"
    assert f"attacked/{name}" in scores.metrics
    assert "attacked/dice/head" not in scores.metrics


def test_scaffolds_variates_follow_from_what_was_released_and_correct_the_next_round(
    hospital: Hospital, coordinator_of, study_with
) -> None:
    training = {"steps": 2, "lr": 0.1, "momentum": 0.5, "lot": "all"}
    coordinator = coordinator_of(study_with(strategy={"name": "scaffold"}, training=training))
    models, changes = [dict(first_model(coordinator.study))], []
    for round in (1, 2):
        coordinator.publish(round - 1, models[-1])
        manifest = coordinator.order(hospital, "contribute", round)
        data = hospital.outbox.tensors(manifest.payload_sha256).read_bytes()
        changes.append(safetensors.torch.load(data))
        other = {name: 0.5 * change for name, change in changes[-1].items()}  # a second hospital's
        moved = {name: (changes[-1][name] + other[name]) / 2 for name in other}
        models.append(P.add(models[-1], moved))
    first, second = (
        checkpoints.StoredParams(hospital.stored("variate", "small-1", round)) for round in (1, 2)
    )
    length = 0.1 * (1 + 1.5)  # two steps; the second has half of the first in it
    for name in models[0]:
        own = -changes[0][name] / length
        common = -(models[1][name] - models[0][name]) / length
        assert torch.allclose(first[name], own, atol=1e-5)
        assert torch.allclose(second[name], own - common - changes[1][name] / length, atol=1e-4)
    plain = replace_strategy(coordinator_of, hospital, study_with, training, models)
    assert not all(torch.allclose(plain[n], changes[1][n], atol=1e-6) for n in plain)


def replace_strategy(coordinator_of, hospital, study_with, training, models) -> P.Params:
    """Return the second round's change without a correction, from the same models."""
    coordinator = coordinator_of(study_with(training=training, name="plain"))
    coordinator.run = "small-2"
    (hospital.state / "keys" / "coordinator.pub").unlink()
    for round in (1, 2):
        coordinator.publish(round - 1, models[round - 1])
        manifest = coordinator.order(hospital, "contribute", round)
    return safetensors.torch.load_file(hospital.outbox.tensors(manifest.payload_sha256))


class Killed(Exception):
    """Not one that a hospital handles."""


@pytest.fixture
def kept_at_once(hospital: Hospital, edit) -> Hospital:
    """The hospital with a policy that keeps each step of an unfinished training."""
    edit(hospital.folder / "site.yaml", device={"checkpoint_s": 0})
    return Hospital.open(hospital.folder, test_noise=1)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """A function that returns how many private steps were taken since it was last asked."""
    steps: list[None] = []
    step = PatientOptimizer.step
    monkeypatch.setattr(PatientOptimizer, "step", lambda self: steps.append(step(self)))

    def count() -> int:
        found = len(steps)
        steps.clear()
        return found

    return count


def killed_after(step: int, coordinator: Coordinator, hospital: Hospital) -> None:
    """Carry a contribution out up to a step of the training."""

    def progress(what: str, done: int, of: int) -> None:
        if (what, done) == ("train", step):
            raise Killed

    order = Order(
        phase="contribute", study=coordinator.study, site=hospital.name, run=coordinator.run, round=1,
        attempt=1, exchange=coordinator.exchange.url, coordinator=public_hex(coordinator.key),
    )  # fmt: skip
    with pytest.raises(Killed):
        carry_out(hospital, order, progress)


def test_a_killed_round_goes_on_where_its_training_stood_under_the_same_charge(
    kept_at_once: Hospital, coordinator_of, study_with, tmp_path: Path, taken
) -> None:
    training = {"steps": 5, "lr": 0.1, "lot": "all"}
    coordinator = coordinator_of(study_with(training=training))
    coordinator.publish(0, first_model(coordinator.study))
    undisturbed = Path(shutil.copytree(kept_at_once.folder, tmp_path / "undisturbed"))
    killed_after(3, coordinator, kept_at_once)
    assert taken() == 3
    manifest = coordinator.order(kept_at_once, "contribute", 1)
    assert taken() == 2
    assert not list((kept_at_once.state / "unfinished").rglob("*.safetensors"))
    assert len(kept_at_once.ledger.charges()) == 1
    other = replace(coordinator, exchange=Exchange(str(tmp_path / "other")))
    other.publish(0, first_model(coordinator.study))
    whole = other.order(Hospital.open(undisturbed, test_noise=1), "contribute", 1)
    assert whole.payload_sha256 == manifest.payload_sha256


def test_a_killed_round_begins_anew_where_a_patient_has_withdrawn_meanwhile(
    kept_at_once: Hospital, coordinator_of, study_with, taken
) -> None:
    coordinator = coordinator_of(study_with(training={"steps": 5, "lr": 0.1, "lot": "all"}))
    coordinator.publish(0, first_model(coordinator.study))
    killed_after(3, coordinator, kept_at_once)
    assert taken() == 3
    gone = kept_at_once.cohort(coordinator.study).training[0].pseudonym
    key = kept_at_once.pseudonym_key
    (name,) = {c.patient for c in kept_at_once.cases if pseudonym(key, c.patient) == gone}
    (kept_at_once.folder / "excluded.csv").write_text(f"subject\n{name}\n")
    assert coordinator.order(kept_at_once, "contribute", 1).kind == "release"
    assert taken() == 5
    assert len(kept_at_once.ledger.charges()) == 1


def test_a_killed_round_begins_anew_where_the_data_have_changed_meanwhile(
    kept_at_once: Hospital, coordinator_of, study_with, taken
) -> None:
    coordinator = coordinator_of(study_with(training={"steps": 5, "lr": 0.1, "lot": "all"}))
    coordinator.publish(0, first_model(coordinator.study))
    killed_after(3, coordinator, kept_at_once)
    assert taken() == 3
    for label in (kept_at_once.data / "labelsTr").iterdir():
        image = nib.load(label)
        swapped = np.asarray([0, 2, 1], np.uint8)[np.asarray(image.dataobj).astype(int)]
        nib.save(nib.Nifti1Image(swapped, image.affine), label)
    assert coordinator.order(kept_at_once, "contribute", 1).kind == "release"
    assert taken() == 5


def test_a_round_that_is_paid_for_goes_on_without_room_for_another(
    kept_at_once: Hospital, coordinator_of, study_with, edit
) -> None:
    coordinator = coordinator_of(study_with(training={"steps": 5, "lr": 0.1, "lot": "all"}))
    coordinator.publish(0, first_model(coordinator.study))
    killed_after(3, coordinator, kept_at_once)
    edit(kept_at_once.folder / "site.yaml", cache_mb=0, disk_mb=1)
    (kept_at_once.state / "filler").write_bytes(bytes(2**21))
    full = Hospital.open(kept_at_once.folder, test_noise=1)
    assert coordinator.order(full, "contribute", 1).kind == "release"
    coordinator.publish(1, first_model(coordinator.study))
    assert "disk" in coordinator.order(full, "contribute", 2).reason


def test_models_of_others_are_scored_where_study_and_policy_say_so_alone(
    hospital: Hospital, coordinator_of, study_with, edit
) -> None:
    edit(hospital.folder / "site.yaml", cross_site="allow")
    allowing = Hospital.open(hospital.folder, test_noise=1)
    plain = coordinator_of(study_with())
    refused = plain.order(allowing, "compare", 2)
    assert refused.kind == "refusal" and "compares no models" in refused.reason
    comparing = coordinator_of(study_with(evaluation={"cross_site": True}))
    comparing.run = "small-2"
    comparing.key = plain.key
    early = comparing.order(allowing, "compare", 1)
    assert early.kind == "refusal" and "in round 1" in early.reason
    told = comparing.order(allowing, "compare", 2)
    assert told.kind == "comparison" and told.metrics == {}  # nobody's model was named
    edit(hospital.folder / "site.yaml", cross_site="refuse")
    comparing.run = "small-3"
    silent = comparing.order(Hospital.open(hospital.folder, test_noise=1), "compare", 2)
    assert silent.kind == "comparison" and silent.models == {}
