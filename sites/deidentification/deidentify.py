"""Removal of patients' names from DICOM, NIfTI and pictures, by rebuilding each from what a scan needs.

A DICOM file is rebuilt from a list of the attributes that place its voxels in space and describe the
acquisition. That is stricter than the basic profile (DICOM PS3.15, annex E, table E.1-1,
https://dicom.nema.org/medical/dicom/current/output/chtml/part15/chapter_E.html), which lists the
attributes to remove and keeps hundreds with free text. No value that the profile removes or empties is
kept. UIDs are replaced consistently by keyed hashes. The pixels are decoded and written again, so
nothing is hidden behind them, in their unused bits, or in the comments of a compressed stream.
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

from sites.imaging.dicom.files import FLAT, is_flat
from sites.imaging.dicom.flat import colours_of
from sites.imaging.image import LARGEST_BYTES
from sites.imaging.images import FORMATS, upright

QFORM = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
SFORM = ("srow_x", "srow_y", "srow_z")
"""Fields of a NIfTI header that are kept if their code says that they state an orientation."""
PROFILE = ("113100", "DCM", "Basic Application Confidentiality Profile")

NUMBERS = (
    "InstanceNumber", "SeriesNumber", "AcquisitionNumber", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "SliceLocation", "GantryDetectorTilt", "NumberOfFrames", "RescaleSlope", "RescaleIntercept",
    "WindowCenter", "WindowWidth", "KVP", "RepetitionTime", "EchoTime", "InversionTime", "FlipAngle",
    "MagneticFieldStrength", "EchoTrainLength", "InStackPositionNumber", "TemporalPositionIndex",
    "DimensionIndexValues", "DimensionIndexPointer", "FunctionalGroupPointer", "ImagerPixelSpacing",
    "NominalScannedPixelSpacing", "PhysicalDeltaX", "PhysicalDeltaY", "PhysicalUnitsXDirection",
    "PhysicalUnitsYDirection",
)  # fmt: skip
"""Attributes that hold only numbers, and are kept."""
NUMERIC = frozenset({"DS", "IS", "FL", "FD", "US", "UL", "SS", "AT"})
CODES: Mapping[str, frozenset[str]] = {
    "Modality": FLAT | {"MR", "CT", "PT", "NM", "OT"},
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
"""Attributes with coded values, and the values that are kept."""
IDENTIFIERS = (
    "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID",
    "DimensionOrganizationUID",
)  # fmt: skip
"""UIDs that link files; each is replaced by a keyed hash."""
GROUPS = (
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "PixelMeasuresSequence",
    "PlaneOrientationSequence", "PlanePositionSequence", "FrameContentSequence",
    "PixelValueTransformationSequence", "DimensionIndexSequence", "DimensionOrganizationSequence",
    "SequenceOfUltrasoundRegions",
)  # fmt: skip
"""Sequences that are kept, with the attributes above that are in them."""
COLOURS = 3
EMPTY = (
    "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "StudyID",
    "ReferringPhysicianName",
)  # fmt: skip
"""Attributes that a file must have and that the profile empties."""
TABLE = "ModalityLUTSequence"
"""Attribute that computes intensities by a table; a file that has it is not imported."""

Rename = Callable[[str], str]
"""Function from an identifier to its keyed hash, as hexadecimal digits."""


class NotCleaned(Exception):
    """A scan can't be imported without data that may name its patient. The message contains no value."""


def deidentified(dataset: Dataset, patient: str, rename: Rename) -> Dataset:
    """Return a new data set with the same voxels at the same places, and without the patient's identity.

    Args:
        patient: the patient's new name and PatientID.

    Raises:
        NotCleaned: the file states that text is burned into the pixels, or the voxels can't be copied
            without other parts of the file.
    """
    if dataset.get("BurnedInAnnotation") == "YES":
        raise NotCleaned("text is burned into its pixels")
    if any(element.keyword == TABLE for element in dataset.iterall()):
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
    if values.ndim > 2 and values.shape[-1] == COLOURS and is_coloured(dataset):
        clean.Rows, clean.Columns = values.shape[-3:-1]
        clean.SamplesPerPixel, clean.PlanarConfiguration = COLOURS, 0
        clean.PhotometricInterpretation = "RGB"
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
    """Return the UID of a SOP class that the DICOM standard defines; raise `NotCleaned` for another."""
    if not uid.name or uid.name == str(uid) or uid.is_private:
        raise NotCleaned("its SOP class is not one of the DICOM standard's")
    return uid


