"""The product's rounds against their slow readable twin: same patients, same noise, same model."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import fedavg_by_hand as by_hand
import numpy as np
import pytest
import torch
import yaml
from torch import nn

from flows.rounds.aggregation import aggregate
from flows.rounds.global_model import publish_model
from flows.rounds.membership import participants
from flows.rounds.recording import round_record
from flows.rounds.releases import accept_releases
from flows.rounds.statements import NO_ANSWERS, Answers, answers, order
from flows.runs.paths import Home
from flows.runs.records import RoundRecord
from flows.runs.run import Run
from flows.starts.first_model import untrained
from models import params as P
from privacy.noise.source import NoiseSource
from sites.hospital import Hospital
from sites.protocol.dispatch import carry_out
from sites.study import Study
from sites.training.examples import prepare

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "fedavg_by_hand.py"
DECLARED = {"east": 16, "north": 20, "south": 28}
"""Declared patients, unlike the true ones; three of four train."""
CASES = {
    "normalised": {"network": [4, 8, 16], "clip": {"kind": "normalised", "norm": 1.0}, "lot": "all"},
    "flat": {"network": [4, 8], "clip": {"kind": "flat", "norm": 0.8}, "lot": "all"},
    "sampled": {"network": [4, 8], "clip": {"kind": "flat", "norm": 0.8}, "lot": 6},
}
"""Patients' gradients begin with norms around 0.8, so `flat` clips some of them and not others."""


def product(folder: Path, study: Study, small_wards: Callable[[Path], Path]) -> SimpleNamespace:
    """Return what went into a run of the real hospitals and the coordinator, and each round's model."""
    wards = small_wards(folder / "wards")
    hospitals = {}
    for site, declared in DECLARED.items():
        path = wards / site / "site.yaml"
        policy = {**yaml.safe_load(path.read_text()), "declared_patients": declared}
        policy["sampled_steps"] = "refuse" if study.training.lot == "all" else "allow"
        path.write_text(yaml.safe_dump(policy))
        hospitals[site] = Hospital.open(wards / site, test_noise=3)
    home = Home(folder / "home")
    run = Run.create(home, study, {s: h.public_key for s, h in hospitals.items()}, home.exchange)
    run.begin_attempt()

    def ask(run: Run, round: int, phase: str) -> Answers:
        for site, hospital in hospitals.items():
            carry_out(hospital, order(run, round, phase, site), lambda *_: None)
        return answers(run, round, phase, sorted(hospitals))

    run = run.with_participants(participants(run, ask(run, 0, "join")), {})
    models = [dict(P.of(untrained(study)))]
    base = finish(run, 0, models[0], NO_ANSWERS)
    for round in range(1, study.rounds + 1):
        taken = accept_releases(run, round, base, ask(run, round, "contribute"))
        assert taken.taken.keys() == DECLARED.keys(), taken.left_out
        models.append(dict(aggregate(run, round, base, taken)))
        base = finish(run, round, models[-1], taken)
    return SimpleNamespace(study=study, hospitals=hospitals, models=models)


def finish(run: Run, round: int, model: P.Params, taken: Answers) -> RoundRecord:
    """Publish a round's model and record the round, without scores."""
    sha256 = publish_model(run, round, model)
    done = round_record(run, round, sha256, taken, NO_ANSWERS, 0)
    run.keep(done)
    return done


@pytest.fixture(scope="module", params=CASES)
def done(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, small_study, small_wards
) -> SimpleNamespace:
    case = CASES[request.param]
    changes = {
        "network": {"name": "UNet", "channels": case["network"]},
        "privacy": {**small_study["privacy"], "clip": case["clip"], "accountants": ["rdp"]},
        "training": {"steps": 3, "lr": 0.1, "momentum": 0.8, "lot": case["lot"], "microbatch": 4},
        "export": "weights",
        "distillation": None,
    }
    keys = {k: v for k, v in {**small_study, **changes}.items() if v is not None}
    return product(tmp_path_factory.mktemp("by-hand"), Study.model_validate(keys), small_wards)


def plan_of(study: Study) -> by_hand.Plan:
    """Return the study's numbers as the twin takes them."""
    privacy, training = study.privacy, study.training
    budget = by_hand.Budget(epsilon=privacy.epsilon, delta=privacy.delta)
    return by_hand.Plan(
        budget, study.rounds, training.steps, training.lr, training.momentum,
        privacy.clip.norm, privacy.clip.kind, training.lot_size,
    )  # fmt: skip


