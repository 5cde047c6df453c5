"""Measures of a model on public or drawn cases at the coordinator; no hospital's patient is used."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from flows.starts.public_sets import Case
from models.objectives import Prediction, Task, build_task
from models.pretraining import Batch
from sites.imaging.preprocessing import Prepared, fixed_pair
from sites.inference import predictor
from sites.local_models import CPU
from sites.study import Study


def cases_of_pool(pool: Batch) -> list[Case]:
    """Return drawn images as cases, one scan each, with voxels of 1 mm."""
    images, targets = pool
    sides = (1.0,) * (images.dim() - 2)
    return [
        [Prepared(image, target, np.diag([*sides, *[1.0] * (4 - len(sides))]), target, sides)]
        for image, target in zip(images, targets, strict=True)
    ]


def scored(network: nn.Module, study: Study, cases: Sequence[Case]) -> dict[str, float]:
    """Return the task's metrics over cases, as hospitals measure them."""
    task, predict = build_task(study.task), predictor(network, study, study.network, CPU)
    outcomes = [
        task.of_patient(Prediction(predict(scan), scan.truth, scan.spacing_mm) for scan in case)
        for case in cases
    ]
    return {name: round(value, 6) for name, value in task.over_patients(outcomes).items()}


def losses_by_case(network: nn.Module, task: Task, study: Study, cases: Sequence[Case]) -> Tensor:
    """Return each case's mean training loss over its scans, `(cases,)`."""
    parts = torch.split(_losses(network, task, study, cases), [len(case) for case in cases])
    return torch.stack([part.mean() for part in parts])


def loss_of(network: nn.Module, task: Task, study: Study, cases: Sequence[Case]) -> float:
    """Return the mean training loss over the scans of cases."""
    return float(_losses(network, task, study, cases).mean())


@torch.no_grad()
def _losses(network: nn.Module, task: Task, study: Study, cases: Sequence[Case]) -> Tensor:
    """Return the training loss of each scan of cases, each fitted to the training shape: `(scans,)`."""
    pairs = [fixed_pair(scan, study.preprocessing) for case in cases for scan in case]
    losses = []
    for start in range(0, len(pairs), 8):
        images, targets = zip(*pairs[start : start + 8], strict=True)
        losses.append(task.loss(network(torch.stack(images)), torch.stack(targets)))
    return torch.cat(losses)
