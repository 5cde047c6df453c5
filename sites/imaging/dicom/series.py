"""A DICOM series as a volume: intensities by `sites.imaging.dicom.values`, slices placed in space.

Slices lie on one line. Their positions may deviate from even steps by the rounding of the file
(`ROUNDING_MM`), not by a missing slice. A small tilt of the gantry stays as a shear in the affine.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from sites.imaging.dicom.files import Found, UnfitSeries, images_in, naming
from sites.imaging.dicom.stack import direction, group_of, is_multi_frame, stack_in
from sites.imaging.dicom.values import inverted, is_inverted, measured
from sites.imaging.image import LARGEST_BYTES

ROUNDING_MM = 0.06
"""Deviation from even steps that is rounding: positions are often written to 0.1 mm."""
MOST_SHEARED_DEG = 2.6
"""Largest tilt of the gantry that is read; with more, the voxels are too far from boxes."""
SAME_PLACE_MM = 1e-3


@dataclass(frozen=True)
class Series:
    """A folder's volume, and text about the patient from its files.

    Attributes:
        volume: intensities by the modality's transform; the affine has NIfTI's axes.
        words: the patient's name and date of birth, if the files contain them; empty if the files state
            that the patient's identity was removed.
        shows_text: a file states that text is burned into the pixels.
        alternating: the number of acquisitions whose slices lie among those of another, 0 if none do.
        notes: what lies in the folder and was not used; without anything about the patient.
        uid: the series' UID.
    """

    volume: nib.Nifti1Image
    words: tuple[str, ...]
    shows_text: bool
    alternating: int = 0
    notes: tuple[str, ...] = ()
    uid: str = ""


@dataclass(frozen=True)
class _Slice:
    """A slice's voxels `(rows, columns)`, its first voxel's place in mm, and its directions `(6,)`."""

    values: NDArray[np.float32]
    place: NDArray[np.float64]
    turn: NDArray[np.float64]
    pixel_mm: NDArray[np.float64]


def series_in(folder: Path, name: str = "") -> Series:
    """Return the volume in a folder of DICOM files.

    Args:
        name: the description of one of several series.

    Raises:
        UnfitSeries: there is no volume, or more than one; the message states the reason.
    """
    return series_of(images_in(folder), name)


def series_of(found: Found, name: str = "") -> Series:
    """Return the volume of DICOM images; as `series_in`."""
    images, notes = stack_in(found, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        volume = _volume(_slices(images))
    return Series(
        volume=volume,
        alternating=_alternating(images),
        words=tuple(word for word in dict.fromkeys(w for each in images for w in naming(each))),
        shows_text=any(each.get("BurnedInAnnotation") == "YES" for each in images),
        notes=tuple(notes),
        uid=str(images[0].get("SeriesInstanceUID") or ""),
    )


def _alternating(images: Sequence[Dataset]) -> int:
    """Return how many acquisitions of slices lie one among another, as packages of one scan do."""
    if is_multi_frame(images[0]):
        return 0
    turn = direction(images[0])
    normal = np.cross(turn[:3], turn[3:])
    depths: dict[str, list[float]] = {}
    for each in images:
        place = np.asarray([float(value) for value in each.ImagePositionPatient])
        depths.setdefault(str(each.get("AcquisitionNumber") or ""), []).append(float(place @ normal))
    ranges = sorted((min(each), max(each)) for each in depths.values())
    if all(before[1] <= after[0] for before, after in pairwise(ranges)):
        return 0
    return len(ranges)


def _slices(images: Sequence[Dataset]) -> list[_Slice]:
    counts = (int(each.get("NumberOfFrames") or 1) * each.Rows * each.Columns for each in images)
    if 4 * sum(counts) > LARGEST_BYTES:
        raise UnfitSeries("the series is larger than any scan")
    frames = {str(each.get("FrameOfReferenceUID") or "") for each in images}
    if len(frames) > 1:
        raise UnfitSeries("the slices have different frames of reference")
    if any(int(each.get("SamplesPerPixel") or 1) != 1 for each in images):
        raise UnfitSeries("the images are in colour")
    if any("PALETTE" in str(each.get("PhotometricInterpretation")) for each in images):
        raise UnfitSeries("the images have a palette of colours")
    first = images[0]
    found = [
        one for each in images for one in (_frames(each) if is_multi_frame(each) else [_slice(each)])
    ]
    if not is_inverted(first):
        return found
    values = inverted([each.values for each in found])
    return [replace(each, values=own) for each, own in zip(found, values, strict=True)]


def _slice(image: Dataset) -> _Slice:
    if int(image.get("NumberOfFrames") or 1) > 1:
        raise UnfitSeries("a file of several frames does not state the place of each")
    place = np.asarray([float(value) for value in image.ImagePositionPatient])
    spacing = np.asarray([float(value) for value in image.get("PixelSpacing") or ()])
    if spacing.shape != (2,):
        raise UnfitSeries("a slice does not state its pixel spacing")
    return _Slice(measured(image.pixel_array, image), place, direction(image), spacing)


def _frames(image: Dataset) -> list[_Slice]:
    """Return the frames of a multi-frame file as slices, each with its own functional groups."""
    shared = image.get("SharedFunctionalGroupsSequence") or [Dataset()]
    stored = image.pixel_array
    found = []
    for number, own in enumerate(image.PerFrameFunctionalGroupsSequence):
        place = group_of(own, shared[0], "PlanePositionSequence")
        turn = group_of(own, shared[0], "PlaneOrientationSequence")
        measures = group_of(own, shared[0], "PixelMeasuresSequence")
        frame = stored[number] if stored.ndim == 3 else stored
        found.append(
            _Slice(
                measured(frame, _transform(own, shared[0], image)),
                np.asarray([float(value) for value in place.ImagePositionPatient]),
                direction(turn),
                np.asarray([float(value) for value in measures.PixelSpacing]),
            )
        )
    return found


def _transform(own: Dataset, shared: Dataset, image: Dataset) -> Dataset:
    name = "PixelValueTransformationSequence"
    return group_of(own, shared, name) if own.get(name) or shared.get(name) else image


def _volume(slices: list[_Slice]) -> nib.Nifti1Image:
    """Return slices as a volume `(columns, rows, slices)` with NIfTI's axes."""
    turn = np.mean([each.turn for each in slices], axis=0)
    if max(np.abs(each.turn - turn).max() for each in slices) > 0.01:
        raise UnfitSeries("the slices have different directions")
    if any(not np.allclose(each.pixel_mm, slices[0].pixel_mm, rtol=1e-3) for each in slices):
        raise UnfitSeries("the slices have different pixel spacings")
    along, down = (axis / np.linalg.norm(axis) for axis in (turn[:3], turn[3:]))
    normal = np.cross(along, down)
    slices, places = _unique(sorted(slices, key=lambda each: float(each.place @ normal)), normal)
    step, first = _steps(places, normal)
    _check_shear(step, normal)
    row_mm, column_mm = slices[0].pixel_mm
    affine = np.eye(4)
    affine[:3] = np.stack([along * column_mm, down * row_mm, step, first], axis=1)
    values = np.stack([each.values.T for each in slices], axis=-1)
    # DICOM's axes point to the patient's left and back, NIfTI's to the right and front
    return nib.Nifti1Image(values, np.diag([-1, -1, 1, 1]) @ affine)


