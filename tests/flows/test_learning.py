"""Whole studies learn what they claim to: slow, on real schedules."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.metrics import compute_roc_auc

from flows.runs.paths import Home
from flows.runs.run import Run, runs_of
from flows.served_model import ServedModel
from models import params as P

ROOT = Path(__file__).parent.parent.parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_the_demo_ends_above_three_quarters_of_dice_and_its_start_on_three_seeds() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "demo.py", "--seeds", "0", "1", "2", "--json"]
    rows = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    for row in rows:
        assert row["dice_after"] >= 0.75, row
        assert row["rise"] > 0, row
        assert row["seconds"] < 300, row
        assert all(site["epsilon"] <= 8.0005 for site in row["sites"].values()), row


def train(study: str, data: str, source: Path, home: Path) -> Run:
    def wardround(*arguments: object) -> None:
        command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
        subprocess.run(command, cwd=home, check=True, timeout=1700)

    wardround("data", data, "--from", source, "--out", "wards")
    wardround("run", ROOT / "studies" / f"{study}.yaml")
    wardround("verify")
    (run,) = runs_of(Home(home))
    return run


def train_on_hippocampus(study: str, shared_data: Path, home: Path) -> Run:
    return train(study, "hippocampus", shared_data / "hippocampus", home)


@pytest.mark.parametrize(("study", "least"), [("pneumonia-plain", 0.97), ("pneumonia", 0.94)])
def test_unlike_hospitals_learn_to_tell_pneumonia_on_the_sets_own_validation_part(
    study: str, least: float, shared_data: Path, tmp_path: Path
) -> None:
    source = shared_data / "pneumoniamnist" / "pneumoniamnist_trainval.npz"
    run = train(study, "pneumonia", source, tmp_path)
    last = run.records()[-1]
    assert all(
        r.statement.epsilon is None or r.statement.epsilon <= 8.0005 for r in last.releases.values()
    )
    network = run.study.network.build(2, 2).eval()
    P.load_into(network, run.model(last))
    with np.load(source) as arrays:
        images, truth = arrays["val_images"].astype(np.float32), arrays["val_labels"].ravel()
    said = torch.from_numpy(ServedModel(run.study, network).predict(images))
    assert float(compute_roc_auc(said[:, 1], torch.from_numpy(truth))) >= least


def test_the_federation_without_privacy_learns_real_scans(shared_data: Path, tmp_path: Path) -> None:
    run = train_on_hippocampus("hippocampus-plain", shared_data, tmp_path)
    last = run.records()[-1]
    assert last.round <= 30
    assert last.quality["dice"] >= 0.86
    assert min(last.quality["dice/anterior"], last.quality["dice/posterior"]) >= 0.85


def test_the_federation_with_privacy_learns_real_scans_within_its_budget_and_students_lose_nothing(
    shared_data: Path, tmp_path: Path
) -> None:
    run = train_on_hippocampus("hippocampus", shared_data, tmp_path)
    last = run.records()[-1]
    assert last.round == run.study.rounds
    assert set(last.releases) == set(run.description.participants)
    assert all(7.99 < r.statement.epsilon <= 8.0005 for r in last.releases.values())
    assert last.quality["dice"] >= 0.55
    assert last.quality["student/dice"] >= last.quality["teacher/dice"] - 0.01


def test_a_robust_rule_holds_on_real_scans_where_two_of_seven_hospitals_lie(shared_data: Path) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "robustness.py", "--json", "--rounds", "10"]
    command += ["--strategies", "fed_avg", "coordinate_median", "--faults", "sign"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    dice = {row["strategy"]: row["dice"] for row in json.loads(done.stdout)["rows"]}
    assert dice["coordinate_median"] >= 0.7
    assert dice["fed_avg"] < 0.3
