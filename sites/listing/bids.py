"""A BIDS data set as a hospital's list: one case for each image, its other contrasts as channels."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from models.config import Config
from models.settings.tasks import PLAIN
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
            `mask` with the values 0 and 1, or `probseg` with probabilities; a structure's file is named
            by the entity `label`, and an image may have one for each of several structures.
    """

    contrast: str | None = None
    label: str | None = None
    segmentation: Literal["dseg", "mask", "probseg"] = "dseg"


def from_bids(data: Path, _: PatientOf | None) -> Listing:
    """Return the cases of a BIDS data set that have a segmentation; all images where none has."""
    path = data / "bids.yaml"
    config = yaml_files.load(path, BidsConfig) if path.exists() else BidsConfig()
    images = _visible(data.glob("sub-*/**/anat/*.nii*"))
    contrast, notes = _contrast(data, images, config)
    notes += _without(contrast, images) + _several(contrast, images)
    kind = f"*_{config.segmentation} file"
    segmentations = _visible(data.glob(f"derivatives/*/sub-*/**/*_{config.segmentation}.nii*"))
    cases = [
        _case(data, image, images, _segmentations(data, image, segmentations, config))
        for image in images
        if _suffix(image) == contrast
    ]
    structures = {name for case in cases for name, _ in case.masks}
    labelled = [case for case in cases if case.label and len(case.masks) in (0, len(structures))]
    if not labelled:
        listed = {_suffix(image) for image in images}
        spaces = sorted({_entities(path).get("space", "") for path in segmentations} - {""})
        elsewhere = f" on its own grid, but on those of {', '.join(spaces)}" if spaces else ""
        advice = (
            f" (bids.yaml: contrast: {spaces[0]} lists those)" if spaces and spaces[0] in listed else ""
        )
        notes.append(f"no image has a {kind}{elsewhere}{advice}: {UNLABELLED}")
        return Listing(
            tuple(replace(case, label="", masks=()) for case in cases), {}, notes=tuple(notes)
        )
    if len(labelled) < len(cases):
        of_each = f" of each of {', '.join(sorted(structures))}" if len(structures) > 1 else ""
        notes.append(f"{len(cases) - len(labelled)} images have no {kind}{of_each} and are not listed")
    if config.segmentation != "dseg":
        return Listing(tuple(labelled), {}, structures=dict.fromkeys(structures), notes=tuple(notes))
    cases = [replace(case, masks=()) for case in labelled]
    return Listing(tuple(cases), _names(data, cases, config), notes=tuple(notes))


def _without(contrast: str, images: list[Path]) -> list[str]:
    """Return a note if subjects have images, and none of the contrast that is listed."""
    have = {_entities(image)["sub"] for image in images if _suffix(image) == contrast}
    without = {_entities(image)["sub"] for image in images} - have
    return [f"{len(without)} subjects have no {contrast} image and are not listed"] if without else []


def _several(contrast: str, images: list[Path]) -> list[str]:
    """Return a note if a session has several images of the contrast that is listed."""
    sessions = Counter(
        (_entities(image)["sub"], _entities(image).get("ses"))
        for image in images
        if _suffix(image) == contrast
    )
    count = sum(number > 1 for number in sessions.values())
    return (
        [f"{count} sessions have several {contrast} images; each is a case of its own"] if count else []
    )


def _case(data: Path, image: Path, images: list[Path], segmentations: Mapping[str, Path]) -> CaseFiles:
    """Return the case of an image with its segmentations by structure."""
    files = {name: str(path.relative_to(data)) for name, path in sorted(segmentations.items())}
    return CaseFiles(
        case=image.name.split(".")[0],
        patient=_entities(image)["sub"],
        image=str(image.relative_to(data)),
        label=next(iter(files.values()), ""),
        session=_entities(image).get("ses", ""),
        channels=_channels(data, image, images),
        masks=tuple(files.items()),
    )


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


def _segmentations(
    data: Path, image: Path, labels: list[Path], config: BidsConfig
) -> dict[str, Path]:  # fmt: skip
    """Return the segmentations of an image, on its own grid and of the named kind, by structure.

    A `dseg` has all structures, and the name ''.
    """
    own = _entities(image)
    grids = {None, own.get("space"), "orig", _suffix(image)}
    found: dict[str, Path] = {}
    for path in labels:
        entities = _entities(path)
        is_fitting = _acquired(path) == _acquired(image) and entities.get("space") in grids
        if not is_fitting or (config.label and config.label not in path.name.split("_")):
            continue
        name = "" if config.segmentation == "dseg" else plain_name(entities.get("label", "mask"))
        if name in found:
            both = f"{found[name].relative_to(data)} and {path.relative_to(data)}"
            raise ConfigError(
                f"{data}: expected one *_{config.segmentation} file{f' of {name}' if name else ''} for "
                f"{image.name}, found {both}. Write bids.yaml with label: and an entity that only one "
                f"has, such as desc-manual."
            )
        found[name] = path
    return found


def _acquired(path: Path) -> dict[str, str]:
    """Return the entities that say which acquisition a file is of."""
    return {key: value for key, value in _entities(path).items() if key not in DERIVED}


def _names(data: Path, cases: list[CaseFiles], config: BidsConfig) -> dict[int, str]:
    """Return the names of the labels of all cases, from the tables that BIDS applies to each.

    Raises:
        ConfigError: there is no table, or two say different things.
    """
    tables = {_table(data, Path(case.label), config) for case in cases}
    found = {table: label_names(table, "index", "\t") for table in sorted(tables)}
    first, *others = found
    for other in others:
        if found[other] != found[first]:
            raise ConfigError(
                f"{data}: expected one meaning of each label; {first.relative_to(data)} and "
                f"{other.relative_to(data)} differ. Write bids.yaml with label: and an entity that only "
                f"one kind of segmentation has, such as desc-manual."
            )
    return found[first]


def _table(data: Path, label: Path, config: BidsConfig) -> Path:
    """Return the nearest table of names above a label image, one of the image's own `desc` first."""
    described = f"desc-{_entities(label).get('desc')}"
    for folder in (data / label).parents:
        tables = sorted(folder.glob("*dseg.tsv"))
        own = [path for path in tables if described in path.name.split("_")]
        named = [path for path in tables if config.label and config.label in path.name.split("_")]
        plain = [path for path in tables if "desc" not in _entities(path)]
        if best := [*own, *named, *plain]:
            return best[0]
        if folder == data:
            break
    raise ConfigError(
        f"{data}: expected the names of the labels in dseg.tsv (columns index and name), in the data "
        f"set's folder or in that of {label}; there is none."
    )


def _suffix(path: Path) -> str:
    """Return the suffix of a BIDS file, its contrast or kind, with its contrast agent.

    >>> _suffix(Path("sub-01_ses-2_T1w.nii.gz")), _suffix(Path("sub-01_ce-GD_T1w.nii.gz"))
    ('T1w', 'ce-GD_T1w')
    """
    suffix = path.name.split(".")[0].rpartition("_")[2]
    agent = _entities(path).get("ce")
    return f"ce-{agent}_{suffix}" if agent else suffix


def _entities(path: Path) -> dict[str, str]:
    """Return the entities in a BIDS file name.

    >>> _entities(Path("sub-01_ses-2_T1w.nii.gz"))
    {'sub': '01', 'ses': '2'}
    """
    return dict(_ENTITY.findall(path.name))
