"""A BIDS data set as a hospital's list: one case for each image, its other contrasts as channels."""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from models.config import Config
from models.tasks import PLAIN
from sites import yaml_files
from sites.listing.cases import CaseFiles, Listing, plain_name
from sites.listing.tables import UNLABELLED, PatientOf, label_names
from sites.yaml_files import ConfigError

_ENTITY = re.compile(r"(?:^|_)([a-zA-Z0-9]+)-([a-zA-Z0-9+]+)")
DERIVED = frozenset({"desc", "space", "res", "den", "label", "hemi", "seg", "atlas"})
"""Entities of BIDS that only derived files have."""
CONTRASTS = ("T1w", "T2w", "FLAIR", "PDw")
"""Contrasts of BIDS in the order in which one is taken if as many subjects have each."""


class BidsConfig(Config):
    """Content of `bids.yaml`, by which a hospital says which files of a BIDS data set it means.

    Attributes:
        contrast: the suffix of the images, such as `FLAIR`; by default the one that most subjects have.
            Each image of this contrast is a case, and its channel `image`.
        label: an entity of the segmentations, such as `desc-manual`; needed where an image has several.
        segmentation: the suffix of the segmentations: `dseg` (default) with the names of a `dseg.tsv`,
            or `mask` with the values 0 and 1, named by its entity `label`.
    """

    contrast: str | None = None
    label: str | None = None
    segmentation: Literal["dseg", "mask"] = "dseg"


def from_bids(data: Path, _: PatientOf | None) -> Listing:
    """Return the cases of a BIDS data set that have a segmentation; all images where none has."""
    path = data / "bids.yaml"
    config = yaml_files.load(path, BidsConfig) if path.exists() else BidsConfig()
    images = _visible(data.glob("sub-*/**/anat/*.nii*"))
    contrast, notes = _contrast(data, images, config)
    labels = _visible(data.glob(f"derivatives/*/sub-*/**/*_{config.segmentation}.nii*"))
    cases = [
        CaseFiles(
            case=image.name.split(".")[0],
            patient=_entities(image)["sub"],
            image=str(image.relative_to(data)),
            label=_bids_label(data, image, labels, config),
            session=_entities(image).get("ses", ""),
            channels=_channels(data, image, images),
        )
        for image in images
        if _suffix(image) == contrast
    ]
    labelled = [case for case in cases if case.label]
    if not labelled:
        notes.append(f"no image has a *_{config.segmentation} file: {UNLABELLED}")
        return Listing(tuple(cases), {}, notes=tuple(notes))
    if len(labelled) < len(cases):
        missing = len(cases) - len(labelled)
        notes.append(f"{missing} images have no *_{config.segmentation} file and are not listed")
    names = _bids_names(data, config) if config.segmentation == "dseg" else _mask_names(labelled)
    return Listing(tuple(labelled), names, notes=tuple(notes))


def _channels(data: Path, image: Path, images: list[Path]) -> tuple[tuple[str, str], ...]:
    """Return the contrasts of an image's session by name: of the same acquisition, or the only one."""
    own = _entities(image)
    session = [p for p in images if all(_entities(p).get(k) == own.get(k) for k in ("sub", "ses"))]
    found = {PLAIN[0]: image, plain_name(_suffix(image)): image}
    for suffix in sorted({_suffix(path) for path in session} - {_suffix(image)}):
        mine = [path for path in session if _suffix(path) == suffix]
        alike = [path for path in mine if _acquired(path) == _acquired(image)]
        if not alike and sum(_suffix(path) == _suffix(image) for path in session) == 1:
            alike = mine  # a session with one image of each
        if len(alike) == 1:
            found[plain_name(suffix)] = alike[0]
    return tuple((name, str(path.relative_to(data))) for name, path in found.items())


def _mask_names(cases: list[CaseFiles]) -> dict[int, str]:
    """Return the name of the value 1 of masks: that of their entity `label`."""
    named = {_entities(Path(case.label)).get("label", "mask") for case in cases}
    if len(named) > 1:
        raise ConfigError(
            f"Expected masks of one structure, found {', '.join(sorted(named))}. Write bids.yaml with "
            f"label: and an entity that only one has, such as label-{min(named)}."
        )
    return {0: "background", 1: named.pop()}


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
        f"{chosen} is the channel image, {', '.join(others)} are used by studies that name them; "
        f"bids.yaml can name another contrast"
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
            f"{data}: expected one *_{config.segmentation} file for each image, found {len(mine)} for "
            f"{image.name}: {named}. Write bids.yaml with label: and an entity that only one has, such "
            f"as desc-manual."
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
    return label_names(found[0], "index", "\t")


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
