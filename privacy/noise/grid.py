"""Rounding to a public grid, whose step is a power of two."""

from torch import Tensor


def on_grid(values: Tensor, grid: float) -> Tensor:
    """Return the nearest multiples of `grid`, a power of two; exact where the result fits 53 bits.

    >>> import torch
    >>> on_grid(torch.tensor([0.3, -0.2], dtype=torch.float64), 0.25).tolist()
    [0.25, -0.25]
    """
    return (values / grid).round_() * grid
