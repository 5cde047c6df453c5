"""Tables of a hospital's list: `cases.csv`, names of labels, and the rows of other tables."""

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, get_args

from sites.listing.cases import CaseFiles, Listing, plain_name
from sites.yaml_files import ConfigError

CHANNEL = "image_"
"""Begin of the names of columns that hold one channel of the images each."""
MASK = "label_"
"""Begin of the names of columns that hold the mask of one structure each."""
LabelColumn = Literal["label", "labels", "value"]
LABELS = "labels.csv"
"""Table of the names of the labels, by value."""
UNLABELLED = "the scans can be surveyed, but not train or evaluate"
"""Note of a list without labels."""
PatientOf = Callable[[str], str]
"""Function that returns the patient of an image by the image's name in a list, empty if it has none."""


def relative(name: str) -> str:
    """Return a name in a list without a leading `./`, as some tools write it.

    >>> relative("./imagesTr/a.nii.gz")
    'imagesTr/a.nii.gz'
    """
    return name.strip().removeprefix("./")


def rows_of(
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


def label_names(path: Path, column: str, delimiter: str = ",") -> dict[int, str]:
    """Return the names in a table of labels, by value; `column` holds the values."""
    try:
        rows = rows_of(path, (column, "name"), delimiter)
        return {int(row[column]): row["name"] for row in rows}
    except ValueError:
        raise ConfigError(f"{path}: {column}: expected whole numbers.") from None


def from_table(data: Path, patient_of: PatientOf | None) -> Listing:
    """Return the cases of `cases.csv`, with the names of `labels.csv` if it has a column of labels."""
    path = data / "cases.csv"
    label, channels, masks = label_column(path), channel_columns(path), mask_columns(path)
    if masks:
        label = None
    needed = (*(() if channels else ("image",)), *((label,) if label else ()), *masks)
    if not patient_of:
        needed = ("patient", *needed)
    cases = tuple(_case_of(row, label, channels, patient_of, path) for row in rows_of(path, needed))
    if masks:
        structures = [plain_name(column.removeprefix(MASK)) for column in masks]
        return Listing(cases, {}, structures=dict.fromkeys(structures))
    if not label:
        note = f"{path.name} has no column of labels, and there is no {LABELS}: {UNLABELLED}"
        return Listing(cases, {}, notes=(note,))
    labels = label_names(data / LABELS, "value")
    return Listing(cases, labels, has_several=label == "labels", has_values=label == "value")


def _case_of(
    row: Mapping[str, str],
    label: LabelColumn | None,
    columns: Sequence[str],
    patient_of: PatientOf | None,
    table: Path,
) -> CaseFiles:
    images = {
        plain_name(column.removeprefix(CHANNEL)): relative(row[column])
        for column in columns
        if row.get(column)
    }
    if columns and not images:
        raise ConfigError(f"{table}: expected an image in one of {', '.join(columns)} in each row.")
    first = next(iter(images.values()), "") or row["image"]
    is_mask = {column: column.startswith(MASK) and not label for column in row}
    masks = {plain_name(c.removeprefix(MASK)): relative(row[c]) for c in row if is_mask[c]}
    return CaseFiles(
        first,
        row.get("patient") or _filled(first, patient_of, table),
        relative(first),
        _label_in(row[label]) if label else next(iter(masks.values()), ""),
        row.get("session", ""),
        tuple(images.items()),
        masks=tuple(masks.items()),
    )


def _label_in(text: str) -> str:
    """Return a label as lists have it; pandas writes a column of classes with a gap as floats.

    >>> _label_in("1.0"), _label_in("./labels/a.nii"), _label_in("0;2")
    ('1', 'labels/a.nii', '0;2')
    """
    return re.sub(r"^(\d+)\.0+$", r"\1", relative(text))


def channel_columns(path: Path) -> tuple[str, ...]:
    """Return the columns of a `cases.csv` that hold a channel each, such as `image_flair`.

    Beside a column `image` there are none: others may be called `image_date`.

    Raises:
        ConfigError: two columns mean one channel.
    """
    return _columns(path, CHANNEL, ("image",))


def mask_columns(path: Path) -> tuple[str, ...]:
    """Return the columns of a `cases.csv` that hold a mask each, such as `label_liver`.

    Beside a column of labels there are none.

    Raises:
        ConfigError: two columns mean one structure.
    """
    return _columns(path, MASK, get_args(LabelColumn))


def _columns(path: Path, begin: str, instead: Sequence[str]) -> tuple[str, ...]:
    """Return a table's columns whose names begin so; none if it has a column of `instead`."""
    named = _named_columns(path)
    found = tuple(name for name in named if name.startswith(begin))
    if set(named) & set(instead):
        return ()
    if len({plain_name(name) for name in found}) < len(found):
        raise ConfigError(f"{path}: expected each {begin}<name> once, two columns mean the same.")
    return found


def _named_columns(path: Path) -> list[str]:
    """Return the names in a table's first row; none if it can't be read, which `rows_of` reports."""
    with suppress(OSError, UnicodeDecodeError, csv.Error), path.open(encoding="utf-8-sig") as file:
        return [name.strip() for name in csv.DictReader(file).fieldnames or ()]
    return []


def _filled(image: str, patient_of: PatientOf | None, table: Path) -> str:
    found = patient_of(image) if patient_of else ""
    if not found:
        raise ConfigError(
            f"{table}: expected a patient in each row, or DICOM files with a PatientID; {image} has "
            f"neither."
        )
    return found


def label_column(path: Path) -> LabelColumn | None:
    """Return which column of a `cases.csv` has the labels.

    None if there is no such column, and no `labels.csv` beside the table.

    Raises:
        ConfigError: several columns of labels are there.
    """
    names: tuple[LabelColumn, ...] = get_args(LabelColumn)
    columns = _named_columns(path)
    found = [name for name in names if name in columns]
    if len(found) > 1:
        both = "both" if len(found) == 2 else "all"
        raise ConfigError(f"{path}: expected one column of {', '.join(found)}, got {both}.")
    if found:
        return found[0]
    return None if columns and not path.with_name(LABELS).exists() else "label"