def hospitals_of(done: SimpleNamespace, round: int) -> list[by_hand.Hospital]:
    """Return the hospitals as the twin takes them, with the noise that they draw in a round."""
    found = []
    for site, hospital in sorted(done.hospitals.items()):
        patients = hospital.cohort(done.study).training
        examples = prepare(patients, done.study.preprocessing, torch.device("cpu"), seed=0)
        drawn = [examples.draw(i, 0) for i in range(len(examples))]
        noise = NoiseSource.for_test(3, f"{site} {done.study.sha256} {round}")
        prepared = [list(zip(images, labels[:, None], strict=True)) for images, labels in drawn]
        found.append(by_hand.Hospital(prepared, hospital.policy.declared_training, noise))
    return found


def network_before(done: SimpleNamespace, round: int) -> nn.Module:
    """Return the network with which both begin a round."""
    task = done.study.task
    network = done.study.network.build(task.dims, task.out_channels)
    P.load_into(network, done.models[round - 1])
    return network


def apart(a: P.Params, b: P.Params) -> float:
    """Return the greatest difference of a coordinate."""
    return max(float((a[name] - b[name]).abs().max()) for name in b)


def difference(
    done: SimpleNamespace, round: int, plan: by_hand.Plan, hospitals: list[by_hand.Hospital]
) -> float:
    """Return how far a coordinate is apart, at most, after a round of both from the same model."""
    twin = by_hand.federated_round(network_before(done, round), hospitals, plan)
    return apart(P.of(twin), done.models[round])


@pytest.mark.parametrize("round", [1, 2])
def test_the_products_round_is_the_one_written_out_by_hand(done: SimpleNamespace, round: int) -> None:
    hospitals = hospitals_of(done, round)
    assert {h.declared for h in hospitals} == {12, 15, 21}
    assert any(len(patient) == 2 for h in hospitals for patient in h.patients)
    moved = P.norm(P.subtract(done.models[round], done.models[round - 1]))
    assert moved > 0.1
    assert difference(done, round, plan_of(done.study), hospitals) < 1e-5


OTHER = {"flat": "normalised", "normalised": "flat"}
PLAN_SLIPS: dict[str, Callable[[by_hand.Plan], by_hand.Plan]] = {
    "a doubled clip norm": lambda plan: plan._replace(clip_norm=2 * plan.clip_norm),
    "the other clip": lambda plan: plan._replace(clip=OTHER[plan.clip]),
    "no momentum": lambda plan: plan._replace(momentum=0.0),
    "noise for one round alone": lambda plan: plan._replace(rounds=1),
}
HOSPITAL_SLIPS: dict[str, Callable[[by_hand.Hospital], by_hand.Hospital]] = {
    "another draw of the noise": lambda h: h._replace(noise=NoiseSource.for_test(4, str(h.declared))),
    "the true number of patients": lambda h: h._replace(declared=len(h.patients)),
    "scans for patients": lambda h: h._replace(patients=[[scan] for p in h.patients for scan in p]),
    "a patient less": lambda h: h._replace(patients=h.patients[:-1]),
}


@pytest.mark.parametrize("slip", PLAN_SLIPS)
def test_a_slip_in_the_plan_is_seen(done: SimpleNamespace, slip: str) -> None:
    plan = PLAN_SLIPS[slip](plan_of(done.study))
    assert difference(done, 1, plan, hospitals_of(done, 1)) > 1e-4


def test_noise_that_is_left_out_is_seen(done: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_hand, "grid_noise", lambda source, count, std, grid: np.zeros(count))
    assert difference(done, 1, plan_of(done.study), hospitals_of(done, 1)) > 1e-4


@pytest.mark.parametrize("slip", HOSPITAL_SLIPS)
def test_a_slip_at_the_hospitals_is_seen(done: SimpleNamespace, slip: str) -> None:
    hospitals = [HOSPITAL_SLIPS[slip](hospital) for hospital in hospitals_of(done, 1)]
    assert difference(done, 1, plan_of(done.study), hospitals) > 1e-4


def test_hospitals_that_all_count_alike_are_seen(done: SimpleNamespace) -> None:
    network, plan = network_before(done, 1), plan_of(done.study)
    changes = [by_hand.local_change(network, hospital, plan) for hospital in hospitals_of(done, 1)]
    means = [sum(each) / len(changes) for each in zip(*changes, strict=True)]
    alike = P.add(done.models[0], dict(zip(done.models[0], means, strict=True)))
    assert apart(alike, done.models[1]) > 1e-4


def test_the_script_trains_a_better_model_within_its_budget() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT)]
    printed = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=300
    ).stdout
    rows = re.findall(r"^round (\d+) +Dice ([\d.]+) +epsilon ([\d.]+)$", printed, re.MULTILINE)
    (_, before, _), *_, (_, after, spent) = rows
    assert float(after) > float(before) + 0.4
    assert float(spent) == pytest.approx(8, abs=0.005)


def test_the_script_stands_alone() -> None:
    source = SCRIPT.read_text()
    assert len(source.splitlines()) <= 120
    assert not re.search(r"^\s*(?:from|import) (?:flows|sites)\b", source, re.MULTILINE)
