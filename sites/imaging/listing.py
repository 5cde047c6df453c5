"""List of a hospital's scans and their patients, in the Decathlon's layout, BIDS, or `cases.csv`.

| layout    | cases                                                | names of the labels        |
|-----------|------------------------------------------------------|----------------------------|
| cases     | `cases.csv`: patient, image, session, and `label` or | `labels.csv`: value, name  |
|           | `labels`                                             |                            |
| Decathlon | `dataset.json`, with `subjects.csv`: image, subject  | `labels` of `dataset.json` |
| BIDS      | `sub-*/[ses-*/]anat/*.nii[.gz]`,                     | `dseg.tsv`: index, name    |
|           | labels `derivatives/*/sub-*/.../*_dseg.nii[.gz]`,    | also of a derivative       |
|           | `bids.yaml`: contrast, label                         |                            |

In `cases.csv` the session may be left out. No file is opened to read a list, but by `wardround site
import`, which takes the patients of DICOM files whose rows name none.
The column `label` holds a label image or one class. The column `labels` holds any number of classes,
`0;2`, or `none`. So the name of the column, not a patient's row, decides which studies fit.

Sources: Antonelli et al. 2022, The Medical Segmentation Decathlon,
https://doi.org/10.1038/s41467-022-30695-9; Gorgolewski et al. 2016, The brain imaging data structure,
https://doi.org/10.1038/sdata.2016.44.
"""

import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.config import Config
from sites import yaml_files
from sites.yaml_files import ConfigError

EXCLUDED = "excluded.csv"
"""File in a hospital's folder with the patients who have withdrawn: one column, `subject`."""
NOTHING = "none"
"""Label in a list for a case to which no class applies."""
CLASSES = re.compile(rf"{NOTHING}|\d+(;\s*\d+)*")
"""Pattern of the classes of a case in a list."""


@dataclass(frozen=True)
class CaseFiles:
    """One scan as the hospital lists it.

    Attributes:
        case: its name at the hospital; it may contain a patient's name, so only hospital IT may see it.
        image: a file or, for a DICOM series, a folder, relative to the data; `file.npz#array/index`
            is one image of many.
        label: a file like `image`, or a class for classification.
    """

    case: str
    patient: str
    image: str
    label: str
    session: str = ""


@dataclass(frozen=True)
class Listing:
    """A hospital's cases, and what the hospital declares about their labels.

    Attributes:
        labels: the public names of the labels.
        has_several: each case may have any number of classes.
        notes: what is not listed, and why.
    """

    cases: tuple[CaseFiles, ...]
    labels: Mapping[int, str]
    has_several: bool = False
    notes: tuple[str, ...] = ()

    @property
    def has_classes(self) -> bool:
        """Whether most labels are classes and no label images; one patient's row does not decide it."""
        classes = sum(CLASSES.fullmatch(case.label) is not None for case in self.cases)
        return self.has_several or 2 * classes > len(self.cases)


LabelColumn = Literal["label", "labels"]
PatientOf = Callable[[str], str]
"""Function that returns the patient of an image by the image's name in a list, empty if it has none."""


def read_listing(data: Path, patient_of: PatientOf | None = None) -> Listing:
    """Return the listing in a data folder of any of the layouts.

    Args:
        patient_of: fills the rows of `cases.csv` without a patient; without it each row needs one.

    Raises:
        ConfigError: the folder has none of the layouts, or more than one; a file is missing or has
            another form; there is no case; a case has no patient or is listed twice.
    """
    found = {name: layout for name, layout in LAYOUTS.items() if (data / name).exists()}
    if len(found) != 1:
        raise ConfigError(
            f"{data}: expected one of {', '.join(LAYOUTS)}, got {' and '.join(found) or 'none of them'}."
        )
    (layout,) = found.values()
    listing = layout(data, patient_of)
    if not listing.cases:
        raise ConfigError(f"{data}: expected at least one case, found none.")
    images = [case.image for case in listing.cases]
    if len(set(images)) < len(images):
        twice = next(image for image, count in Counter(images).items() if count > 1)
        raise ConfigError(f"{data}: expected each image once in the list; {twice} is listed twice.")
    return listing


def excluded_patients(path: Path) -> frozenset[str]:
    """Return the patients whom the hospital has excluded; an empty set if there is no such file.

    Raises:
        ConfigError: the file has no column `subject`, or a row with an empty one.
    """
    if not path.exists():
        return frozenset()
    return frozenset(row["subject"] for row in _rows(path, ("subject",), allow_blank=False))


def _relative(name: str) -> str:
    """Return a name in a list without a leading `./`, as some tools write it.

    >>> _relative("./imagesTr/a.nii.gz")
    'imagesTr/a.nii.gz'
    """
    return name.strip().removeprefix("./")


