"""Whose scan is it? Where models are sure of their own hospital's scans, and where they are not."""

import numpy as np
import pytest
import torch

from models import params as P
from models.objectives import build_task
from sites.audit.made_up import made_up_patient
from sites.audit.provenance import certainty, own_share
from sites.cohort import Patient
from sites.local_models import CPU, network_for
from sites.study import Study
from sites.training.examples import prepare


@pytest.fixture
def study(study_with) -> Study:
    task = {"kind": "classification", "dims": 2, "labels": {0: "no", 1: "yes"}}
    return study_with(
        task=task, network={"name": "resnet10", "width": 8}, preprocessing={"shape": [32, 32]},
        distillation=None, export="weights",
    )  # fmt: skip


def patients(study: Study, count: int) -> list[Patient]:
    rng = np.random.default_rng(1)
    return [made_up_patient(study, f"p{k}", rng, scale=20.0) for k in range(count)]


def test_certainty_is_the_mean_largest_probability_of_a_patients_scans(study: Study) -> None:
    network, task = network_for(study.network, study, CPU, None), build_task(study.task)
    seen = prepare(patients(study, 3), study.preprocessing, CPU, seed=0)
    due = [float(network(seen.draw(k, 0)[0]).softmax(1).max(1).values.mean().detach()) for k in range(3)]
    assert certainty(network, task, seen).tolist() == pytest.approx(due)


def test_the_shares_of_two_hospitals_add_up_for_the_same_scans(study: Study) -> None:
    torch.manual_seed(3)
    one = P.of(network_for(study.network, study, CPU, None))
    other = {name: value + 0.05 * torch.randn(value.shape) for name, value in one.items()}
    here, models = patients(study, 8), {"a": one, "b": other}
    shares = [own_share(study, models, site, here, CPU) for site in ("a", "b")]
    assert sum(shares) == pytest.approx(1.0)


def test_without_a_scan_that_can_be_read_the_answer_is_a_guess(study: Study) -> None:
    params = P.of(network_for(study.network, study, CPU, None))
    assert own_share(study, {"a": params, "b": params}, "a", [], CPU) == 0.5
