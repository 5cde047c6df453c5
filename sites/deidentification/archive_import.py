"""Import of an archive's export into a hospital's data without anything that names the patients.

An export has one of the layouts of `sites.listing.listing`, or is a tree of DICOM files that contain
the patients (PatientID). Names of patients and files, and UIDs, are replaced by keyed hashes. A series
is renamed into place when it is complete, and the list is replaced last. So a second import completes
an interrupted one, and changes nothing after a complete one.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pydicom import Dataset
from pydicom.errors import InvalidDicomError

from models.settings.tasks import PLAIN
from sites.deidentification.copies import (
    SERIES,
    Progress,
    is_drawn,
    put_series,
    take_drawn,
    take_file,
)
from sites.deidentification.deidentify import (
    CODES,
    NotCleaned,
    Rename,
    keyed_uid,
)
from sites.deidentification.imported_list import ImportedList
from sites.hospital import Hospital
from sites.imaging.dicom.files import (
    is_flat,
    no_scan,
    patient_in,
    read_file,
)
from sites.imaging.dicom.stack import without_copies
from sites.listing.cases import CaseFiles, Listing, plain_name
from sites.listing.listing import LAYOUTS, read_listing
from sites.listing.pseudonyms import imported, pseudonym
from sites.listing.tables import CHANNEL, MASK
from sites.yaml_files import ConfigError

FRAMES = "of its several frames the first is listed; name others in cases.csv, as file#3"
OTHER_LABEL = "its class or value differs from the list's, which stays; correct cases.csv if it is wrong"
ACQUISITION = {"RepetitionTime": "TR", "EchoTime": "TE", "InversionTime": "TI", "KVP": "kV"}
"""Numbers of an acquisition that tell series of a patient apart, and their short names."""


@dataclass(frozen=True)
class Imported:
    """Result of an import.

    Attributes:
        cases: new cases in the list.
        patients: their patients.
        left_out: the number of cases or files that were left out, by reason.
        replaced: scans that were imported before and have other content now.
        named: names in the export of what was left out, by reason; for hospital IT only.
    """

    cases: int
    patients: int
    left_out: Mapping[str, int]
    replaced: int = 0
    named: Mapping[str, Sequence[str]] = field(default_factory=dict, compare=False)


def import_export(hospital: Hospital, export: Path) -> Imported:
    """Import an export into the hospital's data, and add its cases to `cases.csv`.

    A case that is already listed stays as it is in the list; it is said where the export has another
    class for it. A scan whose content in the export is another than at the import before is replaced.

    Raises:
        ConfigError: the folder does not exist, overlaps the hospital's own data, or the hospital's data
            are listed in another layout than `cases.csv`, or with other labels.
    """
    data = hospital.data
    _check_places(data, export)
    progress = Progress()
    rename = partial(pseudonym, hospital.pseudonym_key)
    listing = _listing_of(export)
    has_channels = listing is not None and _has_channels(listing)
    listed = ImportedList.open(data / "cases.csv", listing, has_channels=has_channels)
    if listing:
        found = list(_listed_cases(listing, has_channels, export, data, rename, progress))
    else:
        found = list(_dicom_cases(export, data, rename, progress))
    new, differing = listed.extend(found)
    if listing and (listing.has_classes or listing.has_values) and differing:
        progress.left_out[OTHER_LABEL] += differing
    return Imported(
        cases=len(new),
        patients=len({row["patient"] for row in new}),
        left_out={reason: len(names) for reason, names in progress.left_out.items()},
        replaced=len(progress.replaced),
        named=dict(progress.left_out),
    )


def _listing_of(export: Path) -> Listing | None:
    """Return the export's own list, None for a tree of DICOM files."""
    if not any((export / name).exists() for name in LAYOUTS):
        return None
    return read_listing(export, partial(_patient_of, export))


def _patient_of(export: Path, image: str) -> str:
    place = (export / image.partition("#")[0]).resolve()
    is_inside = place.is_relative_to(export.resolve()) and place.exists()
    return patient_in(place) if is_inside else ""


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


def _has_channels(listing: Listing) -> bool:
    """Return whether some case has several images, or its one under a name of its own."""
    return any(
        len(set(case.images.values())) > 1 or PLAIN[0] not in case.images for case in listing.cases
    )


def _columns_of(case: CaseFiles, has_channels: bool) -> dict[str, str]:
    """Return a case's files by column of `cases.csv`: one for each channel, or `image`."""
    if not has_channels:
        return {"image": case.image}
    names = case.images
    if len(names) > 1 and names.get(PLAIN[0]) == case.image:
        del names[PLAIN[0]]  # the same file under its contrast's name
    return {f"{CHANNEL}{name}": file for name, file in names.items()}


