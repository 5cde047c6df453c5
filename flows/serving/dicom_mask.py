"""A model's mask of a DICOM series as DICOM Segmentation, which viewers lay over the series.

Its segments name the algorithm: the study, the sha256 of the weights, and the name by which the model
was asked for. It refers to the series, and lies on its grid; empty slices are left out.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from io import BytesIO
from itertools import product
from pathlib import Path

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes

from flows.serving.prediction import Mask, beside, placed
from models.files import write_atomically
from sites.imaging.dicom.files import Found, UnfitSeries, images_in, read_file
from sites.imaging.dicom.segments import frame_affines, places_of
from sites.imaging.dicom.stack import is_multi_frame, stack_in
from sites.study import Study

TEXT_LENGTH = 64
"""Longest text of DICOM's LO, in characters."""
STUDY_FIELDS = ("AccessionNumber", "StudyDate", "StudyTime", "PatientSex", "PatientBirthDate",
                "ReferringPhysicianName", "StudyID", "PatientName", "PatientID")  # fmt: skip
"""Fields that a segmentation repeats; without them in the series they are empty."""


class NoSegmentation(Exception):
    """A series can't have a DICOM Segmentation; the message states why."""


def write_segmentation(
    mask: Mask, study: Study, named: str, sha256: str, out: Path
) -> Path | None:  # fmt: skip
    """Write the mask of a DICOM series as DICOM Segmentation beside `out`; return its path.

    Returns None for other scans, and for a mask without any label, which DICOM can't hold.

    Args:
        named: the name by which the model was asked for.
        sha256: of its weights.

    Raises:
        NoSegmentation: it can't be written; nothing was.
    """
    if not mask.image.series or not mask.labels.any():
        return None
    folder, name = placed(mask.source)
    file, _, member = name.partition("#")
    source = folder / file
    found = images_in(source) if source.is_dir() else Found((read_file(source),), Counter())
    if mask.labels.ndim == 2:
        images = list(found.images[:1])
        if int(images[0].get("NumberOfFrames") or 1) > 1:
            raise NoSegmentation("the mask is of one frame of several")
    else:
        images, _ = stack_in(found, member)
    data = segmentation_of(mask, images, study, named, sha256)
    write_atomically(beside(out), data)
    return beside(out)


def segmentation_of(
    mask: Mask, images: Sequence[Dataset], study: Study, model: str, sha256: str
) -> bytes:  # fmt: skip
    """Return a DICOM Segmentation of a series.

    Args:
        mask: with some voxel that is not background.
        images: the files of the series.
        model: the name by which the model was asked for.
        sha256: of its weights.

    Raises:
        NoSegmentation: the series lies on no grid that DICOM Segmentation can describe.
    """
    found = [value for value in sorted(study.task.labels) if (mask.labels == value).any()]
    _fill_in(images)
    algorithm = _algorithm(study, model, sha256)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = hd.seg.Segmentation(
                source_images=list(images),
                pixel_array=_as_stored(mask, images, found),
                segmentation_type="BINARY",
                segment_descriptions=[
                    _described(number, study.task.labels[value], algorithm)
                    for number, value in enumerate(found, start=1)
                ],
                series_instance_uid=hd.UID(), series_number=9000,
                sop_instance_uid=hd.UID(), instance_number=1,
                manufacturer="Wardround",
                manufacturer_model_name=study.name[:TEXT_LENGTH],
                software_versions=version("wardround"),
                device_serial_number=sha256[:16],
                content_description=f"{study.name} {sha256[:12]}"[:TEXT_LENGTH],
            )  # fmt: skip
    except (UnfitSeries, ValueError, RuntimeError, AttributeError, TypeError) as error:
        raise NoSegmentation(" ".join(str(error).split())) from error
    file = BytesIO()
    made.save_as(file)
    return file.getvalue()


def _fill_in(images: Sequence[Dataset]) -> None:
    """Add fields that a segmentation repeats, and make directions equal that differ by rounding."""
    for image, name in product(images, STUDY_FIELDS):
        if name not in image:
            setattr(image, name, "")
    is_placed = "ImageOrientationPatient" in images[0] and not is_multi_frame(images[0])
    for image in images if is_placed else ():
        image.ImageOrientationPatient = images[0].ImageOrientationPatient


def _algorithm(study: Study, model: str, sha256: str) -> hd.AlgorithmIdentificationSequence:
    return hd.AlgorithmIdentificationSequence(
        name=study.name,
        family=codes.DCM.ArtificialIntelligence,
        version=sha256[:TEXT_LENGTH],
        source="Wardround",
        parameters={"model": model[:TEXT_LENGTH]},
    )


def _described(
    number: int, label: str, algorithm: hd.AlgorithmIdentificationSequence
) -> hd.seg.SegmentDescription:  # fmt: skip
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=label,
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=codes.SCT.AnatomicalStructure,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
    )


def _as_stored(
    mask: Mask, images: Sequence[Dataset], found: Sequence[int]
) -> NDArray[np.uint8]:  # fmt: skip
    """Return segments by number `(frames, rows, columns)`, in the order of the series' own frames."""
    numbers = np.zeros(max(found) + 1, np.uint8)
    numbers[list(found)] = np.arange(1, len(found) + 1)
    if mask.labels.ndim == 2:
        return numbers[mask.labels][None]
    places = [
        places_of((int(image.Rows), int(image.Columns)), affine, mask.image)
        for image in images
        for affine in frame_affines(image)
    ]
    return np.stack([numbers[mask.labels[tuple(each)]] for each in places])
