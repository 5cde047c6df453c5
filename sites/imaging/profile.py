"""Summary of a scan for a hospital's checks and surveys; it stays in the hospital."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sites.imaging.intake import UNLABELLED, Scan

COARSE = 12
"""Cells a side of the grid on which images are compared."""
INTENSITY_EDGES: NDArray[np.float64] = np.concatenate(
    [-np.logspace(4, 0, 9), np.zeros(1), np.logspace(0, 4, 9)]
)
"""Edges of the intensity bins, the same for every scanner; the outer bins are open."""


@dataclass(frozen=True)
class Profile:
    """Summary of a scan.

    Attributes:
        content: the sha256 of its voxels.
        scale: the range of its intensities, from the 1st to the 99th percentile.
        coarse: its first channel on a grid of `COARSE` cells a side, as a vector of mean 0 and norm 1.
        intensities: for each channel the share of its voxels in each bin of `INTENSITY_EDGES`; zeros for
            one that is missing.
        shape, spacing_mm: number and sides of its voxels along each axis.
        amounts: for a label map, each label's volume in ml; else 1 for each class that holds.
        value: the number of a regression; None for other tasks.
        is_labelled: the case has a label; the lists for surveys alone have none.
    """

    content: str
    scale: float
    coarse: Tensor
    intensities: tuple[tuple[float, ...], ...]
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    amounts: Mapping[int, float]
    value: float | None = None
    is_labelled: bool = True


def profile_of(scan: Scan) -> Profile:
    """Return the summary of a scan."""
    image = np.delete(scan.image, scan.missing, axis=0)
    low, high = np.percentile(image, [1, 99])
    return Profile(
        content=content_of(scan.image),
        scale=max(float(high - low), 1e-30),
        coarse=_coarse(image[0]),
        intensities=tuple(
            _shares(channel, is_missing=number in scan.missing)
            for number, channel in enumerate(scan.image)
        ),
        shape=image.shape[1:],
        spacing_mm=scan.spacing_mm,
        amounts=_amounts(scan),
        value=float(scan.target) if scan.target.dtype.kind == "f" else None,
        is_labelled=scan.target is not UNLABELLED,
    )


def _shares(channel: NDArray[np.float32], *, is_missing: bool) -> tuple[float, ...]:
    if is_missing:
        return (0.0,) * (len(INTENSITY_EDGES) + 1)
    bins = np.bincount(np.digitize(channel.ravel(), INTENSITY_EDGES), minlength=len(INTENSITY_EDGES) + 1)
    return tuple(float(share) for share in bins / channel.size)


def content_of(image: NDArray[np.float32]) -> str:
    """Return the sha256 of an image's voxels."""
    return sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


def _amounts(scan: Scan) -> dict[int, float]:
    if scan.target.dtype.kind == "f":
        return {}
    if scan.target.ndim == 0:
        return {int(scan.target): 1.0}
    if scan.target.ndim != scan.image.ndim - 1:
        return {int(label): 1.0 for label in np.flatnonzero(scan.target)}
    values, counts = np.unique(scan.target[scan.target > 0], return_counts=True)
    voxel_ml = prod(scan.spacing_mm) / 1000
    return {int(value): float(count * voxel_ml) for value, count in zip(values, counts, strict=True)}


def _coarse(image: NDArray[np.float32]) -> Tensor:
    """Return the image on a grid of `COARSE` cells a side, as a vector of mean 0 and norm 1."""
    pool = nn.AdaptiveAvgPool3d(COARSE) if image.ndim == 3 else nn.AdaptiveAvgPool2d(COARSE)
    flat: Tensor = pool(torch.from_numpy(np.ascontiguousarray(image))[None, None]).flatten()
    centred = flat - flat.mean()
    unit: Tensor = centred / centred.norm().clamp(min=1e-12)
    return unit
