"""Import of an archive's export into a hospital's data without anything that names the patients.

An export has one of the layouts of `sites.imaging.listing`, or is a tree of DICOM files that contain
the patients (PatientID). Names of patients and files, and UIDs, are replaced by keyed hashes. A series
is renamed into place when it is complete, and the list is replaced last. So a second import completes
an interrupted one, and changes nothing after a complete one.
"""

import csv
import io
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydicom import Dataset
from pydicom.errors import InvalidDicomError

from models.files import write_atomically
from sites.cohort import imported, pseudonym
from sites.deidentification.deidentify import (
    NotCleaned,
    Rename,
    deidentified,
    dicom_bytes,
    keyed_uid,
    nifti_without_text,
    picture_without_text,
)
from sites.hospital import Hospital
from sites.imaging.cache import content_of
from sites.imaging.dicom import UnfitSeries, images_in, is_scan, largest, read_file, stacks_of
from sites.imaging.images import Unreadable, read_image
from sites.imaging.listing import CLASSES, LAYOUTS, read_listing
from sites.yaml_files import ConfigError

SERIES = "SeriesInstanceUID"
COLUMNS = ("patient", "image", "label", "session")


@dataclass(frozen=True)
class Imported:
    """Result of an import: new cases in the list, their patients, and cases left out by reason."""

    cases: int
    patients: int
    left_out: Mapping[str, int]


def import_export(hospital: Hospital, export: Path) -> Imported:
    """Import an export into the hospital's data, and add its cases to `cases.csv`.

    A case that is already listed stays as it is in the list, even if its label has changed since.

    Raises:
        ConfigError: the folder does not exist, overlaps the hospital's own data, or the hospital's data
            are listed in another layout than `cases.csv`.
    """
    data = hospital.data
    _check_places(data, export)
    left_out: Counter[str] = Counter()
    is_listed = any((export / name).exists() for name in LAYOUTS)
    if is_listed:
        _write_labels(data, read_listing(export).labels)
    take = _listed_cases if is_listed else _dicom_cases
    rename = partial(pseudonym, hospital.pseudonym_key)
    found = list(take(export, data, rename, left_out))
    before = _rows(data / "cases.csv")
    known = {row["image"] for row in before}
    new = [row for row in found if row["image"] not in known]
    if new:
        write_atomically(data / "cases.csv", _table(COLUMNS, [*before, *new]))
    return Imported(len(new), len({row["patient"] for row in new}), dict(left_out))


def _check_places(data: Path, export: Path) -> None:
    if not export.is_dir():
        raise ConfigError(f"{export}: expected a folder that an archive exported, found none.")
    places = export.resolve(), data.resolve()
    if places[0] == places[1] or any(a in b.parents for a, b in (places, places[::-1])):
        raise ConfigError(f"{export}: expected an export outside the hospital's own data.")
    if other := [name for name in LAYOUTS if name != "cases.csv" and (data / name).exists()]:
        raise ConfigError(
            f"{data}: expected data that are listed in cases.csv, or no data; found {other[0]}."
        )


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8-sig") as file:
        return [{key: row.get(key) or "" for key in COLUMNS} for row in csv.DictReader(file)]


def _write_labels(data: Path, labels: Mapping[int, str]) -> None:
    path = data / "labels.csv"
    if not path.exists():
        rows = [{"value": str(value), "name": name} for value, name in sorted(labels.items())]
        write_atomically(path, _table(("value", "name"), rows))


