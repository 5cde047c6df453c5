"""List of a hospital's scans and their patients, in the Decathlon's layout, BIDS, or `cases.csv`.

| layout    | cases                                                | names of the labels        |
|-----------|------------------------------------------------------|----------------------------|
| cases     | `cases.csv`: patient, image, session, and `label` or | `labels.csv`: value, name  |
|           | `labels`                                             |                            |
| Decathlon | `dataset.json`, with `subjects.csv`: image, subject  | `labels` of `dataset.json` |
| BIDS      | `sub-*/[ses-*/]anat/*.nii[.gz]`,                     | `dseg.tsv`: index, name    |
|           | labels `derivatives/*/sub-*/.../*_dseg.nii[.gz]`     |                            |

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
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
    """

    cases: tuple[CaseFiles, ...]
    labels: Mapping[int, str]
    has_several: bool = False

    @property
    def has_classes(self) -> bool:
        """Whether most labels are classes and no label images; one patient's row does not decide it."""
        classes = sum(CLASSES.fullmatch(case.label) is not None for case in self.cases)
        return self.has_several or 2 * classes > len(self.cases)


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
    return frozenset(row["subject"] for row in _rows(path, ("subject",)))


def _relative(name: str) -> str:
    """Return a name in a list without a leading `./`, as some tools write it.

    >>> _relative("./imagesTr/a.nii.gz")
    'imagesTr/a.nii.gz'
    """
    return name.strip().removeprefix("./")


def _rows(path: Path, columns: tuple[str, ...], delimiter: str = ",") -> Iterator[dict[str, str]]:
    """Yield a table's rows; raise ConfigError unless each has a value in every one of `columns`."""
    needs = f"{path}: expected the columns {', '.join(columns)}, each filled in every row"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, delimiter=delimiter)
            if missing := set(columns) - set(rows.fieldnames or ()):
                raise ConfigError(f"{needs}; {min(missing)} is missing.")
            for number, row in enumerate(rows, start=2):
                values = {str(k): v.strip() for k, v in row.items() if isinstance(v, str)}
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
    label = _label_column(path)
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


def _label_column(path: Path) -> Literal["label", "labels"]:
    with suppress(OSError, UnicodeDecodeError, csv.Error), path.open(encoding="utf-8-sig") as file:
        columns = set(csv.DictReader(file).fieldnames or ())
        if {"label", "labels"} <= columns:
            raise ConfigError(f"{path}: expected a column label or a column labels, got both.")
        return "labels" if "labels" in columns else "label"
    return "label"


def _from_decathlon(data: Path, _: PatientOf | None) -> Listing:
    path = data / "dataset.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
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


def _from_bids(data: Path, _: PatientOf | None) -> Listing:
    labels = [(_entities(p), p) for p in sorted(data.glob("derivatives/*/sub-*/**/*_dseg.nii*"))]
    cases = []
    for image in sorted(data.glob("sub-*/**/anat/*.nii*")):
        entities = _entities(image)
        mine = [path for found, path in labels if entities.items() <= found.items()]
        if not mine:
            continue
        if len(mine) > 1:
            raise ConfigError(
                f"{data}: expected one *_dseg file for each image, found {len(mine)} for one."
            )
        case = CaseFiles(
            case=image.name.split(".")[0],
            patient=entities["sub"],
            image=str(image.relative_to(data)),
            label=str(mine[0].relative_to(data)),
            session=entities.get("ses", ""),
        )
        cases.append(case)
    return Listing(tuple(cases), _label_names(data / "dseg.tsv", "index", "\t"))


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
