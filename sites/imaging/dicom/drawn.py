"""Labels drawn in DICOM: segmentations (SEG) and structure sets (RTSTRUCT), on an image's grid.

A segment or structure has the value of the label of its name; what has another name is left out, and it
is said how many. Segments that are merely numbered have their numbers as values. Those of one value are
united; those of different values may not overlap.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import RTStructureSetStorage, SegmentationStorage

from sites.imaging.dicom.files import LABEL_MAP, UnfitSeries, read_file
from sites.imaging.dicom.segments import segments, values_of
from sites.imaging.dicom.structures import structures
from sites.imaging.image import Image

SEGMENTATIONS = frozenset({SegmentationStorage, LABEL_MAP})
DRAWN = SEGMENTATIONS | {RTStructureSetStorage}
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
    is_flat = image.placement is None
    if not is_flat and image.voxels.ndim != 3:
        raise UnfitSeries("drawn labels need a volume, or an image without a place in space")
    if str(drawn.SOPClassUID) == RTStructureSetStorage:
        if is_flat:
            raise UnfitSeries("contours need an image with a place in space")
        _check_series({str(each) for each in _series_of_structures(drawn)}, series)
        masks, notes = structures(drawn, image, names)
        return Drawn(_united(masks, "structures", SHARED), True, tuple(notes))
    referenced = drawn.get("ReferencedSeriesSequence") or []
    _check_series({str(each.SeriesInstanceUID) for each in referenced}, series)
    values, others, is_named = values_of(drawn, names)
    notes = [f"{others} segments with other names than the labels are not used"] if others else []
    return Drawn(_united(segments(drawn, image, values), "segments", 0.0), is_named, tuple(notes))


def _united(
    masks: Mapping[int, NDArray[np.bool_]], what: str, shared: float
) -> NDArray[np.int64]:  # fmt: skip
    """Return masks as one label map, or raise `UnfitSeries` where two share more than `shared`."""
    values = np.zeros(next(iter(masks.values())).shape, np.int64)
    for value, mask in masks.items():
        for other in np.unique(values[mask & (values > 0)]):
            smaller = min(mask.sum(), (values == other).sum())
            if (mask & (values == other)).sum() > shared * smaller:
                raise UnfitSeries(f"its {what} overlap")
        values[mask] = value
    return values


def _check_series(referenced: set[str], series: Collection[str]) -> None:
    if series and referenced and not referenced & set(series):
        raise UnfitSeries("it refers to another series than its image")


def _series_of_structures(drawn: Dataset) -> list[str]:
    return [
        series.SeriesInstanceUID
        for frame in drawn.get("ReferencedFrameOfReferenceSequence") or ()
        for study in frame.get("RTReferencedStudySequence") or ()
        for series in study.get("RTReferencedSeriesSequence") or ()
    ]
