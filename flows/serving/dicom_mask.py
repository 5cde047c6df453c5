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
from sites.imaging.dicom.drawn import TO_RAS
from sites.imaging.dicom.files import Found, images_in, read_file
from sites.imaging.dicom.series import ROUNDING_MM
from sites.imaging.dicom.stack import SAME_DIRECTION, is_multi_frame, stack_in
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
    images, _ = stack_in(found, member)
    data = segmentation_of(mask.labels, mask.image.affine, images, study, named, sha256)
    write_atomically(beside(out), data)
    return beside(out)


def segmentation_of(
    labels: NDArray[np.uint8],
    affine: NDArray[np.float64],
    images: Sequence[Dataset],
    study: Study,
    model: str,
    sha256: str,
) -> bytes:
    """Return a DICOM Segmentation of a series.

    Args:
        labels: `(*spatial)` in RAS, 0 for background, some voxel not 0.
        affine: `(4, 4)`, voxel to mm in RAS.
        images: the files of the series.
        model: the name by which the model was asked for.
        sha256: of its weights.

    Raises:
        NoSegmentation: the series lies on no grid that DICOM Segmentation can describe.
    """
    found = [value for value in sorted(study.task.labels) if (labels == value).any()]
    _fill_in(images)
    algorithm = _algorithm(study, model, sha256)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = hd.seg.Segmentation(
                source_images=list(images),
                pixel_array=_as_stored(labels, affine, images, found),
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
    except (ValueError, RuntimeError, AttributeError, TypeError) as error:
        raise NoSegmentation(" ".join(str(error).split())) from error
    file = BytesIO()
    made.save_as(file)
    return file.getvalue()


def _fill_in(images: Sequence[Dataset]) -> None:
    """Add fields that a segmentation repeats, and make directions equal that differ by rounding."""
    for image, name in product(images, STUDY_FIELDS):
        if name not in image:
            setattr(image, name, "")
    for image in images if not is_multi_frame(images[0]) else ():
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
    labels: NDArray[np.uint8],
    affine: NDArray[np.float64],
    images: Sequence[Dataset],
    found: Sequence[int],
) -> hd.Volume:
    """Return segments by number, in the order and direction of the series' own slices."""
    numbers = np.zeros(max(found) + 1, np.uint8)
    numbers[list(found)] = np.arange(1, len(found) + 1)
    volume = hd.Volume(numbers[labels], TO_RAS @ affine, "PATIENT")
    if is_multi_frame(images[0]):
        geometry = hd.Image.from_dataset(images[0]).get_volume_geometry()
        if geometry is None:
            raise ValueError("its frames form no volume")
        return volume.match_geometry(geometry)
    series = hd.get_volume_from_series(
        list(images), atol=ROUNDING_MM, orientation_tol=SAME_DIRECTION
    )  # fmt: skip
    return volume.match_geometry(series.get_geometry(), tol=ROUNDING_MM)
