"""DICOM folders as volumes: select the images of the scan, then place them in space with highdicom.

A scanner's folder holds more than the volume: localisers, screenshots, reports, several series. The
stack of parallel images with the most images is the scan; a tie is an error, not a guess. A stack is
the files of one series that have the same size and direction, or one multi-frame file.
"""

import logging
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from highdicom import Image, Volume, get_volume_from_series
from pydicom import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

for _library in ("pydicom", "highdicom", "nibabel"):
    logging.getLogger(_library).setLevel(logging.CRITICAL)  # their logs contain names from the files
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

SECONDARY = "1.2.840.10008.5.1.4.1.1.7"
"""Start of the UIDs of SOP classes for secondary captures."""
MOST_FILES = 5000
LARGEST_FILE = 2**31
FEWEST_SLICES = 4
UNEVEN = "the slices do not form a volume: one may be missing, or they are turned or sheared"


class UnfitSeries(Exception):
    """A folder holds no images that form one volume. The message contains nothing about the patient."""


@dataclass(frozen=True)
class Series:
    """A folder's volume, and text about the patient from its files.

    Attributes:
        volume: intensities rescaled as the files state; the affine has NIfTI's axes.
        words: the patient's name and date of birth, if the files contain them; empty if the files state
            that the patient's identity was removed.
        shows_text: a file states that text is burned into the pixels.
    """

    volume: nib.Nifti1Image
    words: tuple[str, ...]
    shows_text: bool


def series_in(folder: Path) -> Series:
    """Return the volume in a folder of DICOM files.

    Raises:
        UnfitSeries: there is no volume, or more than one; a slice is missing, turned or there twice; the
            files belong to several patients.
    """
    stack = largest(stacks_of(images_in(folder)))
    if len({str(each.get("PatientID", "")) for each in stack}) > 1:
        raise UnfitSeries("the files belong to several patients")
    volume = _volume(stack)
    # DICOM's axes point to the patient's left and back, NIfTI's to the right and front
    affine = np.diag([-1, -1, 1, 1]) @ volume.affine
    return Series(
        volume=nib.Nifti1Image(np.asarray(volume.array, dtype=np.float32), affine),
        words=tuple(_naming(stack[0])),
        shows_text=any(each.get("BurnedInAnnotation") == "YES" for each in stack),
    )


def patient_in(folder: Path) -> str:
    """Return the PatientID of the first file in a folder that has one, else ''."""
    inside = folder.resolve()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if not path.resolve().is_relative_to(inside):
            continue
        with suppress(Exception):  # a damaged file is reported when it is read
            dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"])
            if patient := str(dataset.get("PatientID", "")).strip():
                return patient
    return ""


def _naming(dataset: Dataset) -> Iterator[str]:
    if dataset.get("PatientIdentityRemoved") == "YES":
        return
    for key, label in (("PatientName", "patient"), ("PatientBirthDate", "birth")):
        if value := str(dataset.get(key, "")).strip("^ "):
            yield f"{label} {value}"


def images_in(folder: Path) -> list[Dataset]:
    """Return the data sets of all files in `folder` that hold images of a scan."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if len(files) > MOST_FILES:
        raise UnfitSeries(f"the folder holds more than {MOST_FILES} files")
    found: list[Dataset] = []
    for path in files:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UnfitSeries("a file is outside the folder")
        try:
            dataset = read_file(path)
        except pydicom.errors.InvalidDicomError:
            continue  # such as a text file
        if is_scan(dataset):
            found.append(dataset)
    return found


def read_file(path: Path) -> Dataset:
    """Return a DICOM file's data set, if the file's size and its rows limit the memory that it needs.

    Raises:
        UnfitSeries: it is too large, or compressed so that its size can't be known before reading.
        InvalidDicomError: it is not a DICOM file.
    """
    if path.stat().st_size > LARGEST_FILE:
        raise UnfitSeries("a file is larger than any scan")
    meta = pydicom.filereader.read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise UnfitSeries("a file is compressed so that its size can't be known before reading")
    dataset = pydicom.dcmread(path)
    numbers = (dataset.get(key) or 1 for key in ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"))
    if 4 * prod(int(number) for number in numbers) > LARGEST_FILE:
        raise UnfitSeries("a file is larger than any scan")
    return dataset


def is_scan(dataset: Dataset) -> bool:
    """Return whether a file holds images of a scan, not a localiser, capture or report."""
    kinds = [str(kind).upper() for kind in dataset.get("ImageType", ())]
    is_capture = str(dataset.get("SOPClassUID", "")).startswith(SECONDARY) or "SECONDARY" in kinds
    has_place = "ImagePositionPatient" in dataset and "ImageOrientationPatient" in dataset
    has_places = "PerFrameFunctionalGroupsSequence" in dataset
    has_pixels = "PixelData" in dataset and (has_place or has_places)
    return has_pixels and not is_capture and "LOCALIZER" not in kinds


def stacks_of(datasets: Sequence[Dataset]) -> list[list[Dataset]]:
    """Return images grouped by series, size and direction: one series may hold several stacks."""
    groups: defaultdict[tuple[object, ...], list[Dataset]] = defaultdict(list)
    for each in datasets:
        if _is_multi_frame(each):
            groups[(str(each.SOPInstanceUID),)].append(each)
            continue
        turned = np.round(np.asarray(each.ImageOrientationPatient, dtype=float), 2) + 0.0
        groups[(str(each.SeriesInstanceUID), each.Rows, each.Columns, *turned)].append(each)
    return list(groups.values())


def _is_multi_frame(dataset: Dataset) -> bool:
    return "PerFrameFunctionalGroupsSequence" in dataset


def _count(stack: Sequence[Dataset]) -> int:
    return sum(int(each.get("NumberOfFrames", 1)) for each in stack)


def largest(stacks: list[list[Dataset]]) -> list[Dataset]:
    """Return the stack with the most images.

    Raises:
        UnfitSeries: there is none, two stacks have the most images, or it has too few slices.
    """
    if not stacks:
        raise UnfitSeries("the folder holds no images of a scan")
    stacks = sorted(stacks, key=_count, reverse=True)
    if len(stacks) > 1 and _count(stacks[0]) == _count(stacks[1]):
        raise UnfitSeries("the folder holds several series of the same length; give each its own folder")
    if _count(stacks[0]) < FEWEST_SLICES:
        raise UnfitSeries(f"there are fewer than {FEWEST_SLICES} slices")
    return stacks[0]


def _volume(stack: list[Dataset]) -> Volume:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if _is_multi_frame(stack[0]):
            image = Image.from_dataset(stack[0], copy=False)
            if image.get_volume_geometry() is None:
                raise UnfitSeries(UNEVEN)
            return image.get_volume(dtype=np.float32)
        places = {tuple(np.round([float(x) for x in s.ImagePositionPatient], 3)) for s in stack}
        if len(places) < len(stack):
            raise UnfitSeries("two slices are at the same place")
        try:
            return get_volume_from_series(stack, dtype=np.float32)
        except ValueError as error:
            raise UnfitSeries(UNEVEN) from error
