"""Scans without what names a patient: DICOM by the basic profile, NIfTI without free text.

DICOM PS3.15, annex E, table E.1-1, as dicom-anonymizer 2.1 has it (edition 2024b), with two
differences: every nested data set is treated as well, and patients and UIDs get keyed hashes, so that
a patient's second scan is known as his, by the hospital alone.
"""

import gzip
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import nibabel as nib
import pydicom
from dicomanonymizer.simpledicomanonymizer import anonymize_dataset, initialize_actions_2024b
from PIL import Image as Pictures
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID

PROFILE = ("113100", "DCM", "Basic Application Confidentiality Profile")
TEXTS = ("descrip", "aux_file", "intent_name", "db_name")
"""The fields of a NIfTI header that hold free text."""

Rename = Callable[[str], str]
"""From an identifier to a keyed hash of it, as hexadecimal digits."""


class StillIdentifying(Exception):
    """A scan names its patient where the profile does not look. The message tells no value."""


def deidentified(dataset: Dataset, patient: str, rename: Rename) -> Dataset:
    """Return a DICOM data set by the basic profile; `dataset` itself is changed, too.

    Args:
        patient: what the patient is called from now on.

    Raises:
        StillIdentifying: a value that named the patient still stands in it.
    """
    secrets = _secrets(dataset)
    actions = _actions(rename)
    for each in (*_nested(dataset), dataset):
        anonymize_dataset(each, base_rules_gen=lambda: actions)
    dataset.PatientID = dataset.PatientName = patient
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "PS3.15 annex E, basic profile"
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = PROFILE
    dataset.DeidentificationMethodCodeSequence = Sequence([code])
    meta = FileMetaDataset()  # the old one names the machine that sent the file
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    dataset.file_meta, dataset.preamble = meta, b"\0" * 128
    for keyword, text in _texts(dataset):
        if any(secret in text.upper() for secret in secrets):
            raise StillIdentifying(f"the attribute {keyword} still names the patient")
    return dataset


def _nested(dataset: Dataset) -> Iterator[Dataset]:
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from _nested(item)
                yield item


@lru_cache(maxsize=1)
def _profile() -> Mapping[tuple[int, ...], Callable[..., None]]:
    return dict(initialize_actions_2024b())


def _actions(rename: Rename) -> dict[tuple[int, ...], Callable[..., None]]:
    def keyed(dataset: Dataset, tag: tuple[int, int]) -> None:
        element = dataset.get(tag)
        if element is None or not element.value:
            return
        if element.VR != "UI":
            del dataset[tag]  # a sequence of references
        elif isinstance(element.value, str):
            element.value = keyed_uid(element.value, rename)
        else:
            element.value = [keyed_uid(uid, rename) for uid in element.value]

    return {
        tag: keyed if action.__name__.endswith("UID") else action for tag, action in _profile().items()
    }


def keyed_uid(uid: str, rename: Rename) -> UID:
    """Return a UID (PS3.5 B.2) that stands for `uid` in this hospital alone."""
    return UID(f"2.25.{int(rename(f'uid {uid}')[:30], 16)}")


def _secrets(dataset: Dataset) -> set[str]:
    """Return what names the patient in a data set, as far as it is long enough to be searched for."""
    names = str(dataset.get("PatientName", "")).replace("=", "^").split("^")
    rest = [dataset.get(key, "") for key in ("PatientID", "PatientBirthDate", "AccessionNumber")]
    return {str(value).strip().upper() for value in (*names, *rest) if len(str(value).strip()) >= 4}


def _texts(dataset: Dataset) -> Iterator[tuple[str, str]]:
    for element in dataset.iterall():
        if element.VR not in {"SQ", "OB", "OW", "OF", "OD", "OL", "UI", "DS", "IS", "CS"}:
            yield element.keyword or str(element.tag), str(element.value)


def dicom_bytes(dataset: Dataset) -> bytes:
    """Return a data set as a file's bytes."""
    file = BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def nifti_without_text(path: Path) -> bytes:
    """Return a NIfTI file's bytes, gzipped, with empty text fields and without extensions.

    The voxels and the affine are the same bytes as before.
    """
    image = nib.load(path)
    if not isinstance(image, nib.Nifti1Image):
        raise ValueError("expected a NIfTI file of one part")
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    header, offset = image.header.copy(), image.dataobj.offset
    for field in TEXTS:
        header[field] = b""
    header.extensions.clear()
    header.set_slope_inter(image.dataobj.slope, image.dataobj.inter)  # nibabel drops them on reading
    header["vox_offset"] = header.single_vox_offset
    no_extensions = b"\0" * 4
    return gzip.compress(header.binaryblock + no_extensions + raw[offset:], mtime=0)


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
