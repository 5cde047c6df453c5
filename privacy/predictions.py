"""What leaves where a study exports predictions: a teacher's soft answers on the transfer images.

(FedMD, Li and Wang 2019.) The coordinator makes one ensemble of them, from which the global student
learns (FedDF, Lin et al. 2020, equation 1); so each hospital may have a network of its own.
"""

import zlib
from collections.abc import Iterable
from math import prod
from typing import Literal

import numpy as np
import torch
from torch import Tensor

LEVELS = 255
"""Steps from 0 to 1 in which a probability leaves."""
NAME = "deflated"
"""The one tensor of such a release."""
LEAST = 1 / (4 * LEVELS)
"""What a probability that left as 0 is taken for."""


def to_tensors(logits: Tensor, temperature: float) -> dict[str, Tensor]:
    """Return softened answers in eight bits, deflated: one tensor of bytes.

    The first class's probability is what the others leave over, and does not leave itself.

    Args:
        logits: `(N, C, ...)` of classes of which one holds.
    """
    soft = (logits / temperature).softmax(1)[:, 1:]
    steps = (soft * LEVELS).round().to(torch.uint8).cpu().numpy()
    packed = zlib.compress(steps.tobytes(), level=6)
    return {NAME: torch.from_numpy(np.frombuffer(packed, np.uint8).copy())}


def from_tensors(packed: Tensor, shape: tuple[int, ...], temperature: float) -> Tensor:
    """Return the logits `(N, C, ...)` of `shape` that `to_tensors` packed, exact to its eight bits.

    Raises:
        ValueError: it holds anything but that many probabilities; no more than them is unpacked.
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
    """Return the weighted mean of hospitals' logits `(N, C, ...)`, holding one sum and one hospital's.

    With `confidence` a hospital counts on each image by how far its mean entropy is from ignorance,
    beside its weight.

    Raises:
        ValueError: nobody answered.
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
    """Return 1 - H / log C for each image, above 0, `(N,)`: the mean over voxels of its entropy H."""
    said = logits.log_softmax(1)
    entropy = -(said.exp() * said).sum(1).reshape(len(logits), -1).mean(1)
    return (1 - entropy / torch.tensor(float(logits.shape[1])).log()).clamp(min=1e-3)
