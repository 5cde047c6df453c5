"""Scans without what names a patient: DICOM, NIfTI, and pictures, rebuilt from what a scan needs.

A DICOM file is rebuilt from a list of the attributes that place its voxels in space and say how they
were acquired. That is stricter than the basic profile (DICOM PS3.15, annex E, table E.1-1), which
lists what has to go and lets hundreds of attributes with free text stay: all that the profile removes
or empties is gone, its UIDs are replaced by keyed hashes, consistently, and the pixels are decoded and
written anew: nothing hides behind them, above their bits, or in a compressed stream's comments.
"""

import gzip
from collections.abc import Callable, Mapping
from io import BytesIO
from math import prod
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image as Pictures
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from sites.imaging.images import LARGEST_BYTES, TEXTS

PROFILE = ("113100", "DCM", "Basic Application Confidentiality Profile")

NUMBERS = (
    "InstanceNumber", "SeriesNumber", "AcquisitionNumber", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "SliceLocation", "GantryDetectorTilt", "NumberOfFrames", "RescaleSlope", "RescaleIntercept",
    "WindowCenter", "WindowWidth", "KVP", "RepetitionTime", "EchoTime", "InversionTime", "FlipAngle",
    "MagneticFieldStrength", "EchoTrainLength", "InStackPositionNumber", "TemporalPositionIndex",
    "DimensionIndexValues", "DimensionIndexPointer", "FunctionalGroupPointer",
)  # fmt: skip
"""Attributes that hold numbers alone, and are kept."""
NUMERIC = frozenset({"DS", "IS", "FL", "FD", "US", "UL", "SS", "AT"})
CODES: Mapping[str, frozenset[str]] = {
    "Modality": frozenset({"MR", "CT", "PT", "NM", "US", "DX", "CR", "MG", "XA", "OT"}),
    "ImageType": frozenset(
        {"ORIGINAL", "DERIVED", "PRIMARY", "AXIAL", "MPR", "OTHER", "M", "NORM", "ND", "VOLUME", "NONE",
         "REFORMATTED", "M_FFE", "SE", "FFE", "M_SE", "DIS2D", "DIS3D", "RESAMPLED", "AVERAGE"}
    ),
    "BurnedInAnnotation": frozenset({"YES", "NO"}),
    "LossyImageCompression": frozenset({"00", "01"}),
    "PhotometricInterpretation": frozenset({"MONOCHROME1", "MONOCHROME2"}),
    "RescaleType": frozenset({"HU", "US", "OD"}),
    "DimensionOrganizationType": frozenset({"3D", "3D_TEMPORAL"}),
}  # fmt: skip
"""Attributes that hold words of a list, each value kept if it is one of them."""
IDENTIFIERS = (
    "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID",
    "DimensionOrganizationUID",
)  # fmt: skip
"""UIDs that tie files together; each becomes a keyed hash."""
GROUPS = (
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "PixelMeasuresSequence",
    "PlaneOrientationSequence", "PlanePositionSequence", "FrameContentSequence",
    "PixelValueTransformationSequence", "DimensionIndexSequence", "DimensionOrganizationSequence",
)  # fmt: skip
"""Sequences of a multi-frame file that are kept, with what of the above is in them."""
EMPTY = (
    "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "StudyID",
    "ReferringPhysicianName",
)  # fmt: skip
"""Attributes that a file has to have, and that the profile empties."""
TABLES = ("ModalityLUTSequence", "RealWorldValueMappingSequence")
"""What makes intensities by a table, which is not kept."""

Rename = Callable[[str], str]
"""From an identifier to a keyed hash of it, as hexadecimal digits."""


class NotCleaned(Exception):
    """A scan can't be taken in without what may name its patient. The message tells no value."""


