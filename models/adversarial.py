"""Images changed against a network, within a radius: for training that withstands it, and to measure it.

The attack on a scan uses that scan, its target and the network alone, so a patient's gradient on
attacked images depends on no other patient, and clipping bounds it as before.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.config import Config

Loss = Callable[[Tensor, Tensor], Tensor]
"""`(logits (N, ...), targets (N, ...)) -> (N,)`."""


class AttackConfig(Config):
    """How far, and how, images are changed: each voxel by at most `radius`, as the network sees it.

    `fgsm` is one step of the radius (Goodfellow et al. 2015, section 4); `pgd` takes `steps` of
    2.5 radius / steps, each time back into the radius, from the image on (Madry et al. 2018, eq. 2.1).
    """

    kind: Literal["fgsm", "pgd"]
    radius: Annotated[float, Field(gt=0, le=10)]
    steps: Annotated[int, Field(ge=1, le=100)] = 7


def attacked(
    network: nn.Module, loss: Loss, images: Tensor, targets: Tensor, config: AttackConfig
) -> Tensor:
    """Return `images` `(N, 1, *spatial)`, each changed so that its own loss grows."""
    steps = 1 if config.kind == "fgsm" else config.steps
    length = config.radius if config.kind == "fgsm" else 2.5 * config.radius / steps
    changed = images.detach()
    for _ in range(steps):
        changed.requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(network(changed), targets).sum(), changed)
        moved = changed.detach() + length * gradient.sign()
        changed = torch.minimum(torch.maximum(moved, images - config.radius), images + config.radius)
    return changed.detach()
