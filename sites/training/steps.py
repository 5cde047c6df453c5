"""Parts of a training step, shared by training with and without privacy."""

from collections.abc import Callable

import torch
from torch import nn

from models import params as P
from models.adversarial import attacked
from models.objectives import Task
from models.strategies import LocalLoss
from sites.training.config import TrainingConfig
from sites.training.examples import Batch


def with_attacked(network: nn.Module, task: Task, batch: Batch, config: TrainingConfig) -> Batch:
    """Return a batch; if the study trains adversarially, with an attacked copy of each image added."""
    if config.adversarial is None:
        return batch
    images, targets, patient_of = batch
    changed = attacked(network, task.loss, images, targets, config.adversarial)
    return torch.cat([images, changed]), torch.cat([targets, targets]), torch.cat([patient_of] * 2)


def local_loss_adder(network: nn.Module, local_loss: LocalLoss | None) -> Callable[[], None]:
    """Return a function that adds the gradient of a strategy's data-free loss to the gradients."""
    if local_loss is None:
        return lambda: None
    loss, start = local_loss, P.of(network)

    def add_gradient() -> None:
        own = dict(network.named_parameters())
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss(own, start), list(own.values()))
        for p, g in zip(own.values(), gradients, strict=True):
            p.grad = g if p.grad is None else p.grad + g

    return add_gradient
