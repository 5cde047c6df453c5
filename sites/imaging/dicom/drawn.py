"""Labels drawn in DICOM: segmentations (SEG) and structure sets (RTSTRUCT), on an image's grid.

A segment or structure has the value of the label of its name; what has another name is left out, and it
is said how many. If no segment has the name of a label, all have their numbers as values. Structures of
one value are united; those of different values may not overlap.

A voxel belongs to a structure if its centre is inside an odd number of the structure's contours in its
slice, so a contour within another one is a hole.

Sources: DICOM PS3.3 A.51 (Segmentation IOD), C.8.8.6 (ROI Contour Module),
https://dicom.nema.org/medical/dicom/current/output/chtml/part03/PS3.3.html.
"""

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from matplotlib.path import Path as Polygon
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import RTStructureSetStorage, SegmentationStorage

from sites.imaging.dicom.files import LABEL_MAP, UnfitSeries, read_file
from sites.imaging.image import Image
from sites.listing.cases import plain_name

SEGMENTATIONS = frozenset({SegmentationStorage, LABEL_MAP})
DRAWN = SEGMENTATIONS | {RTStructureSetStorage}
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From DICOM's axes (to the patient's left and back) to RAS, and the way back."""
ALIGNED = 0.05
"""Largest distance, in voxels, of a segmentation's voxels from those of its image."""
OFF_SLICE = 0.2
"""Largest distance of a contour from the middle of its slice, as a share of a slice."""
HALF = 0.5
"""Share of a voxel, or probability, from which on a segment holds."""
SHARED = 0.05
"""Share of the smaller of two structures up to which both may claim voxels, as along a common border."""


@dataclass(frozen=True)
class Drawn:
    """Labels on an image's grid, and what was left out.

    Attributes:
        values: `(*spatial)`, 0 for background.
        is_named: they are those of labels' names, and not the segments' own numbers.
        notes: how many structures were not used.
    """

    values: NDArray[np.int64]
    is_named: bool
    notes: tuple[str, ...] = ()


def drawn_in(path: Path) -> Dataset | None:
    """Return the one segmentation or structure set of a file or folder; None if there is none.

    Raises:
        UnfitSeries: there are several, one is outside the folder, or it is damaged.
    """
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    if any(not each.resolve().is_relative_to(path) for each in files):
        raise UnfitSeries("a file is outside the folder")
    found = [each for each in files if _kind(each) in DRAWN]
    if len(found) > 1:
        raise UnfitSeries(f"the folder holds {len(found)} segmentations or structure sets")
    return read_file(found[0]) if found else None


def _kind(path: Path) -> str:
    """Return the SOP class that a file's meta information states; no more of the file is read."""
    try:
        meta = pydicom.filereader.read_file_meta_info(path)
        return str(meta.get("MediaStorageSOPClassUID", ""))
    except Exception:  # no DICOM file; who reads it as an image says so
        return ""


def on_image(
    drawn: Dataset, image: Image, names: Mapping[str, int], series: Collection[str]
) -> Drawn:  # fmt: skip
    """Return drawn labels on an image's grid.

    Args:
        names: the value of each label by its name, as `plain_name` writes it.
        series: UIDs of the series of the scan's channels, as far as they have one.

    Raises:
        UnfitSeries: they refer to another series, lie on another grid or outside the image, or overlap.
    """
    if image.placement is None or image.voxels.ndim != 3:
        raise UnfitSeries("drawn labels need an image with a place in space")
    if str(drawn.SOPClassUID) == RTStructureSetStorage:
        _check_series({str(each) for each in _series_of_structures(drawn)}, series)
        return _structures(drawn, image, names)
    referenced = drawn.get("ReferencedSeriesSequence") or []
    _check_series({str(each.SeriesInstanceUID) for each in referenced}, series)
    return _segments(drawn, image, names)


def _check_series(referenced: set[str], series: Collection[str]) -> None:
    if series and referenced and not referenced & set(series):
        raise UnfitSeries("it refers to another series than its image")


