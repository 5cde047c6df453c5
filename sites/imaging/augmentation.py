"""Random changes of training images, drawn for each patient separately."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.transforms import (
    Affine,
    Compose,
    MapTransform,
    RandFlipd,
    RandGaussianNoised,
    RandomizableTransform,
    RandScaleIntensityd,
    RandShiftIntensityd,
)
from monai.transforms.utils import create_rotate
from numpy.typing import NDArray

from models.settings.images import Augmentation


class RandTurnd(RandomizableTransform, MapTransform):  # type: ignore[misc]  # MONAI is not typed
    """Random rotation about each axis in mm, and change in size, about the middle of an image.

    MONAI's own RandAffine turns voxel indices: at 1 x 1 x 5 mm a right angle would become 154 degrees.
    """

    def __init__(
        self, keys: Sequence[str], rotate_deg: float, scale: float, spacing_mm: Sequence[float]
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob=1.0)
        self._turn, self._scale = float(np.deg2rad(rotate_deg)), scale
        self._spacing = np.asarray(spacing_mm)

    def matrix(self) -> NDArray[np.float64]:
        """Draw a matrix that maps voxel indices about the middle, `(dims + 1, dims + 1)`."""
        dims = len(self._spacing)
        angles = self.R.uniform(-self._turn, self._turn, 3 if dims == 3 else 1)
        scales = 1 + self.R.uniform(-self._scale, self._scale, dims)
        turned = create_rotate(dims, angles)[:dims, :dims] @ np.diag(scales)
        whole = np.eye(dims + 1)
        whole[:dims, :dims] = turned * self._spacing[None, :] / self._spacing[:, None]
        return whole

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the data with each image turned in the same way; labels by the nearest voxel."""
        matrix = self.matrix()
        changed = dict(data)
        for key in self.keys:
            mode = "bilinear" if key == "image" else "nearest"
            changed[key] = Affine(affine=matrix, mode=mode, padding_mode="border")(data[key])[0]
        return changed


def changes_of(
    config: Augmentation, keys: Sequence[str], spacing_mm: Sequence[float], channels: int
) -> Compose:
    """Return the random changes of a drawn image and, among `keys`, of its target."""
    steps: list[Any] = [RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in config.flip]
    if config.rotate_deg or config.scale:
        steps.append(RandTurnd(keys, config.rotate_deg, config.scale, spacing_mm))
    if config.intensity:
        apart = channels > 1  # each channel has a contrast of its own
        scale, shift = RandScaleIntensityd, RandShiftIntensityd
        steps.append(scale(("image",), config.intensity, prob=1.0, channel_wise=apart))
        steps.append(shift(("image",), config.intensity, prob=1.0, channel_wise=apart))
    if config.noise:
        steps.append(RandGaussianNoised(("image",), prob=1.0, std=config.noise))
    return Compose(steps)


def kept_channels(
    present: NDArray[np.bool_], drop: float, random: np.random.RandomState
) -> NDArray[np.bool_]:
    """Return which channels an image keeps: those that it has, less dropped ones, and at least one."""
    if not drop or present.sum() < 2:
        return present
    kept = present & (random.uniform(size=len(present)) >= drop)
    if not kept.any():
        kept[random.choice(np.flatnonzero(present))] = True
    return kept