def _listed_cases(
    listing: Listing, has_channels: bool, export: Path, data: Path, rename: Rename, progress: Progress
) -> Iterator[dict[str, str]]:
    """Yield the cases of an export that has its own list."""
    names = {plain_name(name): value for value, name in listing.labels.items()}
    for case in listing.cases:
        patient = imported(rename(case.patient))
        with progress.counted(case.image):
            take = partial(
                take_file, export, data=data, patient=patient, rename=rename, progress=progress
            )
            images = {}
            for column, file in _columns_of(case, has_channels).items():
                if file == case.image:
                    images[column] = take(file, kind="images")
                    continue
                with progress.counted(file):  # a case may lack a channel
                    images[column] = take(file, kind="images")
            is_text = listing.has_classes or listing.has_values or listing.is_unlabelled
            masks = {f"{MASK}{name}": take(file, kind="labels") for name, file in case.masks}
            if is_text or masks:
                label = case.label
            elif is_drawn(export, case.label):
                label = take_drawn(
                    export, case.label, case.image, names, data=data, patient=patient, rename=rename,
                    progress=progress,
                )  # fmt: skip
            else:
                label = take(case.label, kind="labels")
            session = rename(f"session {case.session}")[:8] if case.session else ""
            yield {
                "patient": patient, **images, **masks, "label": "" if masks else label,
                "session": session, "series": "",
            }  # fmt: skip


def _dicom_cases(
    export: Path, data: Path, rename: Rename, progress: Progress
) -> Iterator[dict[str, str]]:
    """Yield a case for each volume or flat image of a DICOM tree; its label file is not there yet."""
    for (name, *_), paths in sorted(_files_by_series(export, progress).items()):
        patient = imported(rename(name))
        with progress.counted(str(paths[0].relative_to(export))):
            datasets, copies = without_copies([read_file(path) for path in paths])
            if copies:
                progress.left_out["it is a copy of another file"] += [str(paths[0].parent)] * copies
            study = keyed_uid(str(datasets[0].get("StudyInstanceUID", "")), rename)
            flat = [dataset for dataset in datasets if is_flat(dataset)]
            volume = [dataset for dataset in datasets if not is_flat(dataset)]
            for images in [*([each] for each in flat), *([volume] if volume else [])]:
                listed = str(images[0].get("SOPInstanceUID", "")) if is_flat(images[0]) else ""
                if _is_cine(images[0]):
                    progress.left_out[FRAMES].append(str(paths[0].relative_to(export)))
                place = put_series(data, images, "images", patient, rename, progress, listed)
                ending = ".png" if is_flat(images[0]) else ".nii.gz"
                yield {
                    "patient": patient, "image": place + ("#0" if _is_cine(images[0]) else ""),
                    "label": place.replace("images/", "labels/") + ending, "session": study[-8:],
                    "series": _acquisition(images[0]),
                }  # fmt: skip


def _is_cine(image: Dataset) -> bool:
    return is_flat(image) and int(image.get("NumberOfFrames") or 1) > 1


def _acquisition(dataset: Dataset) -> str:
    """Return what tells a series from others of a patient, in numbers: `MR TR=500 TE=10`."""
    numbers = []
    for keyword, name in ACQUISITION.items():
        with suppress(TypeError, ValueError):
            numbers.append(f"{name}={float(dataset.get(keyword)):g}")
    return " ".join([_modality(dataset), *numbers])


def _modality(dataset: Dataset) -> str:
    modality = str(dataset.get("Modality") or "")
    return modality if modality in CODES["Modality"] else "OT"


def _files_by_series(export: Path, progress: Progress) -> dict[tuple[str, ...], list[Path]]:
    """Return the files that hold images of a scan, by patient, study and series."""
    series: defaultdict[tuple[str, ...], list[Path]] = defaultdict(list)
    for path in sorted(export.rglob("*")):
        if not path.is_file() or path.name.startswith("._"):
            continue
        with progress.counted(str(path.relative_to(export))):
            if not path.resolve().is_relative_to(export.resolve()):
                raise NotCleaned("a file is outside the export")
            try:
                dataset = read_file(path)
            except InvalidDicomError:
                raise NotCleaned("a file is not a DICOM file") from None
            patient, uid = (str(dataset.get(key, "")).strip() for key in ("PatientID", SERIES))
            if why := no_scan(dataset):
                raise NotCleaned(f"it is no image of a scan: {why}")
            if not patient or not uid:
                raise NotCleaned(f"a file has no PatientID or no {SERIES}")
            series[patient, str(dataset.get("StudyInstanceUID", "")), uid].append(path)
    return dict(series)