def _unique(
    slices: list[_Slice], normal: NDArray[np.float64]
) -> tuple[list[_Slice], NDArray[np.float64]]:
    """Return slices without those whose place and voxels another has, and their places `(N, 3)`."""
    kept: list[_Slice] = []
    for each in slices:
        if kept and abs((each.place - kept[-1].place) @ normal) < SAME_PLACE_MM:
            apart = float(np.linalg.norm(each.place - kept[-1].place))
            if apart > each.pixel_mm.max():
                raise UnfitSeries(
                    f"images of one depth lie {apart:.3g} mm apart, as of several stations; give each "
                    f"its own folder"
                )
            if not np.array_equal(each.values, kept[-1].values):
                raise UnfitSeries(
                    "several images are at the same place, as in a series over time or with several "
                    "echoes or weightings"
                )
            continue
        kept.append(each)
    return kept, np.array([each.place for each in kept])


def _steps(
    places: NDArray[np.float64], normal: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the step from slice to slice and the first place, fitted to all of them by least squares.

    Raises:
        UnfitSeries: the steps are uneven, or one is so large that a slice must be missing.
    """
    depth = places @ normal
    gaps = np.diff(depth)
    usual = float(np.median(gaps))
    tolerance = min(max(ROUNDING_MM, 0.02 * usual), 0.2 * usual)
    numbers = np.arange(len(places))
    design = np.stack([numbers, np.ones(len(places))], axis=1)
    (step, first), *_ = np.linalg.lstsq(design, places, rcond=None)
    apart = places - (numbers[:, None] * step + first)
    if np.abs(apart @ normal).max() <= tolerance:
        if np.abs(apart).max() > max(ROUNDING_MM, tolerance):
            raise UnfitSeries(
                f"slices are displaced in their plane, by up to {np.abs(apart).max():.3g} mm"
            )
        return step, first
    if gaps.max() > 1.5 * usual:
        raise UnfitSeries(
            f"a slice is missing: a gap of {gaps.max():.3g} mm among slices {usual:.3g} mm apart"
        )
    raise UnfitSeries(f"the slices are unevenly spaced: {gaps.min():.3g} to {gaps.max():.3g} mm apart")


def _check_shear(step: NDArray[np.float64], normal: NDArray[np.float64]) -> None:
    cosine = float(step @ normal / np.linalg.norm(step))
    sheared = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    if sheared > MOST_SHEARED_DEG:
        raise UnfitSeries(f"the slices are sheared by {sheared:.1f} degrees, as by a tilted gantry")
