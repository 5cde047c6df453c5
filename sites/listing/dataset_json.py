"""Data sets that a `dataset.json` describes: the Decathlon's layout and raw folders of nnU-Net."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.settings.tasks import PLAIN
from sites.listing.cases import PICTURES, CaseFiles, Listing, plain_name
from sites.listing.tables import PatientOf, relative, rows_of
from sites.yaml_files import ConfigError

IGNORED = "ignore"
"""Label of nnU-Net for voxels that count for nothing."""


def from_dataset(data: Path, _: PatientOf | None) -> Listing:
    """Return the cases of a `dataset.json`, in the form that it has."""
    content = _content_of(data / "dataset.json")
    is_nnunet = "channel_names" in content
    return _from_nnunet(data, content) if is_nnunet else _from_decathlon(data, content)


def _content_of(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: expected a JSON object, got {error!r}.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a JSON object, got {type(content).__name__}.")
    return content


def channels_by_number(path: Path) -> dict[str, int]:
    """Return the number of each channel in the names of files, by nnU-Net's `dataset.json` at `path`.

    Raises:
        ConfigError: the file has no `channel_names`, or two channels have one name.
    """
    try:
        names = _distinct(_content_of(path)["channel_names"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f'{path}: expected channel_names: {{"0": ...}}, got {error!r}.') from None
    return {name: number for number, name in names.items()}


def _from_decathlon(data: Path, content: Mapping[str, Any]) -> Listing:
    try:
        listed = [
            (relative(pair["image"]), relative(str(pair["label"]))) for pair in content["training"]
        ]
        labels = {int(value): str(name) for value, name in content["labels"].items()}
        modality = _distinct(content.get("modality", {}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f'{data / "dataset.json"}: expected training: [{{image, label}}, ...] and labels: {{"0": '
            f'"background", "1": ...}}, got {error!r}.'
        ) from None
    subjects = data / "subjects.csv"
    patients = {relative(r["image"]): r["subject"] for r in rows_of(subjects, ("image", "subject"))}
    cases = []
    for image, label in listed:
        if image not in patients:
            raise ConfigError(f"{subjects}: expected a subject for each image; {image} has none.")
        channels = _channels_of(image, modality)
        name, first = Path(image).name.split(".")[0], channels[0][1] if channels else image
        cases.append(CaseFiles(name, patients[image], first, label, channels=channels))
    return Listing(tuple(cases), labels)


def _channels_of(image: str, modality: Mapping[int, str]) -> tuple[tuple[str, str], ...]:
    """Return the channels in one file; a single one is also the case's `image`."""
    if len(modality) == 1 or (modality and "#" in image):
        return ((PLAIN[0], image), *((name, image) for name in modality.values() if len(modality) == 1))
    return tuple((name, f"{image}#{number}") for number, name in sorted(modality.items()))


def _distinct(channels: Mapping[str, Any]) -> dict[int, str]:
    """Return channels by number; raise ValueError where two have one name."""
    found = {int(number): plain_name(str(name)) for number, name in channels.items()}
    if len(set(found.values())) < len(found):
        raise ValueError("two channels have one name")
    return found


def _from_nnunet(data: Path, content: Mapping[str, Any]) -> Listing:
    """Return the training cases of a raw folder of nnU-Net: `imagesTr/CASE_0000.nii.gz` and so on.

    A label that is a region (a list of values) is written by its value in `regions_class_order`.
    """
    path = data / "dataset.json"
    try:
        ending, order = str(content["file_ending"]), list(content.get("regions_class_order") or ())
        names = _distinct(content["channel_names"])
        found = {str(name): value for name, value in content["labels"].items()}
        regions = [name for name, value in found.items() if name not in ("background", IGNORED)]
        values = dict(zip(regions, order, strict=True)) if order else {n: found[n] for n in regions}
        labels = {0: "background", **{int(value): name for name, value in values.items()}}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f'{path}: expected channel_names: {{"0": ...}}, file_ending and labels: {{"background": 0, '
            f'"lesion": 1, ...}}, with regions_class_order where labels are regions, got {error!r}.'
        ) from None
    subjects, notes = data / "subjects.csv", []
    if IGNORED in found:
        notes.append("the label ignore is none of a study: cases with it can't be used")
    patients: dict[str, str] = {}
    if subjects.exists():
        patients = {row["case"]: row["subject"] for row in rows_of(subjects, ("case", "subject"))}
    else:
        notes.append("each case counts as a patient of its own; subjects.csv (case, subject) joins them")
    cases = []
    if ending.endswith(PICTURES) and not any((data / "imagesTr").glob(f"*_0001{ending}")):
        names = {0: PLAIN[0]}  # pictures, whose colours nnU-Net counts as channels of one file
    for label in sorted((data / "labelsTr").glob(f"*{ending}")):
        case = label.name.removesuffix(ending)
        if case.startswith("._"):
            continue  # what macOS stores beside a file
        if patients and case not in patients:
            raise ConfigError(f"{subjects}: expected a subject for each case; {case} has none.")
        images = {
            name: f"imagesTr/{case}_{number:04d}{ending}"
            for number, name in sorted(names.items())
            if (data / "imagesTr" / f"{case}_{number:04d}{ending}").exists()
        }
        if not images:
            raise ConfigError(
                f"{data}: expected imagesTr/{case}_0000{ending} beside its label, found none."
            )
        first = next(iter(images.values()))
        channels = images if len(names) > 1 else {PLAIN[0]: first, **images}
        patient, place = patients.get(case, case), str(label.relative_to(data))
        cases.append(CaseFiles(case, patient, first, place, channels=tuple(channels.items())))
    return Listing(tuple(cases), labels, notes=tuple(notes))
