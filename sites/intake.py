"""What a hospital has on disk: cases in the Decathlon's layout, read from NIfTI and checked."""

import csv
import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from models.objectives import ClassificationConfig, SegmentationConfig
from sites.documents import ConfigError

EXCLUDED = "excluded.csv"
"""Patients who have withdrawn, in a hospital's folder: one column, `subject`."""

LARGEST_BYTES = 2**32
"""More than any scan that this package trains on, unpacked."""


@dataclass(frozen=True)
class CaseFiles:
    """One scan as the hospital lists it. `label` is a file, or a class for classification."""

    case: str
    patient: str
    image: str
    label: str


@dataclass(frozen=True)
class Scan:
    """One scan in the closest canonical orientation (RAS+).

    Attributes:
        image: `(*spatial)` intensities.
        target: `(*spatial)` labels, or `()` the class.
        spacing_mm: the voxel's sides.
    """

    image: NDArray[np.float32]
    target: NDArray[np.int64]
    spacing_mm: tuple[float, ...]


class BrokenCase(Exception):
    """A case can't be used. The message names it, and is for the hospital's eyes only."""

    def __init__(self, case: str, reason: str) -> None:
        self.case, self.reason = case, reason
        super().__init__(f"{case}: {reason}")


def list_cases(data: Path) -> list[CaseFiles]:
    """Return the cases that `dataset.json` lists, with their patients from `subjects.csv`.

    Raises:
        ConfigError: a file is missing or has another form, or a case has no patient.
    """
    subjects = data / "subjects.csv"
    try:
        listed = json.loads((data / "dataset.json").read_text(encoding="utf-8"))["training"]
        names = [
            (pair["image"].removeprefix("./"), str(pair["label"]).removeprefix("./")) for pair in listed
        ]
        with subjects.open(newline="", encoding="utf-8") as file:
            patients = {row["image"]: (row["subject"] or "").strip() for row in csv.DictReader(file)}
    except FileNotFoundError as error:
        raise ConfigError(f"{error.filename}: no such file; a hospital's data needs it.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{data}: expected dataset.json with training: [{{image, label}}, ...] and "
            f"subjects.csv with the columns image and subject, got {error!r}."
        ) from None
    cases = []
    for image, label in names:
        if not patients.get(image):
            raise ConfigError(f"{subjects}: expected a subject for each image; one has none.")
        cases.append(CaseFiles(Path(image).name.split(".")[0], patients[image], image, label))
    return cases


def excluded_patients(path: Path) -> frozenset[str]:
    """Return the patients whom the hospital has excluded; none where there is no such file.

    Raises:
        ConfigError: the file has no column `subject`, or an empty one.
    """
    if not path.exists():
        return frozenset()
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if "subject" not in (rows.fieldnames or ()):
                raise KeyError("subject")
            names = frozenset(row["subject"].strip() for row in rows)
    except (ValueError, KeyError, AttributeError, csv.Error) as error:
        raise ConfigError(f"{path}: expected one column, subject, got {error!r}.") from None
    if "" in names:
        raise ConfigError(f"{path}: expected a subject in each row; one has none.")
    return names


def declared_labels(data: Path) -> dict[int, str]:
    """Return the labels that `dataset.json` says the data have: public, and the hospital's word.

    Raises:
        ConfigError: the file or its `labels` is missing or has another form.
    """
    try:
        described = json.loads((data / "dataset.json").read_text(encoding="utf-8"))["labels"]
        return {int(value): str(name) for value, name in described.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f'{data / "dataset.json"}: expected labels: {{"0": "background", "1": ...}}, got {error!r}.'
        ) from None


def read_scan(data: Path, case: CaseFiles, task: SegmentationConfig | ClassificationConfig) -> Scan:
    """Return the scan of `case`.

    Raises:
        BrokenCase: a file is missing, no NIfTI or outside the data folder; the image has another
            number of dimensions than the task, is not finite or is constant; the label has another
            shape or a value outside the task's.
    """
    values, spacing_mm = _read_nifti(data, case, case.image, task.dims)
    if not np.isfinite(values).all():
        raise BrokenCase(case.case, "the image has NaN or infinite voxels")
    if values.min() == values.max():
        raise BrokenCase(case.case, "the image is constant")
    if task.kind == "classification":
        return Scan(values, np.asarray(_class(case, task), dtype=np.int64), spacing_mm)
    label, _ = _read_nifti(data, case, case.label, task.dims)
    if label.shape != values.shape:
        raise BrokenCase(case.case, f"the image has shape {values.shape}, its label {label.shape}")
    if strange := sorted(set(np.unique(label)) - {0, *task.labels}):
        raise BrokenCase(case.case, f"the label has the value {strange[0]:g}, not in the study")
    return Scan(values, label.astype(np.int64), spacing_mm)


def _read_nifti(
    data: Path, case: CaseFiles, name: str, dims: int
) -> tuple[NDArray[np.float32], tuple[float, ...]]:
    path = (data / name).resolve()
    if not path.is_relative_to(data.resolve()):
        raise BrokenCase(case.case, "a file lies outside the data folder")
    try:
        _check_gzip(path)
        image = nib.as_closest_canonical(nib.load(path))
        voxels = np.asarray(image.dataobj, dtype=np.float32)
    except FileNotFoundError:
        raise BrokenCase(case.case, "a file is missing") from None
    except Exception as error:
        # A damaged file can fail in any way that its reader can; none may stop the other cases.
        raise BrokenCase(case.case, f"a file can't be read: {type(error).__name__}") from error
    if voxels.ndim != dims:
        raise BrokenCase(case.case, f"expected {dims} dimensions, got {voxels.ndim}")
    return voxels, tuple(float(side) for side in image.header.get_zooms()[:dims])


def _check_gzip(path: Path) -> None:
    """Read a gzip file to its end, where its checksum stands; nibabel stops before it."""
    if path.suffix != ".gz":
        return
    size = 0
    with gzip.open(path) as file:
        while part := file.read(2**20):
            size += len(part)
            if size > LARGEST_BYTES:
                raise OSError("the file unpacks to more than a scan can be")


def _class(case: CaseFiles, task: ClassificationConfig) -> int:
    if not case.label.isdecimal() or int(case.label) not in task.labels:
        raise BrokenCase(case.case, "the label is none of the study's classes")
    return int(case.label)
