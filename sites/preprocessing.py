"""From a scan to what a network sees: intensities of mean 0 and deviation 1, a fixed shape.

Each image is normalised by itself alone, never by its cohort, so nothing but the image's own
patient shapes what the network sees.
"""

from typing import Annotated, Literal

import numpy as np
import torch
from monai.transforms import NormalizeIntensity, ResizeWithPadOrCrop, SpatialPad
from pydantic import Field
from torch import Tensor

from models.config import Config
from sites.intake import Scan

Side = Annotated[int, Field(ge=8, le=512)]


class PreprocessingConfig(Config):
    """`shape`: what training images are padded or cropped to; `intensity`: how they are scaled."""

    shape: Annotated[tuple[Side, ...], Field(min_length=2, max_length=3)]
    intensity: Literal["z_score"] = "z_score"


def training_pair(scan: Scan, config: PreprocessingConfig) -> tuple[Tensor, Tensor]:
    """Return the image `(1, *shape)` and target `(*shape)` or `()` that training uses."""
    fit = ResizeWithPadOrCrop(config.shape)
    image = _tensor(fit(_normalised(scan)))
    if scan.target.ndim == 0:
        return image, torch.tensor(int(scan.target))
    return image, _tensor(fit(scan.target[None]))[0].long()


def whole_image(scan: Scan, divisor: int) -> Tensor:
    """Return the whole image `(1, *spatial)`, padded at the far ends to multiples of `divisor`.

    Nothing is cropped: scores count every voxel of the truth.
    """
    sides = [-(-side // divisor) * divisor for side in scan.image.shape]
    return _tensor(SpatialPad(sides, method="end")(_normalised(scan)))


def _normalised(scan: Scan) -> np.ndarray:
    return np.asarray(NormalizeIntensity()(scan.image[None]))


def _tensor(values: object) -> Tensor:
    """Return a plain tensor from what MONAI's transforms give."""
    return torch.from_numpy(np.ascontiguousarray(np.asarray(values)))
