"""Kernels and strides of a U-Net, as nnU-Net plans them from the voxels and the size of its input.

At each level the axes are halved whose voxels are less than twice as thick as the finest of those that
can be halved; an axis is convolved from the level on at which its voxels are less than twice as thick
as the finest ones, and every axis at the lowest level (Isensee et al. 2021, nnU-Net,
https://doi.org/10.1038/s41592-020-01008-z; the rule is that of nnunetv2 2.6, `get_pool_and_conv_props`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

SMALLEST = 4
"""The fewest voxels of an axis at the lowest level."""
THICK = 2.0


@dataclass(frozen=True)
class Plan:
    """Kernels and strides of each level of a U-Net, one number for each axis."""

    kernels: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]

    @property
    def divisors(self) -> tuple[int, ...]:
        """The number that must divide each side of an image."""
        return tuple(prod(steps) for steps in zip(*self.strides, strict=True))


def planned(shape: Sequence[int], spacing_mm: Sequence[float], most: int) -> Plan:
    """Return the plan of the deepest U-Net for an input.

    Args:
        shape: its number of voxels along each axis.
        spacing_mm: the voxels' sides.
        most: the largest number of levels.

    >>> plan = planned((64, 64, 16), (1, 1, 4), most=6)
    >>> plan.strides
    ((1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2))
    >>> plan.kernels
    ((3, 3, 1), (3, 3, 1), (3, 3, 3), (3, 3, 3), (3, 3, 3))
    >>> plan.divisors
    (16, 16, 4)
    """
    dims = range(len(shape))
    sizes, sides = list(shape), list(spacing_mm)
    kernel, kernels, strides = [1] * len(shape), [], [(1,) * len(shape)]
    while len(strides) < most and (halved := _halved(sizes, sides)):
        kernel = [3 if sides[axis] < THICK * min(sides) else kernel[axis] for axis in dims]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in halved else 1 for axis in dims))
        sizes = [-(-size // step) for size, step in zip(sizes, strides[-1], strict=True)]
        sides = [side * step for side, step in zip(sides, strides[-1], strict=True)]
    return Plan((*kernels, (3,) * len(shape)), tuple(strides))


def _halved(sizes: Sequence[int], sides: Sequence[float]) -> list[int]:
    """Return the axes that the next level halves; none at the lowest level."""
    can_be = [axis for axis, size in enumerate(sizes) if size >= 2 * SMALLEST]
    finest = min((sides[axis] for axis in can_be), default=0.0)
    found = [axis for axis in can_be if sides[axis] < THICK * finest]
    if len(found) == 1 and sizes[found[0]] < 3 * SMALLEST:
        return []
    return found