def _segments(drawn: Dataset, image: Image, names: Mapping[str, int]) -> Drawn:
    import highdicom as hd

    described = {
        int(each.SegmentNumber): str(each.SegmentLabel)
        for each in drawn.SegmentSequence
        if int(each.SegmentNumber)  # a label map describes its background as 0
    }
    named = {
        number: names[plain_name(label)]
        for number, label in described.items()
        if plain_name(label) in names
    }
    values = named or {number: number for number in described}
    geometry = hd.VolumeGeometry(TO_RAS @ image.affine, image.voxels.shape, "PATIENT")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read = hd.seg.Segmentation.from_dataset(drawn, copy=False)
            volume = read.get_volume(segment_numbers=sorted(values))
            shares = volume.match_geometry(geometry, tol=ALIGNED).array
    except (RuntimeError, ValueError) as error:
        raise UnfitSeries("it lies on another grid than its image, or outside it") from error
    masks: dict[int, NDArray[np.bool_]] = {}
    for place, number in enumerate(sorted(values)):
        value = values[number]
        masks[value] = masks.get(value, np.zeros(1, bool)) | (shares[..., place] >= HALF)
    stack = np.stack(list(masks.values()))
    if (stack.sum(0) > 1).any():
        raise UnfitSeries("its segments overlap")
    found = np.tensordot(np.asarray(list(masks)), stack, 1)
    notes = _left_out(len(described) - len(values), "segments")
    return Drawn(np.asarray(found, np.int64), bool(named), tuple(notes))


def _left_out(count: int, what: str) -> list[str]:
    return [f"{count} {what} with other names than the labels are not used"] if count else []


def _series_of_structures(drawn: Dataset) -> list[str]:
    return [
        series.SeriesInstanceUID
        for frame in drawn.get("ReferencedFrameOfReferenceSequence") or ()
        for study in frame.get("RTReferencedStudySequence") or ()
        for series in study.get("RTReferencedSeriesSequence") or ()
    ]


def _structures(drawn: Dataset, image: Image, names: Mapping[str, int]) -> Drawn:
    called = {
        int(each.ROINumber): plain_name(str(each.ROIName)) for each in drawn.StructureSetROISequence
    }
    found: dict[int, NDArray[np.bool_]] = {}
    used = 0
    for structure in drawn.get("ROIContourSequence") or ():
        value = names.get(called.get(int(structure.ReferencedROINumber), ""))
        if value is not None:
            used += 1
            found[value] = found.get(value, np.zeros(1, bool)) | _filled(_contours(structure), image)
    if not found:
        raise UnfitSeries(f"none of its {len(called)} structures has the name of a label")
    masks = dict(sorted(found.items()))
    values = np.zeros(image.voxels.shape, np.int64)
    for value, mask in masks.items():
        taken = mask & (values > 0)
        smallest = min(mask.sum(), *((values == other).sum() for other in masks if other < value), 10**9)
        if taken.sum() > SHARED * smallest:
            raise UnfitSeries("its structures overlap")
        values[mask] = value
    return Drawn(values, True, tuple(_left_out(len(called) - used, "structures")))


def _contours(structure: Dataset) -> list[NDArray[np.float64]]:
    """Return the closed contours of a structure in mm, `(N, 3)` each, in RAS."""
    found = []
    for contour in structure.get("ContourSequence") or ():
        if contour.get("ContourGeometricType") in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
            points = np.asarray([float(value) for value in contour.ContourData]).reshape(-1, 3)
            found.append(points @ TO_RAS[:3, :3])
    return found


def _filled(contours: list[NDArray[np.float64]], image: Image) -> NDArray[np.bool_]:
    shape = image.voxels.shape
    mask = np.zeros(shape, bool)
    to_index = np.linalg.inv(image.affine)
    for contour in contours:
        places = contour @ to_index[:3, :3].T + to_index[:3, 3]
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
        inside = Polygon(places[:, plane]).contains_points(grid.reshape(-1, 2)).reshape(grid.shape[:2])
        slice_of = np.moveaxis(mask, axis, 0)[number]  # a view
        slice_of[np.ix_(*spans)] ^= inside
    return mask
