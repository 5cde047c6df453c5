"""What an archive exports, taken into a hospital's data without what names the patients.

An export is either in one of the layouts of `sites.listing`, or a tree of DICOM files, whose patients
are those that the files name (PatientID). Every name becomes a keyed hash: of patients, files, UIDs.
A series is renamed into place when it is complete, and the list is replaced last, so that an
interrupted import is finished by asking again, and asking again changes nothing.
"""

import csv
import io
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pydicom
from pydicom import Dataset

from models.checkpoints import write_atomically
from sites.cache import content_of
from sites.cohort import pseudonym
from sites.deidentification import (
    StillIdentifying,
    deidentified,
    dicom_bytes,
    keyed_uid,
    nifti_without_text,
    picture_without_text,
)
from sites.dicom import images_in, is_scan
from sites.documents import ConfigError
from sites.hospital import Hospital
from sites.images import Unreadable, read_image
from sites.listing import LAYOUTS, CaseFiles, read_listing

COLUMNS = ("patient", "image", "label", "session")


@dataclass(frozen=True)
class Imported:
    """What an import did: `cases` are new in the list; what was left out, by reason."""

    cases: int
    patients: int
    left_out: Mapping[str, int]


def take_in(hospital: Hospital, export: Path) -> Imported:
    """Take an export into the hospital's data, and its cases into `cases.csv`.

    A case that is in the list already stays as it is there, whatever became of its label since.

    Raises:
        ConfigError: there is no such folder, it is the hospital's own, or the hospital's data are
            listed in another layout than `cases.csv`.
    """
    data = hospital.data
    _check_places(data, export)
    left_out: Counter[str] = Counter()
    is_listed = any((export / name).exists() for name in LAYOUTS)
    if is_listed:
        _write_labels(data, read_listing(export).labels)
    take = _listed_cases if is_listed else _dicom_cases
    found = list(take(export, data, partial(pseudonym, hospital.pseudonym_key), left_out))
    before = _rows(data / "cases.csv")
    known = {row["image"] for row in before}
    new = [row for row in found if row["image"] not in known]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*before, *new])
    write_atomically(data / "cases.csv", text.getvalue().encode())
    return Imported(len(new), len({row["patient"] for row in new}), dict(left_out))


def _check_places(data: Path, export: Path) -> None:
    if not export.is_dir():
        raise ConfigError(f"{export}: expected a folder that an archive exported, found none.")
    if export.resolve() == data.resolve() or data.resolve() in export.resolve().parents:
        raise ConfigError(f"{export}: expected an export outside the hospital's own data.")
    if other := [name for name in LAYOUTS if name != "cases.csv" and (data / name).exists()]:
        raise ConfigError(
            f"{data}: expected data that are listed in cases.csv, or none yet; found {other[0]}."
        )


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8-sig") as file:
        return [{key: row.get(key) or "" for key in COLUMNS} for row in csv.DictReader(file)]


def _write_labels(data: Path, labels: Mapping[int, str]) -> None:
    path = data / "labels.csv"
    if not path.exists():
        lines = ["value,name", *(f"{value},{name}" for value, name in sorted(labels.items()))]
        write_atomically(path, "\n".join([*lines, ""]).encode())


Rename = Callable[[str], str]


def _listed_cases(
    export: Path, data: Path, rename: Rename, left_out: Counter[str]
) -> Iterator[dict[str, str]]:
    """Yield the cases of an export with a list of its own."""
    for case in read_listing(export).cases:
        patient = rename(case.patient)
        try:
            image = _take_file(export, case.image, data, "images", patient, rename)
            is_class = not (export / case.label.partition("#")[0]).exists()
            label = case.label if is_class else _take_file(
                export, case.label, data, "labels", patient, rename
            )  # fmt: skip
        except (Unreadable, StillIdentifying) as reason:
            left_out[str(reason)] += 1
            continue
        yield {"patient": patient, "image": image, "label": label, "session": _session(case, rename)}


def _session(case: CaseFiles, rename: Rename) -> str:
    return rename(f"session {case.session}")[:8] if case.session else ""


def _take_file(export: Path, name: str, data: Path, kind: str, patient: str, rename: Rename) -> str:
    """Copy a file or a DICOM folder of the export; return where it lies in the data."""
    read_image(export, name)  # says what is wrong with it, and opens nothing outside the export
    source, hashed = export / name, rename(f"file {name} {content_of(export, name)}")[:16]
    if source.is_dir():
        return _put_series(data, images_in(source), f"{kind}/{hashed}", patient, rename)
    suffix = next((s for s in _COPIED if name.lower().endswith(s)), None)
    if suffix is None:
        raise Unreadable("unreadable", f"a file is none of {', '.join(_COPIED)}")
    kept, copy = _COPIED[suffix]
    place = f"{kind}/{hashed}{kept}"
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
"""How a file is copied, and the end of its new name, by the end of its name."""


def _dicom_cases(
    export: Path, data: Path, rename: Rename, left_out: Counter[str]
) -> Iterator[dict[str, str]]:
    """Yield a case for each series of a tree of DICOM files; its label is yet to be drawn."""
    for (name, uid), paths in sorted(_files_by_series(export, left_out).items()):
        patient = rename(name)
        place = f"images/{rename(f'series {uid}')[:16]}"
        try:
            datasets = [pydicom.dcmread(path) for path in paths]
            if any(each.get("BurnedInAnnotation") == "YES" for each in datasets):
                left_out["text is burned into its pixels"] += 1
                continue
            session = keyed_uid(str(datasets[0].get("StudyInstanceUID", "")), rename)
            _put_series(data, datasets, place, patient, rename)
        except StillIdentifying as reason:
            left_out[str(reason)] += 1
            continue
        label = place.replace("images/", "labels/") + ".nii.gz"
        yield {"patient": patient, "image": place, "label": label, "session": session[-8:]}


def _files_by_series(export: Path, left_out: Counter[str]) -> dict[tuple[str, str], list[Path]]:
    series: defaultdict[tuple[str, str], list[Path]] = defaultdict(list)
    for path in sorted(export.rglob("*")):
        if not path.is_file():
            continue
        if not path.resolve().is_relative_to(export.resolve()):
            left_out["a file lies outside the export"] += 1
            continue
        try:
            dataset = pydicom.dcmread(path)
        except Exception:  # a damaged file can fail in any way; the others go on
            left_out["a file is no DICOM file, or damaged"] += 1
            continue
        patient = str(dataset.get("PatientID", "")).strip()
        if not is_scan(dataset):
            left_out["a localiser, capture, report or picture without a place"] += 1
        elif not patient:
            left_out["a file names no patient (PatientID)"] += 1
        else:
            series[patient, str(dataset.get("SeriesInstanceUID", ""))].append(path)
    return dict(series)


def _put_series(
    data: Path, datasets: Sequence[Dataset], place: str, patient: str, rename: Rename
) -> str:
    folder = data / place
    if folder.exists():
        return place
    partial_folder = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir(parents=True)
    for number, dataset in enumerate(datasets):
        clean = deidentified(dataset, patient, rename)
        (partial_folder / f"{number:05d}.dcm").write_bytes(dicom_bytes(clean))
    partial_folder.rename(folder)
    return place