def _table(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _listed_cases(
    export: Path, data: Path, rename: Rename, left_out: Counter[str]
) -> Iterator[dict[str, str]]:
    """Yield the cases of an export that has its own list."""
    cases = read_listing(export).cases
    are_classes = all(CLASSES.fullmatch(case.label) for case in cases)
    for case in cases:
        patient = imported(rename(case.patient))
        with _counted(left_out):
            image = _take_file(export, case.image, data, "images", patient, rename)
            label = case.label
            if not are_classes:
                label = _take_file(export, case.label, data, "labels", patient, rename)
            session = rename(f"session {case.session}")[:8] if case.session else ""
            yield {"patient": patient, "image": image, "label": label, "session": session}


@contextmanager
def _counted(left_out: Counter[str]) -> Iterator[None]:
    """Count a case that can't be imported by its reason, and continue with the others."""
    try:
        yield
    except (Unreadable, NotCleaned, UnfitSeries) as reason:
        left_out[str(reason)] += 1
    except Exception as error:  # a damaged file can fail in any way
        left_out[f"a file is damaged ({type(error).__name__})"] += 1


def _take_file(export: Path, name: str, data: Path, kind: str, patient: str, rename: Rename) -> str:
    """Copy a file or a DICOM folder of the export; return its place in the data."""
    read_image(export, name)  # raises if it can't be used, and opens nothing outside the export
    source = export / name
    if source.is_dir():
        return _put_series(data, largest(stacks_of(images_in(source))), kind, patient, rename)
    suffix = next((s for s in _COPIED if name.lower().endswith(s)), None)
    if suffix is None:
        raise Unreadable("unreadable", f"a file is not of type {', '.join(_COPIED)}")
    kept, copy = _COPIED[suffix]
    place = f"{kind}/{rename(f'file {patient} {name} {content_of(export, name)}')[:16]}{kept}"
    if not (data / place).exists():
        write_atomically(data / place, copy(source))
    return place


_COPIED: Mapping[str, tuple[str, Callable[[Path], bytes]]] = {
    ".nii": (".nii.gz", nifti_without_text),
    ".nii.gz": (".nii.gz", nifti_without_text),
    ".png": (".png", picture_without_text),
    ".jpg": (".png", picture_without_text),
    ".jpeg": (".png", picture_without_text),
}
"""The end of a copy's name and the function that copies, by the end of the file's name."""


def _dicom_cases(
    export: Path, data: Path, rename: Rename, left_out: Counter[str]
) -> Iterator[dict[str, str]]:
    """Yield a case for each series of a tree of DICOM files; its label file does not exist yet."""
    for (name, *_), paths in sorted(_files_by_series(export, left_out).items()):
        patient = imported(rename(name))
        with _counted(left_out):
            datasets = [read_file(path) for path in paths]
            study = keyed_uid(str(datasets[0].get("StudyInstanceUID", "")), rename)
            place = _put_series(data, datasets, "images", patient, rename)
            label = place.replace("images/", "labels/") + ".nii.gz"
            yield {"patient": patient, "image": place, "label": label, "session": study[-8:]}


def _files_by_series(export: Path, left_out: Counter[str]) -> dict[tuple[str, ...], list[Path]]:
    """Return the files that hold images of a scan, by patient, study and series."""
    series: defaultdict[tuple[str, ...], list[Path]] = defaultdict(list)
    for path in sorted(export.rglob("*")):
        if not path.is_file():
            continue
        with _counted(left_out):
            if not path.resolve().is_relative_to(export.resolve()):
                raise NotCleaned("a file is outside the export")
            try:
                dataset = read_file(path)
            except InvalidDicomError:
                raise NotCleaned("a file is not a DICOM file") from None
            patient, uid = (str(dataset.get(key, "")).strip() for key in ("PatientID", SERIES))
            if not is_scan(dataset):
                raise NotCleaned("a localiser, capture, report, or image without a position")
            if not patient or not uid:
                raise NotCleaned(f"a file has no PatientID or no {SERIES}")
            series[patient, str(dataset.get("StudyInstanceUID", "")), uid].append(path)
    return dict(series)


def _put_series(data: Path, datasets: Sequence[Dataset], kind: str, patient: str, rename: Rename) -> str:
    """Write a series under the hospital's own names, also over a shorter one; return its place."""
    keys = ("PatientID", "StudyInstanceUID", SERIES)
    own = "\n".join(str(datasets[0].get(key, "")) for key in keys)
    place = f"{kind}/{rename(f'series {patient} {own}')[:16]}"
    folder = data / place
    if folder.exists() and len(list(folder.iterdir())) >= len(datasets):
        return place
    partial_folder = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir(parents=True)
    try:
        for number, dataset in enumerate(datasets):
            clean = deidentified(dataset, patient, rename)
            (partial_folder / f"{number:05d}.dcm").write_bytes(dicom_bytes(clean))
        shutil.rmtree(folder, ignore_errors=True)
        partial_folder.rename(folder)
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)
    return place
