"""Synthetic DICOM files, as scanners and archives leave them in a folder."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    VLPhotographicImageStorage,
    generate_uid,
)

CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
AXIAL = [1, 0, 0, 0, 1, 0]
CORONAL = [1, 0, 0, 0, 0, -1]
RNG = np.random.default_rng(0)
VOLUME = RNG.integers(0, 1000, (6, 12, 10), dtype=np.int16)  # slices, rows, columns


def write_slice(
    folder: Path, number: int, position: list[float], *, series: str = "1.2.3", values=None,
    orientation=AXIAL, **changes: object,
) -> None:  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    values = VOLUME[number % len(VOLUME)] if values is None else values
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = changes.get("SOPClassUID", MRImageStorage)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    fields = {
        "SOPClassUID": MRImageStorage, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": "MR", "Manufacturer": "Nobody", "PatientName": "MUELLER^ANNA",
        "PatientID": "MRN-4711", "PatientBirthDate": "19560403", "SeriesInstanceUID": series,
        "StudyInstanceUID": "1.2", "FrameOfReferenceUID": "1.2.9", "InstanceNumber": number + 1,
        "ImageType": ["ORIGINAL", "PRIMARY", "M"], "ImagePositionPatient": position,
        "ImageOrientationPatient": orientation, "PixelSpacing": [1.5, 0.75], "SliceThickness": 3,
        "Rows": values.shape[0], "Columns": values.shape[1], "BitsAllocated": 16, "BitsStored": 16,
        "HighBit": 15, "PixelRepresentation": 1, "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", "RescaleSlope": 1, "RescaleIntercept": 0,
    }  # fmt: skip
    for name, value in {"PixelData": values.astype(np.int16).tobytes(), **fields, **changes}.items():
        setattr(dataset, name, value)
    dataset.save_as(
        folder / f"{series}-{number:03d}-{generate_uid()[-6:]}.dcm", enforce_file_format=True
    )


def write_series(folder: Path, skip: tuple[int, ...] = (), **changes: object) -> None:
    for number in range(len(VOLUME)):
        if number not in skip:
            write_slice(folder, number, [-5.0, 7.0, 10.0 + 3 * number], **changes)


def write_enhanced(path: Path, skip: tuple[int, ...] = (), **changes: object) -> None:
    """Write a volume as one multi-frame file, its frames in no order (PS3.3 A.36, as far as needed)."""
    numbers = [n for n in (3, 0, 5, 1, 4, 2) if n not in skip]
    write_slice(path, 0, [0, 0, 0], SOPClassUID=EnhancedMRImageStorage, **changes)
    (file,) = path.iterdir()
    dataset = pydicom.dcmread(file)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
                    "RescaleSlope", "RescaleIntercept"):  # fmt: skip
        del dataset[keyword]
    shared, measures, plane, values = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [1.5, 0.75], 3
    plane.ImageOrientationPatient = AXIAL
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 2, 10, "US"
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [plane]
    shared.PixelValueTransformationSequence = [values]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for number in numbers:
        frame, place, content = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [-5.0, 7.0, 10.0 + 3 * number]
        content.StackID, content.InStackPositionNumber = "1", number + 1
        content.DimensionIndexValues = [number + 1]
        frame.PlanePositionSequence, frame.FrameContentSequence = [place], [content]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    organisation, index = Dataset(), Dataset()
    organisation.DimensionOrganizationUID = index.DimensionOrganizationUID = "1.2.77"
    index.DimensionIndexPointer = pydicom.tag.Tag("InStackPositionNumber")
    index.FunctionalGroupPointer = pydicom.tag.Tag("FrameContentSequence")
    dataset.DimensionOrganizationSequence, dataset.DimensionIndexSequence = [organisation], [index]
    dataset.NumberOfFrames = len(numbers)
    dataset.PixelData = VOLUME[numbers].tobytes()
    dataset.save_as(file)


_PICTURES = np.random.default_rng(1)
PIXELS = _PICTURES.integers(0, 4096, (9, 7)).astype(np.uint16)
COLOURS = _PICTURES.integers(0, 256, (9, 7, 3), dtype=np.uint8)
NO_PLACE = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
XRAY = {
    "SOPClassUID": DigitalXRayImageStorageForPresentation, "Modality": "DX", "PixelRepresentation": 0,
    "BitsStored": 12, "HighBit": 11, "PixelSpacing": None, "ImagerPixelSpacing": [0.14, 0.2],
    "WindowCenter": 1000, "WindowWidth": 20,
}  # fmt: skip
PHOTO = {
    "SOPClassUID": VLPhotographicImageStorage, "Modality": "XC", "PixelRepresentation": 0,
    "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "SamplesPerPixel": 3, "PlanarConfiguration": 0,
    "PhotometricInterpretation": "RGB", "PixelSpacing": None,
}  # fmt: skip


def write_flat(folder: Path, values: np.ndarray, **fields: object) -> Path:
    """Write an image without a place in space; return its file."""
    before = set(folder.iterdir()) if folder.exists() else set()
    write_slice(folder, 0, [0, 0, 0], values=values[..., 0] if values.ndim == 3 else values)
    (path,) = set(folder.iterdir()) - before
    dataset = pydicom.dcmread(path)
    dataset.file_meta.MediaStorageSOPClassUID = fields["SOPClassUID"]
    for name, value in {**NO_PLACE, **fields, "PixelData": values.tobytes()}.items():
        if value is None:
            if name in dataset:
                del dataset[name]
        else:
            setattr(dataset, name, value)
            if name.endswith("Descriptor"):
                dataset[name].VR = "US"
    dataset["PixelData"].VR = "OB" if values.dtype == np.uint8 else "OW"
    dataset.save_as(path)
    return path
