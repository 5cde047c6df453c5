"""Vectors of parameters as whole units on the ring, and back."""

from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.params import Params

MASKED = "masked"
"""Name of the one tensor of a masked release: int32 `(d,)`, all parameters, ordered by name."""
LARGEST = 4.0
"""Largest change of a parameter in a masked study; a larger one is cut to it."""
CHANGE_GRID = 2.0**-28
"""Unit of masked changes: their weighted mean is within +- 2^30 units."""


def units_of(values: NDArray[np.float64], grid: float, share: float = 1.0) -> NDArray[np.int64]:
    """Return the nearest whole units of a share of values, which are cut to `LARGEST` first.

    >>> units_of(np.array([0.5, -100.0]), 0.25).tolist()
    [2, -16]
    """
    return np.rint(np.clip(values, -LARGEST, LARGEST) * (share / grid)).astype(np.int64)


def params_of(units: NDArray[np.int64], unit: float, template: Params) -> dict[str, Tensor]:
    """Return units times `unit` as float32 parameters with the names and shapes of a template.

    Raises:
        ValueError: there are more or fewer numbers than the template has.
    """
    names = sorted(template)
    due = sum(prod(template[name].shape) for name in names)
    if len(units) != due:
        raise ValueError(f"Expected {due} numbers, got {len(units)}.")
    values, found, start = torch.from_numpy(units * unit), {}, 0
    for name in names:
        shape = template[name].shape
        found[name] = values[start : start + prod(shape)].reshape(shape).float()
        start += prod(shape)
    return found
