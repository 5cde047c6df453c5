"""Labels as tools of hospitals draw them in DICOM: segmentations and structure sets."""

from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from scanner import VOLUME, write_series

TRUTH = np.zeros(VOLUME.shape, np.uint8)  # slices, rows, columns
TRUTH[1:3, 2:8, 3:7] = 1
TRUTH[4, 5:11, 1:9] = 2


def series(folder: Path, **changes: object) -> list[Dataset]:
    write_series(folder, **changes)
    files = [pydicom.dcmread(path) for path in folder.iterdir()]
    for each in files:
        for name in ("AccessionNumber", "StudyDate", "StudyTime", "PatientSex", "ReferringPhysicianName",
                     "StudyID"):  # fmt: skip
            setattr(each, name, "")
    return sorted(files, key=lambda each: float(each.ImagePositionPatient[2]))


def described(number: int, label: str) -> hd.seg.SegmentDescription:
    return hd.seg.SegmentDescription(
        number, label, codes.SCT.Organ, codes.SCT.Brain, hd.seg.SegmentAlgorithmTypeValues.MANUAL
    )


def write_seg(
    path: Path, images: list[Dataset], kind: str = "BINARY", labels: tuple[str, ...] = ("Head", "Tail"),
    truth: np.ndarray = TRUTH,
) -> None:  # fmt: skip
    """Write a segmentation with the library that hospitals' tools use; empty frames are left out."""
    values = truth
    if kind == "FRACTIONAL":
        values = np.stack([truth == 1, truth == 2], -1).astype(np.float32) * 0.8
    made = hd.seg.Segmentation(
        images, values, kind, [described(n, label) for n, label in enumerate(labels, start=1)],
        generate_uid(), 2, generate_uid(), 1, "Nobody", "Nothing", "1", "1",
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path)


def write_structures(
    path: Path, contours: dict[str, list[np.ndarray]], uid: str = "1.2.3"
) -> None:  # fmt: skip
    """Write a structure set with contours in mm, `(N, 3)` in DICOM's axes."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = RTStructureSetStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found = pydicom.FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    found.SOPClassUID, found.SOPInstanceUID = RTStructureSetStorage, meta.MediaStorageSOPInstanceUID
    found.Modality, found.PatientID = "RTSTRUCT", "MRN-4711"
    frame, study, of = Dataset(), Dataset(), Dataset()
    of.SeriesInstanceUID, study.RTReferencedSeriesSequence = uid, [of]
    frame.RTReferencedStudySequence = [study]
    found.ReferencedFrameOfReferenceSequence = [frame]
    found.StructureSetROISequence, found.ROIContourSequence = [], []
    for number, (name, drawn) in enumerate(contours.items(), start=5):
        roi, own = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, own.ReferencedROINumber = number, name, number
        own.ContourSequence = []
        for points in drawn:
            contour = Dataset()
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [f"{value:.6g}" for value in np.ravel(points)]
            own.ContourSequence.append(contour)
        found.StructureSetROISequence.append(roi)
        found.ROIContourSequence.append(own)
    found.save_as(path, enforce_file_format=True)


def box(rows: tuple[float, float], columns: tuple[float, float], depth: int) -> np.ndarray:
    """Return a rectangle's corners in mm of a slice of `write_series`, by its first and last voxels."""
    (top, bottom), (left, right) = rows, columns
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return np.array([(-5 + 0.75 * x, 7 + 1.5 * y, 10.0 + 3 * depth) for x, y in corners])
