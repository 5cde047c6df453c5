"""The files of scans that somebody gives to a prediction, and where their masks go."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from models.settings.tasks import TaskConfig
from sites.imaging.dicom.files import SUFFIXES, is_dicom
from sites.listing.cases import PICTURES, plain_name
from sites.listing.dataset_json import channels_by_number
from sites.yaml_files import ConfigError

NIFTI = (".nii", ".nii.gz")
SCANS = (*PICTURES, *NIFTI, ".npz")
"""Ends of the names of files that are scans of their own in a folder."""


def scans_in(task: TaskConfig, given: Sequence[str]) -> list[dict[str, Path]]:
    """Return the file of each channel of each scan that is given.

    | given                           | scans                                               |
    |---------------------------------|-----------------------------------------------------|
    | files, folders of DICOM series  | each one                                            |
    | a folder with other files       | each NIfTI file and picture in it, by name          |
    | a folder of flat DICOM images   | each file                                           |
    | a folder of such folders        | each one                                            |
    | `t1=a.nii.gz flair=b.nii.gz`    | one, of several channels                            |
    | `t1=FOLDER flair=FOLDER`        | each name that is in both folders                   |
    | a folder of several channels    | each `CASE` of `CASE_0000.nii.gz` and so on         |

    Numbers are those of `channel_names` in the `dataset.json` in or above the folder.

    Raises:
        ConfigError: a channel is none of the study's, or is given twice; several files have no names; a
            folder has no scan, or DICOM files beside others; numbers have no names.
    """
    names = task.channel_names
    if len(names) == 1:
        texts = [text.removeprefix(f"{names[0]}=") for text in given]
        return [{names[0]: path} for text in texts for path in _scans_of(Path(text), task)]
    if len(given) == 1 and Path(given[0]).is_dir():
        return _together(_numbered(task, Path(given[0])), task)
    files = _channels_in(names, given)
    if not all(path.is_dir() and _plain_files(path) for path in files.values()):
        return [files]
    return _together(
        {name: {_stem(each): each for each in _plain_files(path)} for name, path in files.items()}, task
    )


def _together(found: Mapping[str, Mapping[str, Path]], task: TaskConfig) -> list[dict[str, Path]]:
    """Return each scan's files by channel, from each channel's files by the name of the scan."""
    stems = sorted({stem for each in found.values() for stem in each})
    lacking = [stem for stem in stems if not all(stem in each for each in found.values())]
    if lacking and task.missing_channel != "zeros":
        raise ConfigError(f"{lacking[0]}: expected a file of this name for each channel.")
    return [{name: each[stem] for name, each in found.items() if stem in each} for stem in stems]


def _numbered(task: TaskConfig, folder: Path) -> dict[str, dict[str, Path]]:
    """Return each channel's files by the name of the case, from a folder of nnU-Net."""
    names = task.channel_names
    described = [
        path for path in (folder / "dataset.json", folder.parent / "dataset.json") if path.exists()
    ]
    if not described:
        raise ConfigError(
            f"{folder}: expected a dataset.json with channel_names in it or above it, or each of the "
            f"channels {', '.join(names)} once, as {names[0]}=FILE."
        )
    numbers = channels_by_number(described[0])
    may_lack = task.missing_channel == "zeros" and set(numbers) < set(names)
    if not (set(names) <= set(numbers) or may_lack):
        raise ConfigError(
            f"{described[0]}: expected the channels {', '.join(names)}, got {', '.join(numbers)}; give "
            f"each one as {names[0]}=FILE."
        )
    by_number = {number: name for name, number in numbers.items()}
    found: dict[str, dict[str, Path]] = {name: {} for name in names}
    for path in _plain_files(folder):
        case, number = _case_and_number(path)
        if number not in by_number:
            raise ConfigError(f"{path}: expected a name like CASE_0000.nii.gz with a channel's number.")
        if by_number[number] in names:
            found[by_number[number]][case] = path
    if not any(found.values()):
        raise ConfigError(f"{folder}: expected a scan, found none.")
    return found


def _case_and_number(path: Path) -> tuple[str, int | None]:
    parts = re.fullmatch(r"(.+)_([0-9]{4})", _stem(path))
    return (parts[1], int(parts[2])) if parts else (_stem(path), None)


