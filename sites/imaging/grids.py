"""Images of one scan on one grid: the channels of a case, which were registered beforehand."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from sites.imaging.image import Image


class Elsewhere(ValueError):
    """An image shows another place than the one that it belongs to."""


def on_grid_of(first: Image, image: Image, *, is_label: bool = False) -> Image:
    """Return an image on another one's grid; itself if it lies there already.

    Images that show the same box with voxels of other sizes are resampled linearly, labels by the
    nearest voxel, and both so beyond the middle of the outermost voxel. Pictures, which state no place,
    must have one shape.

    Raises:
        Elsewhere: the boxes' corners are further apart than one voxel, or the dimensions differ.
    """
    shape, other = first.voxels.shape, image.voxels.shape
    if len(shape) != len(other):
        raise Elsewhere(f"expected {len(shape)} dimensions as the first channel has, got {len(other)}")
    if shape != other and first.placement is None:
        raise Elsewhere(f"its shape is {other}, that of the first channel {shape}")
    if fault := mirrored(first, image, ("first channel", "other one")):
        raise Elsewhere(fault)
    apart = float(np.abs(_corners(first) - _corners(image)).max())
    if apart > max(*first.spacing_mm, *image.spacing_mm):
        raise Elsewhere(
            f"it is up to {apart:.1f} mm away from the first channel (shapes {other} and {shape}); "
            f"register the channels to one grid beforehand"
        )
    if shape == other and np.abs(_centres(first) - _centres(image)).max() <= 0.1 * min(first.spacing_mm):
        return image
    dims = len(shape)
    to_own = np.linalg.inv(image.affine) @ first.affine
    voxels = affine_transform(
        image.voxels, to_own[:dims, :dims], to_own[:dims, 3], shape, order=int(not is_label),
        mode="nearest",
    )  # fmt: skip
    return replace(image, voxels=voxels, affine=first.affine, spacing_mm=first.spacing_mm)


def mirrored(image: Image, other: Image, names: tuple[str, str]) -> str | None:
    """Return why two images may lie the other way round, though their corners agree; else None.

    Args:
        names: what a message calls them.
    """
    one, two = image.placement, other.placement
    if one is None or two is None:
        return None
    if one.is_stated != two.is_stated:
        unstated, stated = names[::-1] if one.is_stated else names
        return (
            f"the {unstated} states no orientation (qform and sform codes are 0), the {stated} does: "
            f"one may be mirrored"
        )
    for a, b, (mine, theirs) in ((one, two, names), (two, one, names[::-1])):
        if a.other is None or np.allclose(a.affine, b.affine, atol=1e-2):
            continue
        if np.allclose(a.other, b.affine, atol=1e-2):
            return (
                f"qform and sform of the {mine} differ; it was read by its sform, and the {theirs} lies "
                f"by the qform"
            )
    return None


def _corners(image: Image) -> NDArray[np.float64]:
    return _places(image, 0.5)


def _centres(image: Image) -> NDArray[np.float64]:
    return _places(image, 0.0)


def _places(image: Image, beyond: float) -> NDArray[np.float64]:
    """Return the places in mm of the outermost voxels' centres, moved out by a part of a voxel."""
    sides = image.voxels.shape
    ends = [(-beyond, side - 1 + beyond) for side in sides]
    corners = np.array(np.meshgrid(*ends)).reshape(len(sides), -1)
    return np.asarray(image.affine[:3, : len(sides)] @ corners + image.affine[:3, 3:])
