"""Preparation of a scan for a network by MONAI's dictionary transforms, and the way back to its voxels.

A network's input depends on one image and the study alone; random draws depend on that patient's own
randomness alone. So removing one patient changes nothing for the others.

| step      | effect                                                              | kept in the cache |
|-----------|---------------------------------------------------------------------|-------------------|
| spacing   | resamples to voxels of the study's size                             | yes               |
| crop      | cuts away the margin in which nothing is brighter than the mean     | yes               |
| intensity | brings the intensities to one scale                                 | yes               |
| resize    | if `fit` is `resize`: resamples the image to the training shape     | yes               |
| fit       | pads and crops in the middle, or draws patches                      | no                |
| augment   | draws random changes for each patient separately                    | no                |
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import (
    Compose,
    CropForegroundd,
    MapTransform,
    NormalizeIntensityd,
    RandCropByPosNegLabeld,
    ResampleToMatch,
    Resized,
    ResizeWithPadOrCropd,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
    Spacingd,
    SpatialPad,
    SpatialPadd,
)
from numpy.typing import NDArray
from torch import Tensor

from models.settings.images import Augmentation, Patches, Percentiles, PreprocessingConfig, Window
from sites.imaging.augmentation import changes_of, kept_channels
from sites.imaging.intake import Scan

Pair = tuple[Tensor, Tensor]
BOTH = ("image", "target")
MOST_VOXELS = 2**27
"""Largest number of voxels that resampling may produce."""


class Unfit(ValueError):
    """A scan can't be prepared as the study asks. The message contains nothing about the patient."""


@dataclass(frozen=True)
class Prepared:
    """A scan after all steps that are the same at each training step.

    Attributes:
        image: `(C, *spatial)`.
        target: `(*spatial)` labels, `()` a class, or `(C,)` with 1 for each of several labels that hold.
        affine: from the prepared image's voxels to mm.
        truth: the labels at the original scan's voxels; the same as `target` if that is not a label map.
        spacing_mm: the sides of the original scan's voxels.
        missing: numbers of the channels that the scan lacks, which are zero everywhere.
    """

    image: Tensor
    target: Tensor
    affine: NDArray[np.float64]
    truth: Tensor
    spacing_mm: tuple[float, ...]
    missing: tuple[int, ...] = ()

    @property
    def is_map(self) -> bool:
        """Return whether the target is a label map, not a class."""
        return self.target.shape == self.image.shape[1:]

    @property
    def is_own_grid(self) -> bool:
        """Return whether the prepared image has the voxels of the original scan."""
        return self.truth.shape == self.image.shape[1:] and np.array_equal(
            self.affine, _affine(self.spacing_mm)
        )


def cached_part(config: PreprocessingConfig) -> dict[str, Any]:
    """Return the plain values on which the result of `prepare` depends."""
    keys = {"spacing_mm", "crop", "intensity"} | ({"shape"} if config.fit == "resize" else set())
    return config.model_dump(mode="json", include=keys)


def prepare(scan: Scan, config: PreprocessingConfig) -> Prepared:
    """Return a scan after all steps that are the same at each training step.

    Raises:
        Unfit: resampling would produce more than `MOST_VOXELS` voxels, or the prepared image is empty or
            has NaN or infinite voxels.
    """
    is_map = scan.target.ndim == scan.image.ndim - 1
    keys = BOTH if is_map else ("image",)
    affine = _affine(scan.spacing_mm)
    # a copy: channel-wise normalisation in MONAI 1.6.1 overwrites its input
    data = {"image": MetaTensor(_tensor(scan.image.copy()), affine=affine)}
    target = _tensor(scan.target)
    if is_map:
        data["target"] = MetaTensor(target[None].float(), affine=affine)
    _check_size(scan, config)
    data = _placed(config, keys)(data)
    _check_intensity(data["image"], config, scan.missing)
    data = _scaled(config, keys)(data)
    image = data["image"]
    image[list(scan.missing)] = 0
    if not image.numel() or not image.isfinite().all():
        raise Unfit("the prepared image is empty, or has NaN or infinite voxels")
    if all(float(each.max()) == float(each.min()) for each in image):
        raise Unfit("the prepared image is constant")
    return Prepared(
        image=_plain(image),
        target=_plain(data["target"])[0].long() if is_map else target,
        affine=np.asarray(image.affine, dtype=float),
        truth=target,
        spacing_mm=scan.spacing_mm,
        missing=scan.missing,
    )