def _channels_in(names: Sequence[str], given: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        name = plain_name(name)
        if not equals or name not in names or name in found:
            raise ConfigError(
                f"{text}: expected each of the channels {', '.join(names)} once, as {names[0]}=FILE."
            )
        found[name] = Path(path)
    return found


def _scans_of(path: Path, task: TaskConfig) -> list[Path]:
    if not path.is_dir():
        return [path]
    plain = _plain_files(path)
    visible = [each for each in _visible(path) if each.is_file()]
    dicom = [each for each in visible if each not in plain and is_dicom(each)]
    if plain and dicom:
        raise ConfigError(f"{path}: expected DICOM files or others, got both; name the files instead.")
    if plain:
        return plain
    if dicom:
        return dicom if task.dims == 2 else [path]
    folders = [each for each in _visible(path) if each.is_dir()]
    found = [scan for each in folders if any(each.rglob("*")) for scan in _scans_of(each, task)]
    if not found:
        raise ConfigError(f"{path}: expected a scan, found none.")
    return found


def _plain_files(folder: Path) -> list[Path]:
    return [each for each in _visible(folder) if each.name.lower().endswith(SCANS)]


def _visible(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if not each.name.startswith("."))


def masks_of(out: Path, scans: Sequence[Mapping[str, Path]], dims: int) -> list[Path]:
    """Return where the masks of several scans go: into the folder `out`, under the scans' names.

    Scans of one name have as many of their folders' names before it as tell them apart.
    """
    firsts = [_named_by(files) for files in scans]
    names = _told_apart(firsts)
    return [out / f"{name}{ends_of(path, dims)[0]}" for name, path in zip(names, firsts, strict=True)]


def _named_by(files: Mapping[str, Path]) -> Path:
    """Return the first file of a scan, without its channel's number where each file has one."""
    first, parts = next(iter(files.values())), [_case_and_number(path) for path in files.values()]
    case, _ = parts[0]
    if len(files) > 1 and all(name == case and number is not None for name, number in parts):
        return first.with_name(first.name.replace(_stem(first), case, 1))
    return first


def _told_apart(paths: Sequence[Path]) -> list[str]:
    files = [Path(str(path).partition("#")[0]) for path in paths]
    stems = [_stem(path) for path in paths]
    beside = Counter((file.parent, stem) for file, stem in zip(files, stems, strict=True))
    stems = [
        f"{stem}_{file.suffix[1:]}" if beside[file.parent, stem] > 1 else stem
        for file, stem in zip(files, stems, strict=True)
    ]
    depths, deepest = [1] * len(paths), max((len(file.parts) for file in files), default=1)
    for _ in range(deepest):
        names = [
            "_".join([*file.parts[-depth:-1], stem])
            for file, stem, depth in zip(files, stems, depths, strict=True)
        ]
        counts = Counter(names)
        depths = [depth + (counts[name] > 1) for name, depth in zip(names, depths, strict=True)]
    return names


def _stem(path: Path) -> str:
    """Return a scan's name without the end of a file's, and with the part of a file that it is."""
    file, _, member = str(path).partition("#")
    name = Path(file).name
    stem = next((name[: -len(end)] for end in (*SCANS, *SUFFIXES) if name.lower().endswith(end)), name)
    return "-".join([stem, *member.split("/")]) if member else stem


def ends_of(scan: Path, dims: int) -> tuple[str, ...]:
    """Return how the name of a scan's mask may end, the usual end first.

    The mask of a picture or a flat DICOM image is a picture; NIfTI files keep their place.
    """
    file = str(scan).partition("#")[0].lower()
    if dims == 2 and not file.endswith(NIFTI):
        return (".png", *NIFTI)
    return (".nii.gz", ".nii")


def is_folder(out: Path) -> bool:
    """Return whether masks go into `out` under the scans' names, and not into one file of that name."""
    return out.is_dir() or not out.suffix


def check_out(out: Path, scan: Path, dims: int) -> None:
    """Raise `ConfigError` unless `out` is the name of a new file of a type that fits a scan's mask."""
    ends = ends_of(scan, dims)
    if not out.name.endswith(ends):
        raise ConfigError(f"{out}: expected a name that ends in {' or '.join(sorted(ends))}.")
    if out.exists():
        raise ConfigError(f"{out}: expected the name of a new file, and it exists.")
