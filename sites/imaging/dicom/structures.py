"""Structure sets (RTSTRUCT): contours in mm, filled on an image's grid.

A voxel belongs to a contour if its centre is inside. A contour within another one is a hole, and one
within a hole an island; contours that only overlap are united. A contour that is stored twice counts
once.

Source: DICOM PS3.3 C.8.8.6 (ROI Contour Module),
https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.8.8.6.html.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.path import Path as Polygon
from numpy.typing import NDArray
from pydicom import Dataset

from sites.imaging.dicom.files import UnfitSeries
from sites.imaging.dicom.segments import TO_RAS
from sites.imaging.image import Image
from sites.listing.cases import plain_name

OFF_SLICE = 0.2
"""Largest distance of a contour from the middle of its slice, as a share of a slice."""
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
SAME_MM = 1e-3


@dataclass(frozen=True)
class _Region:
    """What one contour encloses: the axis and number of its slice, and its voxels in that slice."""

    axis: int
    number: int
    inside: NDArray[np.bool_]
    is_hole: bool


def structures(
    drawn: Dataset, image: Image, names: Mapping[str, int]
) -> tuple[dict[int, NDArray[np.bool_]], list[str]]:
    """Return a mask on an image's grid for each value, and notes of what was not used or is missing.

    Args:
        names: the value of each label by its name, as `plain_name` writes it.

    Raises:
        UnfitSeries: no structure has the name of a label; contours are not closed, or lie outside.
    """
    called = {
        int(each.ROINumber): plain_name(str(each.ROIName)) for each in drawn.StructureSetROISequence
    }
    found: dict[int, NDArray[np.bool_]] = {}
    used, skipped = 0, 0
    for structure in drawn.get("ROIContourSequence") or ():
        value = names.get(called.get(int(structure.ReferencedROINumber), ""))
        if value is None:
            continue
        used += 1
        mask, missing = _filled(_regions(structure, image), image)
        skipped += missing
        found[value] = found.get(value, np.zeros(1, bool)) | mask
    if not found:
        raise UnfitSeries(f"none of its {len(called)} structures has the name of a label")
    notes = []
    if others := len(called) - used:
        notes.append(f"{others} structures with other names than the labels are not used")
    if skipped:
        notes.append(f"{skipped} slices between a structure's contours have none, and stay empty")
    return dict(sorted(found.items())), notes


def _regions(structure: Dataset, image: Image) -> list[_Region]:
    """Return the closed contours of a structure, each once, the largest of a slice first."""
    contours = structure.get("ContourSequence") or ()
    closed = [each for each in contours if each.get("ContourGeometricType") in CLOSED]
    if len(closed) < len(contours):
        raise UnfitSeries("a structure has contours that are open, or single points")
    known: list[NDArray[np.float64]] = []
    regions = []
    for contour in closed:
        points = np.asarray([float(value) for value in contour.ContourData]).reshape(-1, 3)
        if any(p.shape == points.shape and np.allclose(p, points, atol=SAME_MM) for p in known):
            continue
        known.append(points)
        is_hole = contour.ContourGeometricType == "CLOSEDPLANAR_XOR"
        regions.append(_region(points @ TO_RAS[:3, :3], image, is_hole=is_hole))
    return sorted(regions, key=lambda each: -int(each.inside.sum()))


def _region(contour: NDArray[np.float64], image: Image, *, is_hole: bool) -> _Region:
    """Return what a contour `(N, 3)` in mm encloses."""
    to_index = np.linalg.inv(image.affine)
    places = contour @ to_index[:3, :3].T + to_index[:3, 3]
    shape = image.voxels.shape
    axis = int(np.argmin(np.ptp(places, axis=0)))
    number = round(float(places[:, axis].mean()))
    if np.abs(places[:, axis] - number).max() > OFF_SLICE:
        raise UnfitSeries("a contour lies between the slices of its image, or across them")
    plane = [each for each in range(3) if each != axis]
    low, high = places.min(0), places.max(0)
    sides = np.asarray(shape) - 0.5
    if not 0 <= number < shape[axis] or (low < -0.5)[plane].any() or (high > sides)[plane].any():
        raise UnfitSeries("a contour lies outside the image")
    spans = [np.arange(int(np.floor(low[e])), int(np.ceil(high[e])) + 1) for e in plane]
    spans = [span[(span >= 0) & (span < shape[e])] for span, e in zip(spans, plane, strict=True)]
    grid = np.stack(np.meshgrid(*spans, indexing="ij"), -1)
    inside = np.zeros([shape[each] for each in plane], bool)
    within = Polygon(places[:, plane]).contains_points(grid.reshape(-1, 2))
    inside[np.ix_(*spans)] = within.reshape(grid.shape[:2])
    return _Region(axis, number, inside, is_hole)


def _filled(regions: list[_Region], image: Image) -> tuple[NDArray[np.bool_], int]:
    """Return the mask of contours, and how many slices between them have none."""
    mask = np.zeros(image.voxels.shape, bool)
    for region in regions:
        slice_of = np.moveaxis(mask, region.axis, 0)[region.number]  # a view
        if region.is_hole or slice_of[region.inside].all():
            slice_of ^= region.inside
        else:
            slice_of |= region.inside
    missing = 0
    for axis in {region.axis for region in regions}:
        numbers = {region.number for region in regions if region.axis == axis}
        missing += max(numbers) - min(numbers) + 1 - len(numbers)
    return mask, missing