def _voxels(dataset: Dataset) -> NDArray[np.integer]:
    """Return the stored values `([frames], rows, columns)`, with the unused bits cleared."""
    if is_coloured(dataset):
        if not is_flat(dataset):
            raise NotCleaned("it is in colour, or has a palette of colours")
        return colours_of(dataset)
    if int(dataset.SamplesPerPixel) != 1 or int(dataset.BitsAllocated) not in (8, 16, 32):
        raise NotCleaned("it is in colour, or its values do not have 8, 16 or 32 bits")
    values: NDArray[np.integer] = dataset.pixel_array
    stored, allocated = int(dataset.BitsStored), 8 * values.dtype.itemsize
    if int(dataset.HighBit) != stored - 1 or stored > allocated:
        raise NotCleaned("its pixels use an outdated layout of bits (HighBit)")
    unused = allocated - stored
    return np.asarray((values << unused) >> unused).astype(values.dtype)


def is_coloured(dataset: Dataset) -> bool:
    """Return whether an image stores colours, or numbers of a palette."""
    return not str(dataset.get("PhotometricInterpretation", "MONOCHROME2")).startswith("MONOCHROME")


def keyed_uid(uid: str, rename: Rename) -> UID:
    """Return a UID that replaces `uid` in this hospital only.

    Source: DICOM PS3.5 B.2,
    https://dicom.nema.org/medical/dicom/current/output/chtml/part05/sect_B.2.html.
    """
    return UID(f"2.25.{int(rename(f'uid {uid}')[:30], 16)}")


def dicom_bytes(dataset: Dataset) -> bytes:
    """Return a data set as a file's bytes."""
    file = BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def nifti_without_text(path: Path) -> bytes:
    """Return a NIfTI file's bytes, gzipped, under a new header and without extensions.

    The new header holds what a volume needs: shape, type, voxel sides, slope, orientation, units. The
    bytes of the voxels and the affine are unchanged; bytes after the voxels are removed.
    """
    image = nib.load(path)
    if not isinstance(image, nib.Nifti1Image):
        raise NotCleaned("it is not a NIfTI file of one part")
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    header, start = _bare_header(image), image.dataobj.offset
    stop = start + prod(image.shape) * image.get_data_dtype().itemsize
    if stop - start > LARGEST_BYTES or len(raw) < stop:
        raise NotCleaned("it has fewer voxels than its header states, or is larger than any scan")
    no_extensions = b"\0" * 4
    return gzip.compress(header.binaryblock + no_extensions + raw[start:stop], mtime=0)


def _bare_header(image: nib.Nifti1Image) -> nib.Nifti1Header:
    known = image.header
    header = type(known)(endianness=known.endianness)
    header.set_data_dtype(known.get_data_dtype())
    header.set_data_shape(known.get_data_shape())
    header.set_zooms(known.get_zooms())
    header.set_slope_inter(image.dataobj.slope, image.dataobj.inter)  # nibabel drops them on reading
    for code, fields in (("qform_code", QFORM), ("sform_code", SFORM)):
        if int(known[code]):
            for field in (code, *fields):
                header[field] = known[field]
    if int(known["qform_code"]):
        header["pixdim"][0] = known["pixdim"][0]  # the third axis' direction
    header["xyzt_units"] = known["xyzt_units"]
    header["vox_offset"] = header.single_vox_offset
    return header


def picture_without_text(path: Path, page: str = "") -> bytes:
    """Return the bytes of a PNG with the same pixels and nothing else.

    Args:
        page: the number of one of several pages, from 0.

    Raises:
        NotCleaned: PNG can't hold such values.
    """
    file = BytesIO()
    with path.open("rb") as source, Pictures.open(source, formats=FORMATS) as opened:
        opened.seek(int(page or 0))
        picture = upright(opened)
        if picture.mode == "CMYK":
            picture = picture.convert("RGB")
        if picture.mode in ("F", "I"):
            raise NotCleaned(
                "a picture of 32 bits or of numbers with a sign is not imported; convert it to NIfTI "
                "beforehand"
            )
        bare = Pictures.new(picture.mode, picture.size)
        bare.paste(picture)
        if palette := picture.getpalette():
            bare.putpalette(palette)
        bare.save(file, "PNG")
    return file.getvalue()