def _placed(config: PreprocessingConfig, keys: Sequence[str]) -> Compose:
    """Return the steps that decide which voxels there are."""
    steps: list[Any] = []
    modes = ["bilinear", "nearest"][: len(keys)]
    if config.spacing_mm:
        steps.append(Spacingd(keys, config.spacing_mm, mode=modes))
    if config.crop == "foreground":
        steps.append(CropForegroundd(keys, source_key="image", select_fn=_brighter_than_the_mean))
    return Compose(steps)


def _scaled(config: PreprocessingConfig, keys: Sequence[str]) -> Compose:
    """Return the steps that change their intensities."""
    steps: list[Any] = [_intensity(config.intensity)]
    if config.fit == "resize":
        linear = "trilinear" if len(config.shape) == 3 else "bilinear"
        modes = [linear, "nearest-exact"][: len(keys)]
        steps.append(Resized(keys, config.shape, mode=modes, anti_aliasing=[True, False][: len(keys)]))
    return Compose(steps)


def _intensity(config: str | Percentiles | Window) -> MapTransform:
    if isinstance(config, Percentiles):
        return ScaleIntensityRangePercentilesd(
            ("image",), config.low, config.high, b_min=-1, b_max=1, clip=True, channel_wise=True
        )
    if isinstance(config, Window):
        low, high = config.centre - config.width / 2, config.centre + config.width / 2
        return ScaleIntensityRanged(("image",), low, high, b_min=-1, b_max=1, clip=True)
    return NormalizeIntensityd(("image",), channel_wise=True)


def _brighter_than_the_mean(image: Tensor) -> Tensor:
    axes = tuple(range(1, image.ndim))
    brighter = image > image.double().mean(axes, keepdim=True)
    return brighter if brighter.any() else image >= image.max()


def _check_size(scan: Scan, config: PreprocessingConfig) -> None:
    if config.spacing_mm:
        ratios = zip(scan.image.shape[1:], scan.spacing_mm, config.spacing_mm, strict=True)
        if prod(side * has / wants + 1 for side, has, wants in ratios) > MOST_VOXELS:
            raise Unfit("at the study's spacing the image would be larger than any scan")


def _check_intensity(image: Tensor, config: PreprocessingConfig, missing: Sequence[int]) -> None:
    """Raise `Unfit` if the study's percentiles of an image are equal, as of one that is mostly zero.

    A channel that is constant everywhere stays constant, which is another finding.
    """
    if isinstance(config.intensity, Percentiles) and image.numel():
        both = [config.intensity.low, config.intensity.high]
        for number, channel in enumerate(image.numpy()):
            low, high = np.percentile(channel, both)
            if high > low or number in missing or channel.min() == channel.max():
                continue
            raise Unfit(
                f"its percentiles {config.intensity.low:g} and {config.intensity.high:g} are equal, as "
                f"where nearly all voxels of a channel are background"
            )


def fixed_pair(prepared: Prepared, config: PreprocessingConfig) -> Pair:
    """Return the image `(C, *shape)` and target that training uses if nothing is random."""
    if prepared.image.shape[1:] == config.shape:
        return prepared.image, prepared.target
    return _pair(ResizeWithPadOrCropd(_keys(prepared), config.shape)(_data(prepared)))


