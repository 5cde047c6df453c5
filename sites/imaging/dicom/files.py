"""DICOM files of a folder: which hold images of a scan, and what the others are.

A file holds an image of a scan if it has pixels and a place in space, and its class is no secondary
capture, segmentation or dose. `ImageType` says how an image was made (SECONDARY: computed from others,
as a reformatted CT or an ADC map), not that it is a screenshot; only localisers and screen saves are
known by it.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameSingleBitSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    RTDoseStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from sites.imaging.image import LARGEST_BYTES

for _library in ("pydicom", "nibabel"):
    logging.getLogger(_library).setLevel(logging.CRITICAL)  # their logs contain names from the files
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

LABEL_MAP = UID("1.2.840.10008.5.1.4.1.1.66.7")
"""Label Map Segmentation Storage, which pydicom 3.0.2 does not name."""
NO_SCANS = frozenset(
    {
        SecondaryCaptureImageStorage,
        MultiFrameSingleBitSecondaryCaptureImageStorage,
        MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
        MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
        MultiFrameTrueColorSecondaryCaptureImageStorage,
        SegmentationStorage,
        LABEL_MAP,
        RTDoseStorage,
    }
)
"""SOP classes that have pixels and no scan in them."""
NO_SCAN_TYPES = frozenset({"LOCALIZER", "SCREEN SAVE", "SCREENSAVE", "CSA REPORT"})
"""Values of ImageType of localisers and of screens that a scanner stores as images of its own kind."""
FLAT = frozenset(
    {"CR", "DX", "MG", "RG", "XA", "RF", "IO", "PX", "US", "IVUS", "XC", "GM", "SM", "ES", "OP", "OPT",
     "OCT", "OAM", "OPM", "DMS"}
)  # fmt: skip
"""Modalities of projections, ultrasound, photographs and microscopy, whose images may have no place."""
RADIOGRAPHS = frozenset({"CR", "DX", "MG", "RG", "XA", "RF", "IO", "PX"})
"""Modalities of projections: their values say brightness, and a position makes no slice of them."""
SUFFIXES = (".dcm", ".ima", ".dicom")
"""Ends of names of DICOM files; scanners and archives also write files without one."""
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
MOST_FILES = 5000
PREAMBLE = 128
"""Bytes before the word DICM at the begin of a file."""
META_GROUP = 0x0002
"""Group of the elements that say how a file is encoded."""


class UnfitSeries(Exception):
    """A folder holds no images that form one volume. The message contains nothing about the patient."""


@dataclass(frozen=True)
class Found:
    """The images of a scan in a folder, and how many files of other kinds lie there."""

    images: tuple[Dataset, ...]
    others: Counter[str]


def images_in(folder: Path) -> Found:
    """Return the images of a scan among the files of a folder; other DICOM files are counted by kind.

    Raises:
        UnfitSeries: there are too many files, one is outside the folder, or an image is damaged.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if len(files) > MOST_FILES:
        raise UnfitSeries(f"the folder holds more than {MOST_FILES} files")
    images, others = [], Counter[str]()
    for path in files:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UnfitSeries("a file is outside the folder")
        if path.name.startswith("._"):
            continue  # what macOS stores beside a file
        try:
            dataset = read_file(path)
        except pydicom.errors.InvalidDicomError as error:
            if path.suffix.lower() in SUFFIXES:
                raise UnfitSeries("a file is cut off or damaged: it is not DICOM") from error
            others["file that is not DICOM"] += path.name != "DICOMDIR"
            continue  # such as a text file
        if why := no_scan(dataset):
            others[why] += 1
        else:
            images.append(dataset)
    return Found(tuple(images), +others)


def is_dicom(path: Path) -> bool:
    """Return whether a file says that it is DICOM, by its name or its first bytes."""
    if path.suffix.lower() in SUFFIXES:
        return True
    with path.open("rb") as file:
        return file.read(PREAMBLE + 4)[PREAMBLE:] == b"DICM"


def read_file(path: Path) -> Dataset:
    """Return a DICOM file's data set, if the file's size and its rows limit the memory that it needs.

    Raises:
        UnfitSeries: it is too large, cut off, or compressed so that its size can't be known before.
        InvalidDicomError: it is not a DICOM file.
    """
    if path.stat().st_size > LARGEST_BYTES:
        raise UnfitSeries("a file is larger than any scan")
    if path.stat().st_size == 0:
        raise pydicom.errors.InvalidDicomError("an empty file")
    try:
        dataset = _read(path)
    except EOFError as error:
        raise UnfitSeries("a file is cut off") from error
    is_image = "Image" in UID(str(dataset.get("SOPClassUID", ""))).name
    if is_image and "Rows" in dataset and not any(name in dataset for name in PIXELS):
        raise UnfitSeries("a file is cut off before its pixels")
    _check_complete(dataset)
    place_reconstruction(dataset)
    return dataset


def _read(path: Path) -> Dataset:
    """Return a file's data set; some archives write files without the preamble before it."""
    try:
        meta = pydicom.filereader.read_file_meta_info(path)
    except pydicom.errors.InvalidDicomError:
        if path.suffix.lower() not in SUFFIXES:
            raise
        return _read_without_preamble(path)
    _check_inflated(meta)
    return pydicom.dcmread(path)


