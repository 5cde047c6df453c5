"""Which hospital is a scan from? An attack on models' outputs alone."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from models.objectives import Task, build_task
from models.params import Params
from sites.audit.made_up import made_up_patient
from sites.cohort import Patient
from sites.local_models import network_for
from sites.study import Study
from sites.training.examples import Examples, prepare

MADE_UP = 16
"""Made-up scans by which each model's certainty is levelled."""


def own_share(
    study: Study,
    models: Mapping[str, Params],
    own: str,
    patients: Sequence[Patient],
    device: torch.device,
) -> float:
    """Return the share of patients whose scans the own hospital's model is surest of.

    The attacker has each hospital's released model and sees its answers to a scan, not the truth: the
    scan is said to be from the hospital whose model is most certain, more than it is of made-up scans.
    By guessing, and without patients, it is one over the number of models.

    Args:
        models: each hospital's released model.
        patients: patients of `own` who never train.
    """
    if not patients:
        return 1 / len(models)
    fixed = study.preprocessing.without_draws
    seen = prepare(patients, fixed, device, seed=0)
    rng = np.random.default_rng(study.seed_for(0, "", "made-up scans"))
    drawn = [made_up_patient(study, f"made up {k}", rng) for k in range(MADE_UP)]
    task, made_up = build_task(study.task), prepare(drawn, fixed, device, seed=0)
    sure = {}
    for site, params in models.items():
        network = network_for(study.network, study, device, params)
        sure[site] = certainty(network, task, seen) - certainty(network, task, made_up).mean()
    sites = sorted(sure)
    surest = torch.stack([sure[site] for site in sites]).argmax(0)
    return float((surest == sites.index(own)).double().mean())


@torch.no_grad()
def certainty(network: nn.Module, task: Task, seen: Examples) -> torch.Tensor:
    """Return a model's mean largest probability for each patient, `(P,)`."""
    found = []
    for number in range(len(seen)):
        pair = seen.draw(number, 0)
        if pair is None:
            found.append(0.0)
            continue
        answers = task.exclusive(network(pair[0])).softmax(1)
        found.append(float(answers.max(1).values.mean()))
    return torch.tensor(found)
