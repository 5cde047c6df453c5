"""The label map of a segmentation's case, from one label image or from a mask for each structure.

Masks and probabilities of single structures are what TotalSegmentator
(https://doi.org/10.1148/ryai.230024) writes, and BIDS names `_mask` and `_probseg`
(https://bids-specification.readthedocs.io/en/stable/derivatives/imaging.html). A voxel has the label
of the largest share, and none where the rest of the shares is larger.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.settings.tasks import SegmentationConfig
from sites.imaging.grids import Elsewhere, mirrored, on_grid_of
from sites.imaging.image import Image, Unreadable
from sites.imaging.images import read_image, read_label
from sites.listing.cases import CaseFiles, plain_name

EXACT, ROUNDED = 1e-3, 0.1
"""Distances from a whole number up to which a label's value is rounded without, and with a finding."""
MOST_SHARED = 1.02
"""Largest sum of a voxel's shares: probabilities are often stored with eight bits each."""


class BadLabel(ValueError):
    """A label image doesn't fit its image or the study. The message names nothing of the patient."""

    def __init__(self, fault: str, reason: str) -> None:
        self.fault = fault
        super().__init__(reason)


@dataclass(frozen=True)
class LabelMap:
    """Labels in the study's terms.

    Attributes:
        values: `(*spatial)`, on the image's grid.
        rounding: the largest change of a value by rounding.
        words, notes: of the files, as `Image` has them.
    """

    values: NDArray[np.int64]
    rounding: float
    words: tuple[str, ...]
    notes: tuple[str, ...]


def label_map_of(
    data: Path, case: CaseFiles, images: Sequence[Image | None], task: SegmentationConfig
) -> LabelMap:
    """Return the labels of a case.

    Args:
        images: the case's channels, None for a missing one; the first that is there gives the grid.

    Raises:
        BadLabel: there is no label, it can't be read or lies elsewhere, or it has other values.
    """
    there = [each for each in images if each is not None]
    names = {plain_name(name): value for value, name in task.labels.items()} | dict(case.label_names)
    if not case.label:
        raise BadLabel("missing", "the list has no label for this image")
    try:
        if case.masks:
            return _of_masks(data, case, there[0], names, task)
        series = {each.series for each in there if each.series}
        label, is_mapped = read_label(data, case.label, there[0], names, series)
    except Unreadable as error:
        raise BadLabel(error.fault, f"label: {error}") from error
    label = _on_grid(there[0], label.of_dims(task.dims), task)
    values, rounding = _rounded(label.voxels)
    values = values if is_mapped else _mapped(values, case)
    _check_place(there[0], label)
    if strange := sorted(set(np.unique(values)) - {0, *task.labels}):
        text = f"the label has the value {strange[0]:g}, which is not in the study"
        raise BadLabel("label_values", text)
    return LabelMap(values.astype(np.int64), rounding, label.words, label.notes)


def _on_grid(image: Image, label: Image, task: SegmentationConfig) -> Image:
    """Return a label image on the first channel's grid, if it was drawn on that of another channel."""
    if len(task.channel_names) == 1 or image.voxels.shape == label.voxels.shape:
        return label
    try:
        return on_grid_of(image, label, is_label=True)
    except Elsewhere as error:
        raise BadLabel("label_shape", f"label: {error}") from error


def _rounded(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """Return label values as whole numbers, and the largest change; unchanged if that is too large.

    A label image that was saved from floats into an integer type comes back as 0, 1.00002, 2.
    """
    if not np.isfinite(values).all():
        return values, 0.0
    whole: NDArray[np.float32] = np.rint(values)
    change = float(np.abs(values - whole).max(initial=0))
    return (whole, change) if change <= ROUNDED else (values, change)


def _mapped(values: NDArray[np.float32], case: CaseFiles) -> NDArray[np.float32]:
    """Return label values in the study's terms, by the hospital's `label_map`."""
    found = values.copy() if case.label_map else values
    for own, due in case.label_map:
        found[values == own] = due
    return found


def _check_place(image: Image, label: Image) -> None:
    shapes = image.voxels.shape, label.voxels.shape
    if shapes[0] != shapes[1]:
        raise BadLabel("label_shape", f"the image has shape {shapes[0]}, its label {shapes[1]}")
    if fault := mirrored(image, label, ("image", "label")):
        raise BadLabel("label_affine", fault)
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shapes[0]])).reshape(len(shapes[0]), -1)
    places = (a.affine[:3, : len(corners)] @ corners + a.affine[:3, 3:] for a in (image, label))
    apart = float(np.abs(np.subtract(*places)).max())
    if apart > min(image.spacing_mm):
        text = f"image and label are up to {apart:.1f} mm apart according to their affines"
        raise BadLabel("label_affine", text)


def _of_masks(
    data: Path, case: CaseFiles, image: Image, names: Mapping[str, int], task: SegmentationConfig
) -> LabelMap:
    """Return the labels of a case that has a mask for each structure; those of no label are left out."""
    shape = image.voxels.shape
    values, largest, total = np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape)
    read: list[Image] = []
    for structure, file in case.masks:
        if structure not in names:
            continue
        mask = _on_grid(image, read_image(data, file, is_label=True).of_dims(task.dims), task)
        read.append(replace(mask, voxels=image.voxels))  # its text, and not its voxels
        _check_place(image, mask)
        shares = _shares(mask.voxels, structure)
        total += shares
        values[shares > largest] = names[structure]
        largest = np.maximum(largest, shares)
    if shared := int((total > MOST_SHARED).sum()):
        raise BadLabel(
            "label_values", f"the masks overlap in {shared} voxels; write such labels into one image"
        )
    values[largest < 1 - total] = 0
    words = tuple(word for each in read for word in each.words)
    return LabelMap(values, 0.0, words, tuple(note for each in read for note in each.notes))


def _shares(voxels: NDArray[np.float32], structure: str) -> NDArray[np.float64]:
    """Return how much of each voxel a mask or a probability gives to a structure, from 0 to 1."""
    low, high = float(voxels.min(initial=0)), float(voxels.max(initial=0))
    if np.isfinite([low, high]).all() and low >= -EXACT:
        if high <= 1 + EXACT:
            return np.clip(np.asarray(voxels, dtype=np.float64), 0, 1)
        if np.isin(voxels, (0, high)).all():
            return np.asarray(voxels == high, dtype=np.float64)
    raise BadLabel(
        "label_values",
        f"the mask of {structure} has values from {low:g} to {high:g}; expected 0 and one other value, "
        f"or probabilities from 0 to 1",
    )
