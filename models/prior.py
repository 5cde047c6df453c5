"""A first model that learns the task's shapes from synthetic images, before it sees any patient."""

from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from models.config import Config
from models.synthesis import SynthesisConfig, labelled_image


class PriorConfig(Config):
    """Training of the first model: number of steps, synthetic images, batch size, learning rate."""

    steps: Annotated[int, Field(ge=1, le=100_000)]
    images: Annotated[int, Field(ge=8, le=10_000)] = 512
    batch: Annotated[int, Field(ge=1, le=256)] = 8
    lr: Annotated[float, Field(gt=0)] = 3e-3


def learn_prior(
    network: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    shape: tuple[int, ...],
    num_labels: int,
    config: PriorConfig,
    synthesis: SynthesisConfig,
    seed: int,
) -> None:
    """Train `network`, in place, to segment synthetic images of `shape`; no patient's data is used.

    Args:
        loss: `(logits (N, C, ...), targets (N, ...)) -> (N,)`.
    """
    rng = np.random.default_rng(seed)
    drawn = [labelled_image(shape, num_labels, rng, synthesis) for _ in range(config.images)]
    images = torch.from_numpy(np.stack([image[None] for image, _ in drawn]))
    targets = torch.from_numpy(np.stack([labels.astype(np.uint8) for _, labels in drawn]))
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    lots = torch.Generator().manual_seed(seed)
    for _ in range(config.steps):
        lot = torch.randint(len(images), (config.batch,), generator=lots)
        optimizer.zero_grad()
        torch.autograd.backward(loss(network(images[lot]), targets[lot].long()).mean())
        optimizer.step()
        schedule.step()
