"""The noise that a model's parameters bear, measured on public or drawn cases."""

import math
from collections.abc import Callable

import torch
from torch import nn

from models import params as P

ON_SCANS, ON_DRAWN = 1.15, 1.5
"""Factors by which noise may raise the loss on public scans and on drawn images.

A model that was made on drawn images alone has more to gain from patients than it can lose.
"""
DRAWS = 3
HALVINGS = 12
LARGEST, SMALLEST = 0.2, 1e-5


def tolerance(network: nn.Module, loss: Callable[[nn.Module], float], factor: float) -> float:
    """Return the standard deviation of noise on each parameter that multiplies the loss by `factor`.

    It is found by bisection between `SMALLEST` and `LARGEST` on a logarithmic scale, with the same
    noise each time. The network is unchanged afterwards.
    """
    base, rng = P.of(network), torch.Generator().manual_seed(0)
    noises = [
        {name: torch.randn(value.shape, generator=rng) for name, value in base.items()}
        for _ in range(DRAWS)
    ]
    most = factor * loss(network)

    def mean_loss(std: float) -> float:
        found = []
        for noise in noises:
            P.load_into(network, {name: base[name] + std * noise[name] for name in base})
            found.append(loss(network))
        return sum(found) / len(found)

    low, high = math.log(SMALLEST), math.log(LARGEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_loss(math.exp(middle)) <= most else (low, middle)
    P.load_into(network, base)
    return round(math.exp(low), 6)