def _rows(
    path: Path, columns: tuple[str, ...], delimiter: str = ",", *, allow_blank: bool = True
) -> Iterator[dict[str, str]]:
    """Yield a table's rows; raise ConfigError unless each has a value in every one of `columns`.

    Rows without any value, as spreadsheets leave behind, are skipped if `allow_blank`.
    """
    needs = f"{path}: expected the columns {', '.join(columns)}, each filled in every row"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, delimiter=delimiter)
            rows.fieldnames = [name.strip() for name in rows.fieldnames or ()]
            if missing := set(columns) - set(rows.fieldnames or ()):
                raise ConfigError(f"{needs}; {min(missing)} is missing.")
            for number, row in enumerate(rows, start=2):
                values = {str(k): v.strip() for k, v in row.items() if isinstance(v, str)}
                if allow_blank and not any(values.values()):
                    continue
                if not all(values.get(column) for column in columns):
                    raise ConfigError(f"{needs}; line {number} has an empty cell.")
                yield values
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; a hospital's data folder needs it.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: can't be read as a table: {type(error).__name__}.") from None


def _label_names(path: Path, column: str, delimiter: str = ",") -> dict[int, str]:
    try:
        rows = _rows(path, (column, "name"), delimiter)
        return {int(row[column]): row["name"] for row in rows}
    except ValueError:
        raise ConfigError(f"{path}: {column}: expected whole numbers.") from None


def _from_table(data: Path, patient_of: PatientOf | None) -> Listing:
    path = data / "cases.csv"
    label = label_column(path)
    needed = ("image", label) if patient_of else ("patient", "image", label)
    cases = tuple(
        CaseFiles(
            row["image"],
            row.get("patient") or _filled(row["image"], patient_of, path),
            _relative(row["image"]),
            _relative(row[label]),
            row.get("session", ""),
        )
        for row in _rows(path, needed)
    )
    labels = _label_names(data / "labels.csv", "value")
    return Listing(cases, labels, has_several=label == "labels")


def _filled(image: str, patient_of: PatientOf | None, table: Path) -> str:
    found = patient_of(image) if patient_of else ""
    if not found:
        raise ConfigError(
            f"{table}: expected a patient in each row, or DICOM files with a PatientID; {image} has "
            f"neither."
        )
    return found


def label_column(path: Path) -> LabelColumn:
    """Return which column of a `cases.csv` has the labels; raise `ConfigError` if both are there."""
    with suppress(OSError, UnicodeDecodeError, csv.Error), path.open(encoding="utf-8-sig") as file:
        columns = set(csv.DictReader(file).fieldnames or ())
        if {"label", "labels"} <= columns:
            raise ConfigError(f"{path}: expected a column label or a column labels, got both.")
        return "labels" if "labels" in columns else "label"
    return "label"


