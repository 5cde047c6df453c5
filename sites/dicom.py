"""A DICOM series as one volume: the folder's slices sorted out, then converted by dicom2nifti.

A scanner's folder holds more than the volume: localisers, screenshots, reports, several series. The
one series of parallel slices with the most images is the scan; a tie is an error, not a guess.
"""

import logging
import warnings
from collections import defaultdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from dicom2nifti.convert_dicom import dicom_array_to_nifti
from dicom2nifti.exceptions import ConversionError, ConversionValidationError
from pydicom import Dataset

SECONDARY = "1.2.840.10008.5.1.4.1.1.7"
"""The SOP classes of secondary captures begin with this."""
MOST_FILES = 5000
REASONS = {
    "SLICE_INCREMENT_INCONSISTENT": "the slices are not evenly spaced; one may be missing",
    "IMAGE_ORIENTATION_INCONSISTENT": "the slices are turned against each other",
    "NON_CUBICAL_IMAGE/GANTRY_TILT": "the gantry was tilted, so the volume is sheared",
    "TOO_FEW_SLICES/LOCALIZER": "there are fewer than four slices",
    "NON_IMAGING_DICOM_FILES": "the files hold no images",
}
"""What dicom2nifti's codes mean, in words."""


class UnfitSeries(Exception):
    """A folder holds no series that makes one volume. The message says nothing of the patient."""


def series_in(folder: Path) -> nib.Nifti1Image:
    """Return the volume in a folder of DICOM files, intensities rescaled as the files say.

    Raises:
        UnfitSeries: there is none, or more than one; a slice is missing or turned.
    """
    slices = _largest(_series(_images(folder)))
    positions = {tuple(np.round(np.asarray(s.ImagePositionPatient, dtype=float), 3)) for s in slices}
    if len(positions) < len(slices):
        raise UnfitSeries("two slices lie at the same place")
    logging.getLogger("dicom2nifti").setLevel(logging.CRITICAL)  # it logs what the files hold
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dicom_array_to_nifti(slices, None, reorient_nifti=False)["NII"]
    except (ConversionError, ConversionValidationError) as error:
        raise UnfitSeries(REASONS.get(str(error), "the slices make no volume")) from error


def _images(folder: Path) -> list[Dataset]:
    """Return every file of `folder` that holds an image of a scan."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if len(files) > MOST_FILES:
        raise UnfitSeries(f"the folder holds more than {MOST_FILES} files")
    found: list[Dataset] = []
    for path in files:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UnfitSeries("a file lies outside the folder")
        try:
            dataset = pydicom.dcmread(path)
        except pydicom.errors.InvalidDicomError:
            continue  # a DICOMDIR's neighbour, a text file
        if _is_slice(dataset):
            found.append(dataset)
    return found


def _is_slice(dataset: Dataset) -> bool:
    kinds = [str(kind).upper() for kind in dataset.get("ImageType", ())]
    has_place = "ImagePositionPatient" in dataset and "ImageOrientationPatient" in dataset
    is_capture = str(dataset.get("SOPClassUID", "")).startswith(SECONDARY) or "SECONDARY" in kinds
    return "PixelData" in dataset and has_place and not is_capture and "LOCALIZER" not in kinds


def _series(datasets: list[Dataset]) -> list[list[Dataset]]:
    """Divide slices by series, size and direction: one series may hold several stacks."""
    groups: defaultdict[tuple[object, ...], list[Dataset]] = defaultdict(list)
    for each in datasets:
        turned = np.round(np.asarray(each.ImageOrientationPatient, dtype=float), 2) + 0.0
        groups[(str(each.SeriesInstanceUID), each.Rows, each.Columns, *turned)].append(each)
    return list(groups.values())


def _largest(groups: list[list[Dataset]]) -> list[Dataset]:
    if not groups:
        raise UnfitSeries("the folder holds no slices of a scan")
    groups = sorted(groups, key=len, reverse=True)
    if len(groups) > 1 and len(groups[0]) == len(groups[1]):
        raise UnfitSeries("the folder holds several series of the same length; list one folder each")
    return groups[0]