def deidentified(dataset: Dataset, patient: str, rename: Rename) -> Dataset:
    """Return a new data set of the same voxels at the same places, and of nobody.

    Args:
        patient: what the patient is called from now on.

    Raises:
        NotCleaned: the files say that text is burned into the pixels, or the voxels can't be had
            without more of the file.
    """
    if dataset.get("BurnedInAnnotation") == "YES":
        raise NotCleaned("text is burned into its pixels")
    if any(element.keyword in TABLES for element in dataset.iterall()):
        raise NotCleaned("its intensities need a table that is not kept")
    clean = _kept(dataset, rename)
    values = _voxels(dataset)
    for keyword in EMPTY:
        setattr(clean, keyword, "")
    clean.SOPClassUID = _standard(dataset.SOPClassUID)
    clean.PatientID = clean.PatientName = patient
    clean.PatientIdentityRemoved = "YES"
    clean.DeidentificationMethod = "PS3.15 annex E, basic profile"
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = PROFILE
    clean.DeidentificationMethodCodeSequence = [code]
    clean.Rows, clean.Columns = values.shape[-2:]
    clean.SamplesPerPixel = 1
    clean.PixelRepresentation = int(values.dtype.kind == "i")
    clean.BitsAllocated = clean.BitsStored = 8 * values.dtype.itemsize
    clean.HighBit = clean.BitsStored - 1
    clean.PixelData = values.astype(values.dtype.newbyteorder("<")).tobytes()
    clean["PixelData"].VR = "OW" if values.dtype.itemsize > 1 else "OB"
    clean.file_meta = FileMetaDataset()
    clean.file_meta.MediaStorageSOPClassUID = clean.SOPClassUID
    clean.file_meta.MediaStorageSOPInstanceUID = clean.SOPInstanceUID
    clean.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return clean


def _kept(dataset: Dataset, rename: Rename) -> Dataset:
    clean = Dataset()
    for keyword in NUMBERS:
        if keyword in dataset and dataset[keyword].VR in NUMERIC:
            setattr(clean, keyword, dataset[keyword].value)
    for keyword, words in CODES.items():
        if keyword in dataset:
            values = dataset[keyword].value
            listed = [values] if isinstance(values, str) else list(values or ())
            setattr(clean, keyword, [word for word in listed if word in words])
    for keyword in IDENTIFIERS:
        if keyword in dataset and dataset[keyword].value:
            setattr(clean, keyword, keyed_uid(str(dataset[keyword].value), rename))
    for keyword in GROUPS:
        if keyword in dataset and dataset[keyword].VR == "SQ":
            setattr(clean, keyword, [_kept(item, rename) for item in dataset[keyword].value])
    return clean


def _standard(uid: UID) -> UID:
    """Return a SOP class's UID if it is one of the standard's own."""
    if not uid.name or uid.name == str(uid) or uid.is_private:
        raise NotCleaned("its kind is none of the standard's")
    return uid


def _voxels(dataset: Dataset) -> NDArray[np.integer]:
    """Return the stored values `([frames], rows, columns)`, without bits that are not theirs."""
    if int(dataset.SamplesPerPixel) != 1 or int(dataset.BitsAllocated) not in (8, 16, 32):
        raise NotCleaned("it is in colour, or of another kind of numbers")
    values: NDArray[np.integer] = dataset.pixel_array
    stored, allocated = int(dataset.BitsStored), 8 * values.dtype.itemsize
    if int(dataset.HighBit) != stored - 1 or stored > allocated:
        raise NotCleaned("its pixels are packed in an old way")
    unused = allocated - stored
    return np.asarray((values << unused) >> unused).astype(values.dtype)


def keyed_uid(uid: str, rename: Rename) -> UID:
    """Return a UID (PS3.5 B.2) that stands for `uid` in this hospital alone."""
    return UID(f"2.25.{int(rename(f'uid {uid}')[:30], 16)}")


def dicom_bytes(dataset: Dataset) -> bytes:
    """Return a data set as a file's bytes."""
    file = BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def nifti_without_text(path: Path) -> bytes:
    """Return a NIfTI file's bytes, gzipped, with empty text fields and without extensions.

    The voxels and the affine are the same bytes as before; what lies behind the voxels is gone.
    """
    image = nib.load(path)
    if not isinstance(image, nib.Nifti1Image):
        raise NotCleaned("it is no NIfTI file of one part")
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    header, start = image.header.copy(), image.dataobj.offset
    for field in TEXTS:
        if field in header:
            header[field] = b""
    header.extensions.clear()
    header.set_slope_inter(image.dataobj.slope, image.dataobj.inter)  # nibabel drops them on reading
    header["vox_offset"] = header.single_vox_offset
    stop = start + prod(image.shape) * image.get_data_dtype().itemsize
    if stop - start > LARGEST_BYTES or len(raw) < stop:
        raise NotCleaned("it has not as many voxels as it says")
    no_extensions = b"\0" * 4
    return gzip.compress(header.binaryblock + no_extensions + raw[start:stop], mtime=0)


def picture_without_text(path: Path) -> bytes:
    """Return a PNG of the same pixels and nothing else."""
    file = BytesIO()
    with Pictures.open(path, formats=("PNG", "JPEG")) as picture:
        bare = Pictures.new(picture.mode, picture.size)
        bare.paste(picture)
        if palette := picture.getpalette():
            bare.putpalette(palette)
        bare.save(file, "PNG")
    return file.getvalue()
