"""Public sets at the coordinator: labelled scans in any layout that hospitals use, and label maps."""

from dataclasses import dataclass
from functools import lru_cache
from hashlib import file_digest, sha256
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter
from scipy.ndimage import zoom

from models.label_maps import LARGEST_VALUE, middle_of
from models.settings.images import PreprocessingConfig
from models.settings.tasks import TaskConfig
from models.synthesis import Labels
from privacy.signing import canonical
from sites.admission.admission import check_channels, check_labels
from sites.cohort import Patient
from sites.imaging.image import Unreadable
from sites.imaging.images import read_image
from sites.imaging.intake import BrokenCase
from sites.imaging.preprocessing import Prepared
from sites.imaging.reading import Reading, reader
from sites.listing.listing import read_listing
from sites.policy.policy import Refused
from sites.study import Study
from sites.yaml_files import ConfigError

Case = list[Prepared]
"""One patient's scans."""
_TASK: TypeAdapter[TaskConfig] = TypeAdapter(TaskConfig)
MAPS = (".nii", ".nii.gz")


class NoStart(ConfigError):
    """A start can't be made of what is in `public/`; the message states what is missing or differs."""


@dataclass(frozen=True)
class PublicSet:
    """Labelled public cases.

    Attributes:
        sha256: hash of the names and contents of all files of the folder.
        patients: the patients in the order of their names.
    """

    sha256: str
    patients: tuple[Patient, ...]

    @property
    def readings(self) -> list[Reading]:
        """All scans, patient by patient."""
        return [scan for patient in self.patients for scan in patient.scans]

    @property
    def cases(self) -> list[Case]:
        """Each patient's prepared scans."""
        return [[scan.load() for scan in patient.scans] for patient in self.patients]

    @property
    def contents(self) -> list[str]:
        """The hashes of the scans' voxels, by which hospitals find their own patients among them."""
        return sorted({reading.profile.content for reading in self.readings})


def folder_sha256(folder: Path) -> str:
    """Return a hash of the names and contents of all files under a folder, hidden ones left out."""
    lines = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            with path.open("rb") as file:
                lines.append([str(path.relative_to(folder)), file_digest(file, "sha256").hexdigest()])
    return sha256(canonical(lines)).hexdigest()


def material_sha256(public: Path, name: str) -> str:
    """Return the hash of a folder of public material; raise `NoStart` where there is none."""
    return folder_sha256(_folder(public, name))


def public_set(public: Path, name: str, study: Study) -> PublicSet:
    """Return a labelled public set, each case read, checked and prepared as at a hospital.

    Raises:
        NoStart: it is missing, can't be listed, has other labels, or has a case that can't be used.
    """
    folder = _folder(public, name)
    task, prepared = study.task.model_dump_json(), study.preprocessing.model_dump_json()
    return _read_set(folder, folder_sha256(folder), task, prepared)


@lru_cache(maxsize=4)
def _read_set(folder: Path, content: str, task_json: str, preprocessing_json: str) -> PublicSet:
    """Return the set in a folder; settings come as JSON, by which sets are remembered."""
    task = _TASK.validate_json(task_json)
    try:
        listing = read_listing(folder)
        check_labels(listing, task, "public set")
        check_channels(listing, task, "public set")
    except (ConfigError, Refused) as error:
        raise NoStart(f"{folder}: {error}") from error
    read = reader(folder, task, PreprocessingConfig.model_validate_json(preprocessing_json))
    scans: dict[str, list[Reading]] = {}
    for case in listing.cases:
        try:
            scans.setdefault(case.patient, []).append(read(case))
        except BrokenCase as broken:
            raise NoStart(
                f"{folder}: expected usable cases only; {case.case}: {broken.finding.check}: "
                f"{broken.finding.text}. Mend it, or take it off the list."
            ) from broken
    patients = tuple(Patient(name, tuple(each)) for name, each in sorted(scans.items()))
    return PublicSet(content, patients)


def label_maps(public: Path, name: str, study: Study) -> tuple[str, tuple[Labels, ...]]:
    """Return the hash of a folder of label maps, and the maps in RAS, in voxels of the study.

    Raises:
        NoStart: there is none, one can't be read, or one has none of the study's labels.
    """
    folder = _folder(public, name)
    files = sorted(path for path in folder.iterdir() if path.name.lower().endswith(MAPS))
    if not files:
        raise NoStart(f"{folder}: expected label maps (.nii or .nii.gz), found none.")
    return folder_sha256(folder), tuple(_map(folder, path.name, study) for path in files)


def _map(folder: Path, name: str, study: Study) -> Labels:
    try:
        image = read_image(folder, name).of_dims(study.task.dims)
    except Unreadable as error:
        raise NoStart(f"{folder / name}: {error}") from error
    values = np.rint(image.voxels)
    if values.ndim != study.task.dims:
        raise NoStart(f"{folder / name}: expected {study.task.dims} dimensions, got {values.ndim}.")
    if np.abs(values - image.voxels).max() > 0.1 or values.min() < 0 or values.max() > LARGEST_VALUE:
        raise NoStart(f"{folder / name}: expected whole numbers from 0 to {LARGEST_VALUE}.")
    labels = values.astype(np.int64)
    if spacing := study.preprocessing.spacing_mm:
        factors = [own / due for own, due in zip(image.spacing_mm, spacing, strict=True)]
        labels = zoom(labels, factors, order=0, grid_mode=True, mode="nearest")
    try:
        middle_of(labels, len(study.task.labels))
    except ValueError as error:
        raise NoStart(f"{folder / name}: {error}.") from error
    return labels


def _folder(public: Path, name: str) -> Path:
    folder = public / name
    if not folder.is_dir():
        raise NoStart(f"{folder}: expected a folder that the study names, found none.")
    return folder