def _read_without_preamble(path: Path) -> Dataset:
    with path.open("rb") as file:
        _check_inflated(
            pydicom.filereader.read_dataset(
                file,
                is_implicit_VR=False,
                is_little_endian=True,
                stop_when=lambda tag, _vr, _length: tag.group != META_GROUP,
            )
        )
    dataset = pydicom.dcmread(path, force=True)
    if not {"SOPClassUID", "SOPInstanceUID", "Modality"} <= {each.keyword for each in dataset}:
        raise pydicom.errors.InvalidDicomError("no preamble, and not what an image has")
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit = dataset.original_encoding[0]
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def _check_inflated(meta: Dataset) -> None:
    """Refuse, by a file's meta information, one whose data set is compressed as a whole."""
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise UnfitSeries("a file is compressed so that its size can't be known before reading")


def _check_complete(dataset: Dataset) -> None:
    names = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel")
    count = prod(int(dataset.get(name) or 1) for name in names)
    if 4 * count > LARGEST_BYTES:
        raise UnfitSeries("a file is larger than any scan")
    syntax = UID(dataset.file_meta.get("TransferSyntaxUID", ""))
    if "PixelData" not in dataset or (syntax and syntax.is_compressed):
        return
    if "422" in str(dataset.get("PhotometricInterpretation")):
        count = count * 2 // 3  # two pixels share their colours
    if 8 * len(dataset.PixelData) < count * int(dataset.get("BitsAllocated") or 0):
        raise UnfitSeries("a file is cut off: it has fewer pixels than it states")


def no_scan(dataset: Dataset) -> str:
    """Return why a file holds no image of a scan; empty if it does."""
    uid = UID(str(dataset.get("SOPClassUID", "")))
    kinds = {str(kind).upper() for kind in dataset.get("ImageType") or ()}
    named = uid.name if uid.name != str(uid) else "file of an unknown class"
    if uid in NO_SCANS:
        return named
    if not any(name in dataset for name in PIXELS):
        return f"{named} without pixels" if "Image" in named else named
    if found := sorted(kinds & NO_SCAN_TYPES):
        return found[0].lower()
    if "PerFrameFunctionalGroupsSequence" in dataset or is_flat(dataset):
        return ""
    return "" if _has_place(dataset) else "image without a position"


def place_reconstruction(dataset: Dataset) -> None:
    """Add each frame's place to a nuclear medicine reconstruction, which states the first slice's alone.

    Slices follow along the normal of the first, `SpacingBetweenSlices` apart (DICOM PS3.3 C.8.4.15,
    https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.8.4.15.html).
    """
    detectors: list[Dataset] = list(dataset.get("DetectorInformationSequence") or ())
    is_volume = "RECON TOMO" in (dataset.get("ImageType") or ()) and len(detectors) == 1
    first: Dataset = detectors[0] if is_volume else Dataset()
    if not (_has_place(first) and dataset.get("SpacingBetweenSlices") and dataset.get("PixelSpacing")):
        return
    shared, turn, measures = Dataset(), Dataset(), Dataset()
    turn.ImageOrientationPatient = first.ImageOrientationPatient
    measures.PixelSpacing = dataset.PixelSpacing
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [turn], [measures]
    cosines = [float(value) for value in first.ImageOrientationPatient]
    normal = np.cross(cosines[:3], cosines[3:])
    origin = np.asarray([float(value) for value in first.ImagePositionPatient])
    frames = []
    for number in range(int(dataset.get("NumberOfFrames") or 1)):
        frame, place = Dataset(), Dataset()
        at = origin + number * float(dataset.SpacingBetweenSlices) * normal
        place.ImagePositionPatient = [round(float(value), 6) for value in at]
        frame.PlanePositionSequence = [place]
        frames.append(frame)
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = frames


def pixels_of(dataset: Dataset) -> bytes:
    """Return an image's stored pixels, of whole numbers or of floats."""
    return bytes(next((dataset[name].value for name in PIXELS if name in dataset), b""))


def is_flat(dataset: Dataset) -> bool:
    """Return whether a file holds an image that has no place in space, or needs none."""
    if "PerFrameFunctionalGroupsSequence" in dataset:
        return False
    modality = dataset.get("Modality")
    return modality in RADIOGRAPHS or (modality in FLAT and not _has_place(dataset))


def is_captured_radiograph(dataset: Dataset) -> bool:
    """Return whether a file is a secondary capture that says it is a radiograph.

    Public sets of X-rays come so. It counts where a list names the file; beside a scan it is a capture.
    """
    uid = UID(str(dataset.get("SOPClassUID", "")))
    return uid == SecondaryCaptureImageStorage and dataset.get("Modality") in RADIOGRAPHS


def _has_place(dataset: Dataset) -> bool:
    place, turn = (dataset.get(f"Image{name}Patient") or () for name in ("Position", "Orientation"))
    return (len(place), len(turn)) == (3, 6)


def patient_in(folder: Path) -> str:
    """Return the PatientID of the first DICOM file in a folder, or of a file, that has one, else ''."""
    files = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.is_file())
    for path in files:
        if not path.resolve().is_relative_to(folder.resolve()):
            continue
        with suppress(Exception):  # a damaged file is reported when it is read
            dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"])
            if patient := str(dataset.get("PatientID", "")).strip():
                return patient
    return ""


def naming(dataset: Dataset) -> Iterator[str]:
    """Yield the patient's name and date of birth; nothing if the file states that they were removed."""
    if dataset.get("PatientIdentityRemoved") == "YES":
        return
    for key, label in (("PatientName", "patient"), ("PatientBirthDate", "birth")):
        if value := str(dataset.get(key, "")).strip("^ "):
            yield f"{label} {value}"