def drawn_pairs(prepared: Prepared, config: PreprocessingConfig, seed: int) -> list[Pair]:
    """Return the images `(C, *shape)` and targets that training uses of a scan at one step.

    Their number is `copies` times `per_scan` (1 without patches); they are drawn from `seed` alone.
    """
    random = np.random.RandomState(seed)  # MONAI's transforms need this older generator
    augmentation = config.augmentation or Augmentation()
    keys, pairs = _keys(prepared), []
    spacing = tuple(float(prepared.affine[axis, axis]) for axis in range(len(config.shape)))
    present = np.isin(np.arange(len(prepared.image)), prepared.missing, invert=True)
    fit, changes = _fit(config, keys), changes_of(augmentation, keys, spacing, len(present))
    for _ in range(augmentation.copies):
        fit.set_random_state(seed=int(random.randint(2**31)))
        found = fit(_data(prepared))
        for each in found if isinstance(found, list) else [found]:
            changes.set_random_state(seed=int(random.randint(2**31)))
            image, target = _pair(changes(each))
            kept = torch.from_numpy(kept_channels(present, augmentation.drop_channel, random))
            # where nothing was changed the image is the prepared scan itself, which stays
            pairs.append((image if kept.all() else image * kept.view(-1, *[1] * len(spacing)), target))
    return pairs


def _fit(config: PreprocessingConfig, keys: Sequence[str]) -> Compose:
    if not isinstance(config.fit, Patches):
        return Compose([ResizeWithPadOrCropd(keys, config.shape)])
    share = config.fit.foreground
    crop = RandCropByPosNegLabeld(
        keys,
        "target",
        config.shape,
        pos=share,
        neg=1 - share,
        num_samples=config.fit.per_scan,
    )
    return Compose([SpatialPadd(keys, config.shape), crop])


def whole_image(prepared: Prepared, divisors: Sequence[int]) -> Tensor:
    """Return the whole image `(C, *spatial)`, padded at the far ends to multiples of `divisors`.

    An image of one divisor a side gets two along its first axis: instance norms need two voxels.
    """
    pairs = zip(prepared.image.shape[1:], divisors, strict=True)
    sides = [-(-side // divisor) * divisor for side, divisor in pairs]
    if sides == list(divisors):
        sides[0] *= 2
    return _plain(SpatialPad(sides, method="end")(prepared.image))


def on_own_grid(probabilities: Tensor, prepared: Prepared) -> Tensor:
    """Return probabilities `(C, *spatial)` of the prepared image, resampled to the scan's own voxels.

    A voxel less than one prepared voxel beyond the prepared image has the answer at its edge. Voxels
    further away were cropped, and are background.
    """
    if prepared.is_own_grid:
        return probabilities
    own = MetaTensor(torch.zeros(1, *prepared.truth.shape), affine=_affine(prepared.spacing_mm))
    here = MetaTensor(probabilities, affine=prepared.affine)
    back = ResampleToMatch(mode="bilinear", padding_mode="border", align_corners=True)
    resampled = _plain(back(here, img_dst=own))
    for axis, outside in enumerate(_outside(prepared)):
        resampled.movedim(axis + 1, 0)[outside] = 0
    resampled[0] += 1 - resampled.sum(0)
    return resampled


def _outside(prepared: Prepared) -> Iterator[Tensor]:
    """Yield for each axis the scan's own voxels that are a prepared voxel or more beyond the image."""
    sides = zip(prepared.truth.shape, prepared.spacing_mm, prepared.image.shape[1:], strict=True)
    for axis, (own, spacing, side) in enumerate(sides):
        places = spacing * torch.arange(own, dtype=torch.float64) - prepared.affine[axis, 3]
        index = places / prepared.affine[axis, axis]
        yield (index <= -1 + 1e-6) | (index >= side - 1e-6)


def _affine(spacing_mm: Sequence[float]) -> NDArray[np.float64]:
    return np.diag([*spacing_mm, *[1.0] * (4 - len(spacing_mm))])


def _keys(prepared: Prepared) -> tuple[str, ...]:
    return BOTH if prepared.is_map else ("image",)


def _data(prepared: Prepared) -> dict[str, Tensor]:
    target = prepared.target[None].float() if prepared.is_map else prepared.target
    return {"image": prepared.image, "target": target}


def _pair(data: dict[str, Any]) -> Pair:
    image, target = _plain(data["image"]), _plain(data["target"])
    return image, target[0].long() if target.dim() == image.dim() else target


def _plain(values: object) -> Tensor:
    """Return the output of MONAI's transforms as a plain tensor."""
    tensor = values.as_tensor() if isinstance(values, MetaTensor) else torch.as_tensor(values)
    return tensor.contiguous()


def _tensor(values: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.asarray(values, order="C"))
