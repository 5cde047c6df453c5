"""A hospital's own list, `cases.csv` with `labels.csv`, as imports extend it."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.files import write_atomically
from sites.listing.cases import Listing, plain_name
from sites.listing.tables import (
    CHANNEL,
    LABELS,
    MASK,
    LabelColumn,
    channel_columns,
    label_column,
    label_names,
    mask_columns,
)
from sites.yaml_files import ConfigError

COLUMNS = ("label", "session", "series")
"""Columns of `cases.csv` after the patient and the images."""
Row = dict[str, str]
"""A case by column; the label, whatever its column is called, as `label`."""


@dataclass(frozen=True)
class ImportedList:
    """The list before an import.

    Attributes:
        label: its column of labels; None for none.
        labels: names of the labels, as the list will have them.
    """

    path: Path
    rows: list[Row]
    label: LabelColumn | None
    labels: Mapping[int, str]

    @classmethod
    def open(cls, path: Path, listing: Listing | None, *, has_channels: bool) -> "ImportedList":
        """Return a hospital's list that an export's cases fit into.

        Args:
            listing: the export's own list; None for a tree of DICOM files.
            has_channels: its cases have several images, or named ones.

        Raises:
            ConfigError: they don't fit: other columns, other masks, other meanings of labels.
        """
        label = _label_of(path, listing)
        rows = _rows(path, label)
        _check_columns(path, rows, has_channels)
        _check_masks(path, rows, listing)
        known = label_names(path.with_name(LABELS), "value") if path.with_name(LABELS).exists() else {}
        if listing:
            _check_labels(path.with_name(LABELS), known, listing.labels)
        return cls(path, rows, label, {**(listing.labels if listing else {}), **known})

    def extend(self, found: Sequence[Row]) -> tuple[list[Row], list[str]]:
        """Write the list with the cases of an import; return the new ones, and images of other labels.

        A channel that a listed case did not have is added to it.
        """
        by_image = {image: row for row in self.rows for image in _images(row).values()}
        new, differing, filled = [], [], False
        for row in found:
            listed = next((by_image[i] for i in _images(row).values() if i in by_image), None)
            if listed is None:
                new.append(row)
                continue
            added = {key: value for key, value in _images(row).items() if not listed.get(key)}
            listed.update(added)
            filled = filled or bool(added)
            if row["label"] != listed["label"]:
                differing += list(_images(row).values())[:1]
        if new:
            self._write_labels()
        if new or filled:
            self._write([*self.rows, *new])
        return new, differing

    def _write(self, cases: Sequence[Row]) -> None:
        columns = [name for name in _columns(cases) if self.label or name != "label"]
        named = [self.label or "" if column == "label" else column for column in columns]
        rows = [[row.get(column, "") for column in columns] for row in cases]
        write_atomically(self.path, _table(named, rows))

    def _write_labels(self) -> None:
        path = self.path.with_name(LABELS)
        known = label_names(path, "value") if path.exists() else {}
        if self.labels.keys() - known.keys():
            rows = [[str(value), name] for value, name in sorted(self.labels.items())]
            write_atomically(path, _table(("value", "name"), rows))


def _images(row: Mapping[str, str]) -> dict[str, str]:
    """Return a row's images by column."""
    is_image = {key: key == "image" or key.startswith(CHANNEL) for key in row}
    return {key: value for key, value in row.items() if is_image[key] and value}


def _masks(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the columns of rows that hold the mask of a structure."""
    return list(dict.fromkeys(key for row in rows for key in row if key.startswith(MASK)))


def _columns(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the columns of a list: one for each channel that some row has, else `image`."""
    images = dict.fromkeys(key for row in rows for key in _images(row))
    return ["patient", *images, *_masks(rows), *COLUMNS]


def _check_columns(table: Path, rows: Sequence[Mapping[str, str]], has_channels: bool) -> None:
    """Raise ConfigError if listed cases have channels and the export's one image, or the reverse."""
    listed = {key for row in rows for key in _images(row)}
    if "image" in listed if has_channels else listed - {"image"}:
        raise ConfigError(
            f"{table}: expected either a column image or columns {CHANNEL}<channel>. Import into a "
            f"folder of its own: a list has one or the other."
        )


def _check_masks(table: Path, before: Sequence[Mapping[str, str]], listing: Listing | None) -> None:
    """Raise ConfigError unless the list and the export have masks of the same structures, or none."""
    listed = set(_masks(before))
    found = {f"{MASK}{name}" for name in listing.structures} if listing else set()
    if before and listed != found:
        raise ConfigError(
            f"{table}: expected the masks that the list has ({', '.join(sorted(listed)) or 'none'}), "
            f"found {', '.join(sorted(found)) or 'none'}. Import into a folder of its own."
        )


def _label_of(table: Path, listing: Listing | None) -> LabelColumn | None:
    """Return the column of labels in the hospital's list, or the one it will have; None for no labels.

    Raises:
        ConfigError: the one holds one class for each case, the other any number of them, values or none.
    """
    wanted: LabelColumn | None = "label"
    if listing and (listing.is_unlabelled or listing.structures):
        wanted = None
    elif listing and (listing.has_several or listing.has_values):
        wanted = "value" if listing.has_values else "labels"
    if not table.exists():
        if wanted is None and table.with_name(LABELS).exists():
            raise ConfigError(
                f"{table.with_name(LABELS)}: expected no table of labels, for the export has none. "
                f"Import into a folder of its own."
            )
        return wanted
    present = label_column(table)
    if listing and present != wanted:
        raise ConfigError(
            f"{table}: expected {_column(wanted)} as in the export, found {_column(present)}. Import "
            f"into a folder of its own: a list has one label for each case, any number of classes, a "
            f"value, or no labels."
        )
    return present


def _column(name: LabelColumn | None) -> str:
    return f"the column {name}" if name else "no column of labels"


def _rows(path: Path, label: LabelColumn | None) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [{**row, "label": row.get(label or "")} for row in csv.DictReader(file)]
    kept = ("patient", "image", *channel_columns(path), *mask_columns(path), *COLUMNS)
    return [{key: value or "" for key, value in row.items() if key in kept} for row in rows]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue().encode()


def _check_labels(path: Path, known: Mapping[int, str], labels: Mapping[int, str]) -> None:
    """Raise ConfigError if a label of an export means something else in the hospital's list."""
    values = {plain_name(name): value for value, name in known.items()}
    for value, name in sorted(labels.items()):
        listed = values.get(plain_name(name), value), plain_name(known.get(value, name))
        if listed != (value, plain_name(name)):
            raise ConfigError(
                f"{path}: expected the labels of the list, {dict(sorted(known.items()))}; in the export "
                f"label {value} is {name}. Import into a folder of its own, or number the export's "
                f"labels as the list does."
            )