def _from_decathlon(data: Path, _: PatientOf | None) -> Listing:
    path = data / "dataset.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        listed = [
            (_relative(pair["image"]), _relative(str(pair["label"]))) for pair in content["training"]
        ]
        labels = {int(value): str(name) for value, name in content["labels"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f'{path}: expected training: [{{image, label}}, ...] and labels: {{"0": "background", '
            f'"1": ...}}, got {error!r}.'
        ) from None
    subjects = data / "subjects.csv"
    patients = {_relative(r["image"]): r["subject"] for r in _rows(subjects, ("image", "subject"))}
    cases = []
    for image, label in listed:
        if image not in patients:
            raise ConfigError(f"{subjects}: expected a subject for each image; {image} has none.")
        cases.append(CaseFiles(Path(image).name.split(".")[0], patients[image], image, label))
    return Listing(tuple(cases), labels)


_ENTITY = re.compile(r"(?:^|_)([a-zA-Z0-9]+)-([a-zA-Z0-9+]+)")
DERIVED = frozenset({"desc", "space", "res", "den", "label", "hemi", "seg", "atlas"})
"""Entities of BIDS that only derived files have."""
CONTRASTS = ("T1w", "T2w", "FLAIR", "PDw")
"""Contrasts of BIDS in the order in which one is taken if as many subjects have each."""


class BidsConfig(Config):
    """Content of `bids.yaml`, by which a hospital says which files of a BIDS data set it means.

    Attributes:
        contrast: the suffix of the images, such as `FLAIR`; by default the one that most subjects have.
        label: an entity of the segmentations, such as `desc-manual`; needed where an image has several.
    """

    contrast: str | None = None
    label: str | None = None


def _from_bids(data: Path, _: PatientOf | None) -> Listing:
    path = data / "bids.yaml"
    config = yaml_files.load(path, BidsConfig) if path.exists() else BidsConfig()
    images = _visible(data.glob("sub-*/**/anat/*.nii*"))
    contrast, notes = _contrast(data, images, config)
    labels = _visible(data.glob("derivatives/*/sub-*/**/*_dseg.nii*"))
    cases = [
        CaseFiles(
            case=image.name.split(".")[0],
            patient=_entities(image)["sub"],
            image=str(image.relative_to(data)),
            label=_bids_label(data, image, labels, config),
            session=_entities(image).get("ses", ""),
        )
        for image in images
        if _suffix(image) == contrast
    ]
    labelled = [case for case in cases if case.label]
    if not labelled:
        notes.append("no image has a *_dseg file: nothing can be trained or scored")
        return Listing(tuple(cases), {}, notes=tuple(notes))
    if len(labelled) < len(cases):
        notes.append(f"{len(cases) - len(labelled)} images have no *_dseg file and are not listed")
    return Listing(tuple(labelled), _bids_names(data, config), notes=tuple(notes))


def _visible(paths: Iterable[Path]) -> list[Path]:
    return sorted(
        path
        for path in paths
        if path.name.endswith((".nii", ".nii.gz")) and not path.name.startswith("._")
    )


def _contrast(data: Path, images: list[Path], config: BidsConfig) -> tuple[str, list[str]]:
    """Return the contrast of a data set's images, and a note where others are not used."""
    subjects: defaultdict[str, set[str]] = defaultdict(set)
    for image in images:
        subjects[_suffix(image)].add(_entities(image)["sub"])
    if config.contrast and config.contrast not in subjects:
        known = ", ".join(sorted(subjects)) or "no images"
        raise ConfigError(f"{data / 'bids.yaml'}: contrast: expected one of {known}.")

    def order(name: str) -> tuple[int, int, str]:
        place = CONTRASTS.index(name) if name in CONTRASTS else len(CONTRASTS)
        return -len(subjects[name]), place, name

    chosen = config.contrast or min(subjects, key=order, default="")
    others = sorted(subjects.keys() - {chosen})
    if not others or config.contrast:
        return chosen, []
    return chosen, [
        f"{chosen} is used, {', '.join(others)} are not; bids.yaml can name another contrast"
    ]


def _bids_label(data: Path, image: Path, labels: list[Path], config: BidsConfig) -> str:
    """Return the segmentation of an image: on the image's own grid, of the named kind; else empty."""
    own = _entities(image)
    grids = {None, own.get("space"), "orig", _suffix(image)}
    mine = [
        path
        for path in labels
        if _acquired(path) == _acquired(image) and _entities(path).get("space") in grids
    ]
    if config.label:
        mine = [path for path in mine if config.label in path.name.split("_")]
    if len(mine) > 1:
        named = ", ".join(str(path.relative_to(data)) for path in mine)
        raise ConfigError(
            f"{data}: expected one *_dseg file for each image, found {len(mine)} for {image.name}: "
            f"{named}. Write bids.yaml with label: and an entity that only one has, such as desc-manual."
        )
    return str(mine[0].relative_to(data)) if mine else ""


def _acquired(path: Path) -> dict[str, str]:
    """Return the entities that say which acquisition a file is of."""
    return {key: value for key, value in _entities(path).items() if key not in DERIVED}


def _bids_names(data: Path, config: BidsConfig) -> dict[int, str]:
    """Return the names of the labels from the data set's or a derivative's table."""
    tables = [data / "dseg.tsv", *sorted(data.glob("derivatives/*/*dseg.tsv"))]
    found = [path for path in tables if path.exists()]
    if config.label:
        found = [path for path in found if config.label in path.name] or found
    if not found:
        raise ConfigError(
            f"{data}: expected the names of the labels in dseg.tsv (columns index and name), in the "
            f"data set's or a derivative's folder; there is none."
        )
    return _label_names(found[0], "index", "\t")


def _suffix(path: Path) -> str:
    """Return the suffix of a BIDS file: its contrast or kind.

    >>> _suffix(Path("sub-01_ses-2_T1w.nii.gz"))
    'T1w'
    """
    return path.name.split(".")[0].rpartition("_")[2]


def _entities(path: Path) -> dict[str, str]:
    """Return the entities in a BIDS file name.

    >>> _entities(Path("sub-01_ses-2_T1w.nii.gz"))
    {'sub': '01', 'ses': '2'}
    """
    return dict(_ENTITY.findall(path.name))


LAYOUTS: Mapping[str, Callable[[Path, PatientOf | None], Listing]] = {
    "cases.csv": _from_table,
    "dataset.json": _from_decathlon,
    "dataset_description.json": _from_bids,
}
"""The function that reads each layout, by the file that identifies the layout."""
