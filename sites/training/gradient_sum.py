"""The sum over a hospital's patients of their clipped gradients at one model, without any noise yet."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.objectives import Task
from privacy.mechanisms import Mechanism
from privacy.per_patient import clipped_sums
from sites.progress import Progress
from sites.training.config import TrainingConfig
from sites.training.examples import Examples
from sites.training.steps import with_attacked


def gradient_sum(
    network: nn.Module,
    task: Task,
    examples: Examples,
    config: TrainingConfig,
    mechanism: Mechanism,
    progress: Progress,
) -> NDArray[np.float64]:
    """Return the clipped sum over all patients, `(d,)`, its parameters one after the other by name.

    Zeroing one patient moves it by at most the mechanism's clip norm in L2. It is raw: it leaves only
    with noise, and masked.
    """
    names = sorted(name for name, _ in network.named_parameters())
    total = {
        name: torch.zeros(p.shape, dtype=torch.float64, device=p.device)
        for name, p in network.named_parameters()
    }
    everybody = range(len(examples))
    for start in range(0, len(examples), config.microbatch):
        batch = examples.batch(everybody[start : start + config.microbatch], 0)
        progress("train", min(start + config.microbatch, len(examples)), len(examples))
        if batch is None:
            continue
        images, targets, patient_of = with_attacked(network, task, batch, config)
        of_scan = patient_of.to(images.device)
        sums = clipped_sums(network, task.loss, images, targets, of_scan, mechanism.clip_factors)
        for name in names:
            total[name] += sums[name]
    return np.concatenate([total[name].cpu().numpy().ravel() for name in names])
