"""Search for text in an image's pixels: cleaning the header does not remove a name burned into them.

The result is a suspicion; no text is read. Letters are at one extreme of the intensities, are small,
have about the same height, and form a row. Anatomy rarely has all four properties.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FEWEST_LETTERS = 5
SMALLEST_SIDE = 48
"""Images with a shorter side, in pixels, have no room for a name."""
LETTER = (5, 64)
"""The smallest and the largest height of a letter, in pixels."""
NEAR = (0.03, 0.15, 0.35)
"""Distances from an extreme, as shares of the range, within which a pixel may belong to a letter.

The larger shares are for letters with soft edges.
"""
SMALLEST_CONTRAST = 0.2
"""Smallest step between a letter and what is around it, as a share of the range.

Vessels and textures differ less from their surroundings.
"""
MOST_DRAWN = 0.2
"""Text covers less than this share of an image."""
Box = tuple[int, int, int, int]
"""Top, bottom, left, right."""


def may_show_text(image: NDArray[np.float32]) -> bool:
    """Return whether a picture, or the middle slice of a volume along any axis, may show text."""
    return any(_has_line(mask, plane) for plane in _planes(image) for mask in _drawn(plane))


def _planes(image: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    planes = [image] if image.ndim == 2 else [
        np.take(image, image.shape[axis] // 2, axis) for axis in range(image.ndim)
    ]  # fmt: skip
    for plane in planes:
        if min(plane.shape) >= SMALLEST_SIDE:
            yield plane
            yield plane.T  # a volume's rows may be the screen's columns


def _drawn(plane: NDArray[np.float32]) -> Iterator[NDArray[np.bool_]]:
    """Yield masks of the brightest and of the darkest pixels, if they cover little of the plane."""
    low, high = float(plane.min()), float(plane.max())
    for margin in (share * (high - low) for share in NEAR):
        for mask in (plane >= high - margin, plane <= low + margin):
            if 0 < mask.mean() < MOST_DRAWN:
                yield mask


def _has_line(mask: NDArray[np.bool_], plane: NDArray[np.float32]) -> bool:
    letters = sorted(_letters(mask, plane), key=lambda box: box[2])
    return any(_length_of_line(first, letters) >= FEWEST_LETTERS for first in letters)


def _letters(mask: NDArray[np.bool_], plane: NDArray[np.float32]) -> list[Box]:
    labelled, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    contrast = SMALLEST_CONTRAST * float(np.ptp(plane))
    boxes = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labelled), start=1):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        filled = (labelled[rows, columns] == number).mean()
        if LETTER[0] <= height <= LETTER[1] and width <= 1.5 * height and 0.15 <= filled <= 0.95:
            if _stands_out(labelled, number, (rows, columns), plane) < contrast:
                continue
            boxes.append((rows.start, rows.stop, columns.start, columns.stop))
    return boxes


def _stands_out(
    labelled: NDArray[np.int32], number: int, where: tuple[slice, slice], plane: NDArray[np.float32]
) -> float:
    """Return how far a component's intensities are from those around it, medians, without a rim."""
    rows, columns = (slice(max(side.start - 4, 0), side.stop + 4) for side in where)
    own = labelled[rows, columns] == number
    around = ndimage.binary_dilation(own, iterations=4) & ~ndimage.binary_dilation(own, iterations=2)
    seen = plane[rows, columns]
    return abs(float(np.median(seen[own])) - float(np.median(seen[around]))) if around.any() else 0.0


def _length_of_line(first: Box, letters: list[Box]) -> int:
    """Return the number of letters in the row from `first` on: alike in height, level and close."""
    last, count = first, 1
    height = first[1] - first[0]
    for box in letters:
        is_alike = 0.6 * height <= box[1] - box[0] <= 1.6 * height
        is_level = abs(box[1] - first[1]) <= max(1, 0.25 * height)
        gap = box[2] - last[3]
        if box[2] > last[2] and is_alike and is_level and -1 <= gap <= 1.5 * height:
            last, count = box, count + 1
    return count
