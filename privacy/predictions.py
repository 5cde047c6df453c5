"""Releases of predictions: a teacher's soft answers on the transfer images.

(Li and Wang 2019, FedMD, https://arxiv.org/abs/1910.03581.) The coordinator makes one ensemble of them,
from which the global student learns (Lin et al. 2020, FedDF, equation 1,
https://arxiv.org/abs/2006.07242); so each hospital may have its own network.
"""

import zlib
from collections.abc import Iterable
from math import prod
from typing import Literal

import numpy as np
import torch
from torch import Tensor

LEVELS = 255
"""The number of steps between 0 and 1 to which a probability is rounded."""
NAME = "deflated"
"""The name of the only tensor of such a release."""
LEAST = 1 / (4 * LEVELS)
"""The value that replaces a probability rounded to 0."""


def to_tensors(logits: Tensor, temperature: float) -> dict[str, Tensor]:
    """Return softened answers in eight bits, deflated: one tensor of bytes.

    The first class's probability is 1 minus the sum of the others, and is not sent.

    Args:
        logits: `(N, C, ...)` of classes of which exactly one is true.
    """
    soft = (logits / temperature).softmax(1)[:, 1:]
    steps = (soft * LEVELS).round().to(torch.uint8).cpu().numpy()
    packed = zlib.compress(steps.tobytes(), level=6)
    return {NAME: torch.from_numpy(np.frombuffer(packed, np.uint8).copy())}


def from_tensors(packed: Tensor, shape: tuple[int, ...], temperature: float) -> Tensor:
    """Return the logits `(N, C, ...)` of `shape` that `to_tensors` packed, exact to eight bits.

    Raises:
        ValueError: it does not hold exactly that many probabilities; at most one byte more is unpacked.
    """
    expected = prod(shape) // shape[1] * (shape[1] - 1)
    unpacker = zlib.decompressobj()
    try:
        steps = unpacker.decompress(packed.numpy().tobytes(), expected + 1)
    except zlib.error as error:
        raise ValueError(f"The predictions can't be unpacked: {error}.") from error
    if len(steps) != expected or not unpacker.eof or unpacker.unused_data:
        raise ValueError(f"Expected {expected:,} predictions, got another number.")
    flat = torch.from_numpy(np.frombuffer(steps, np.uint8).copy())
    others = flat.reshape(shape[0], shape[1] - 1, *shape[2:]).float() / LEVELS
    first = 1 - others.sum(1, keepdim=True)
    return temperature * torch.cat([first, others], 1).clamp(min=LEAST).log()


def ensemble(
    answers: Iterable[tuple[float, Tensor]], weighing: Literal["declared", "confidence"]
) -> Tensor:
    """Return the weighted mean of hospitals' logits `(N, C, ...)`; memory holds one sum and one item.

    With `confidence` a hospital's weight on each image is multiplied by its certainty: 1 - H / log C.

    Raises:
        ValueError: there are no answers.
    """
    total: Tensor | None = None
    weights: Tensor | None = None
    for weight, logits in answers:
        shares = weight * (_confidence(logits) if weighing == "confidence" else torch.ones(len(logits)))
        term = logits * shares.reshape(-1, *[1] * (logits.dim() - 1))
        total = term if total is None else total + term
        weights = shares if weights is None else weights + shares
    if total is None or weights is None:
        raise ValueError("Expected at least one hospital's answers, got none.")
    return total / weights.reshape(-1, *[1] * (total.dim() - 1))


def _confidence(logits: Tensor) -> Tensor:
    """Return 1 - H / log C for each image, `(N,)`, at least 1e-3; H: mean entropy over voxels."""
    log_probs = logits.log_softmax(1)
    entropy = -(log_probs.exp() * log_probs).sum(1).reshape(len(logits), -1).mean(1)
    return (1 - entropy / torch.tensor(float(logits.shape[1])).log()).clamp(min=1e-3)
