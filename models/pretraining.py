"""Training of a first model on public images: synthetic ones, or scans that everybody may see."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from models.synthesis import SynthesisConfig, labelled_image

Batch = tuple[Tensor, Tensor]
"""Images `(B, C, *shape)` and targets `(B, ...)`."""
LONGEST_GRADIENT = 1.0
"""Norm to which a batch's gradient is clipped: one odd image must not undo the steps before it."""
WARM_UP = 0.1
"""Share of the steps in which the rate rises."""


def pretrain(
    network: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    draw: Callable[[int], Batch],
    steps: int,
    lr: float,
) -> None:
    """Train `network`, in place, by AdamW with a rate that rises and then falls along a cosine.

    Sources: Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization,
    https://arxiv.org/abs/1711.05101; Smith and Topin 2018, Super-Convergence,
    https://arxiv.org/abs/1708.07120.

    Args:
        loss: `(logits (N, C, ...), targets (N, ...)) -> (N,)`.
        draw: returns the batch of a step, by the step's number.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=max(steps, 2), pct_start=WARM_UP
    )
    network.train()
    for step in range(steps):
        images, targets = draw(step)
        optimizer.zero_grad()
        torch.autograd.backward(loss(network(images), targets).mean())
        torch.nn.utils.clip_grad_norm_(network.parameters(), LONGEST_GRADIENT)
        optimizer.step()
        schedule.step()


def from_pool(
    make: Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]],
    count: int,
    batch: int,
    seed: int,
) -> tuple[Callable[[int], Batch], Batch]:
    """Return a function that draws batches of `count` images, and all of these images.

    Args:
        make: draws one image `(C, *shape)` and its labels.
    """
    rng = np.random.default_rng(seed)
    drawn = [make(rng) for _ in range(count)]
    images = torch.from_numpy(np.stack([image for image, _ in drawn]))
    targets = torch.from_numpy(np.stack([labels for _, labels in drawn]).astype(np.uint8))
    lots = torch.Generator().manual_seed(seed)

    def draw(_: int) -> Batch:
        lot = torch.randint(count, (batch,), generator=lots)
        return images[lot], targets[lot].long()

    return draw, (images, targets.long())


def tube_maker(
    shape: tuple[int, ...], num_labels: int, synthesis: SynthesisConfig, channels: int = 1
) -> Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]:
    """Return a function that draws a synthetic image of tubes and its labels."""
    return lambda rng: labelled_image(shape, num_labels, rng, synthesis, channels)
