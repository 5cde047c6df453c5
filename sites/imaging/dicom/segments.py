"""DICOM Segmentations on an image's grid, frame by frame.

Each frame states its own place; it may leave out slices, and its axes may be the image's in another
order. Scanners round positions and directions, and a tilted gantry shears the grid, so a frame fits if
its corners lie on the image's voxels within `ALIGNED` voxels or the rounding of a position.

Sources: DICOM PS3.3 A.51 and C.8.20.2 (Segmentation),
https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.8.20.2.html.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from sites.imaging.dicom.files import LABEL_MAP, UnfitSeries
from sites.imaging.dicom.series import ROUNDING_MM
from sites.imaging.dicom.stack import group_of, is_multi_frame
from sites.imaging.image import Image
from sites.listing.cases import plain_name

TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From DICOM's axes (to the patient's left and back) to RAS, and the way back."""
ALIGNED = 0.05
"""Largest distance, in voxels, of a segmentation's voxels from those of its image."""
MOST_APART = 0.3
"""Largest distance in voxels that rounding may explain; beyond, the nearest voxel may be another one."""
HALF = 0.5
"""Share of a voxel, or probability, from which on a segment holds."""
NUMBERED = re.compile(r"(.*\d)?|segment(ation)?|label|mask|roi|region|structure")
"""Names of segments that say no more than a number: with these, their numbers are their values."""


def values_of(drawn: Dataset, names: Mapping[str, int]) -> tuple[dict[int, int], int, bool]:
    """Return the value of each segment that is used, the count of others, and whether names decided.

    Raises:
        UnfitSeries: no segment has the name of a label, and they are not merely numbered.
    """
    described = {
        int(each.SegmentNumber): plain_name(str(each.SegmentLabel))
        for each in drawn.SegmentSequence
        if int(each.SegmentNumber)  # a label map describes its background as 0
    }
    named = {number: names[label] for number, label in described.items() if label in names}
    if named:
        return named, len(described) - len(named), True
    if not all(NUMBERED.fullmatch(label) for label in described.values()):
        raise UnfitSeries(
            f"none of its {len(described)} segments has the name of a label; `label_map` in site.yaml "
            f"gives own names"
        )
    return {number: number for number in described}, 0, False


def segments(drawn: Dataset, image: Image, values: Mapping[int, int]) -> dict[int, NDArray[np.bool_]]:
    """Return a mask on an image's grid for each value.

    Args:
        values: the value of each segment's number.

    Raises:
        UnfitSeries: it lies on another grid, or a part of it outside the image.
    """
    masks = {value: np.zeros(image.voxels.shape, bool) for value in sorted(set(values.values()))}
    whole = float(drawn.get("MaximumFractionalValue") or 1)
    is_label_map = str(drawn.SOPClassUID) == LABEL_MAP
    stored = drawn.pixel_array.reshape(-1, drawn.Rows, drawn.Columns)
    is_flat = image.placement is None
    affines = repeat(np.zeros(0), len(stored)) if is_flat else frame_affines(drawn)
    for frame, own, affine in zip(stored, _numbers(drawn), affines, strict=True):
        found = {own: frame >= HALF * whole}
        if is_label_map:
            found = {number: frame == number for number in values}
        for number, mask in found.items():
            if number not in values or not mask.any():
                continue
            if is_flat:
                _lay_flat(mask, masks[values[number]])
            else:
                _lay(mask, affine, image, masks[values[number]])
    return masks


def _lay_flat(mask: NDArray[np.bool_], target: NDArray[np.bool_]) -> None:
    if mask.shape != target.shape:
        raise UnfitSeries(f"its frames have shape {mask.shape}, the image {target.shape}")
    target |= mask


def _numbers(drawn: Dataset) -> Iterator[int]:
    """Yield the number of each frame's segment, 0 for none."""
    shared = (drawn.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    for own in drawn.PerFrameFunctionalGroupsSequence:
        groups = (each.get("SegmentIdentificationSequence") for each in (own, shared))
        found = next((each for each in groups if each), None)
        yield int(found[0].ReferencedSegmentNumber) if found else 0


def frame_affines(image: Dataset) -> Iterator[NDArray[np.float64]]:
    """Yield for each frame of an image its affine `(4, 3)`, from row, column and 1 to mm in RAS.

    Raises:
        UnfitSeries: a frame does not state its place.
    """
    if not is_multi_frame(image):
        yield _affine(image.ImagePositionPatient, image.ImageOrientationPatient, image.PixelSpacing)
        return
    shared = (image.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    for own in image.PerFrameFunctionalGroupsSequence:
        place = group_of(own, shared, "PlanePositionSequence").ImagePositionPatient
        turn = group_of(own, shared, "PlaneOrientationSequence").ImageOrientationPatient
        yield _affine(place, turn, group_of(own, shared, "PixelMeasuresSequence").PixelSpacing)


def _affine(
    place: Sequence[float], turn: Sequence[float], sides: Sequence[float]
) -> NDArray[np.float64]:
    across, down = np.asarray([float(value) for value in turn]).reshape(2, 3)
    origin = np.asarray([float(value) for value in place])
    down_mm, across_mm = (float(side) for side in sides)
    columns = np.stack([down * down_mm, across * across_mm, origin], 1)
    return np.asarray(TO_RAS @ np.vstack([columns, [0, 0, 1]]))


def places_of(
    shape: tuple[int, int], affine: NDArray[np.float64], image: Image
) -> NDArray[np.intp]:  # fmt: skip
    """Return the voxel of an image for each pixel of a frame, `(3, rows, columns)`, also outside.

    Raises:
        UnfitSeries: the frame lies on another grid.
    """
    to_index = np.linalg.inv(image.affine) @ affine
    last = [side - 1 for side in shape]
    corners = np.array([(0, 0, 1), (last[0], 0, 1), (0, last[1], 1), (*last, 1)]).T
    found = (to_index @ corners)[:3]
    within = np.maximum(ALIGNED, ROUNDING_MM / np.asarray(image.spacing_mm))
    steps = np.sort(np.abs(to_index[:3, :2]), axis=0)
    is_turned = steps[-1].min() < HALF or steps[:2].max() > HALF
    if is_turned or (np.abs(found - np.rint(found)) > np.minimum(within, MOST_APART)[:, None]).any():
        raise UnfitSeries("it lies on another grid than its image")
    pixels = np.stack([*np.indices(shape), np.ones(shape, int)]).reshape(3, -1)
    return np.asarray(np.rint((to_index @ pixels)[:3]), dtype=np.intp).reshape(3, *shape)


def _lay(
    mask: NDArray[np.bool_], affine: NDArray[np.float64], image: Image, target: NDArray[np.bool_]
) -> None:
    """Set the voxels of a frame's mask in `target`."""
    places = places_of(mask.shape, affine, image)[:, mask]
    if (places < 0).any() or (places >= np.asarray(target.shape)[:, None]).any():
        raise UnfitSeries("a part of it lies outside its image")
    target[tuple(places)] = True
