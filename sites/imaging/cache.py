"""Cache of scans on the hospital's disk: read, checked and prepared, and kept from round to round.

An entry's name is a hash of the files' content and of the processing, so a changed file or another
task makes another entry. The cache contains no name of a patient, a file or a case.
"""

import json
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from models.files import private_folder, write_atomically
from models.settings.images import PreprocessingConfig
from models.settings.tasks import TaskConfig
from privacy.signing import canonical
from sites.imaging.intake import BrokenCase, Finding
from sites.imaging.preprocessing import Prepared, cached_part
from sites.imaging.profile import Profile
from sites.imaging.reading import Reader, Reading, read_and_prepare, reader
from sites.listing.cases import PICTURES, CaseFiles

log = logging.getLogger("wardround.site")

QUICK = (*PICTURES, ".npz")
"""Ends of the names of files that are not cached: reading them is as fast as reading an entry."""
VERSION = 7
"""Number to increase whenever reading, checking or preparing a case changes."""
DAMAGED = (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError)
"""Errors on reading an entry that is gone, damaged or of another version."""


@dataclass(frozen=True)
class ScanCache:
    """A cache folder of at most `max_bytes`; the entries unused for longest are deleted first."""

    folder: Path
    max_bytes: int

    def reader(self, data: Path, task: TaskConfig, config: PreprocessingConfig) -> Reader:
        """Return a function that reads a folder's cases, from the cache where possible.

        It does the same as the function of `sites.imaging.reading.reader`. The reading of a cached case
        holds no image: each load reads the entry, or the files if the entry is gone.
        """
        plainly = reader(data, task, config)
        unchecked: list[int] = []

        def read(case: CaseFiles) -> Reading:
            key = _key(data, case, task, config)
            if key is None:
                return plainly(case)
            found = self._known(key)
            if found is None:
                profile, findings, prepared = read_and_prepare(data, case, task, config)
                try:
                    unchecked.append(self._put(key, profile, findings, prepared))
                except OSError as error:  # a full disk slows rounds down, but stops none
                    log.warning("a scan can't be kept in the cache: %s", type(error).__name__)
                    return Reading(profile, findings, lambda: prepared)
                if sum(unchecked) > self.max_bytes / 10:
                    unchecked.clear()
                    self.trim()
                found = profile, findings
            return Reading(*found, lambda: self._prepared(key) or again(case, key))

        def again(case: CaseFiles, key: str) -> Prepared:
            if _key(data, case, task, config) != key:
                raise BrokenCase(case.case, Finding("unreadable", "a file changed while it was used"))
            return read_and_prepare(data, case, task, config)[2]

        return read

    def trim(self) -> None:
        """Delete the entries unused for longest until the rest fit, and partial files of a crash."""
        for left in self.folder.glob(".*.partial"):
            left.unlink(missing_ok=True)
        entries = [(path.stat(), path) for path in self.folder.glob("*.safetensors")]
        total = sum(stat.st_size for stat, _ in entries)
        for stat, path in sorted(entries, key=lambda entry: entry[0].st_mtime):
            if total <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= stat.st_size

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _known(self, key: str) -> tuple[Profile, tuple[Finding, ...]] | None:
        with suppress(*DAMAGED), safe_open(self._path(key), "pt") as file:
            stored = json.loads(file.metadata()["told"])
            profile = _profile({**stored["profile"], "coarse": file.get_tensor("coarse").clone()})
            os.utime(self._path(key))
            return profile, tuple(Finding(**finding) for finding in stored["findings"])
        return None

    def _prepared(self, key: str) -> Prepared | None:
        with suppress(*DAMAGED), safe_open(self._path(key), "pt") as file:
            stored = json.loads(file.metadata()["told"])
            image = file.get_tensor("image").clone()  # a copy: the file may be deleted
            kept = file.get_tensor("target").clone()
            has_truth = "truth" in file.keys()  # noqa: SIM118 (it is not a mapping)
            truth = file.get_tensor("truth").clone() if has_truth else kept
            if stored["sum"] != _sum(image, kept, truth):
                return None
            target = kept if kept.is_floating_point() else kept.long()
            return Prepared(
                image=image,
                target=target,
                affine=np.asarray(stored["affine"]),
                truth=truth.long() if has_truth else target,
                spacing_mm=tuple(stored["profile"]["spacing_mm"]),
                missing=tuple(stored["missing"]),
            )
        return None

    def _put(self, key: str, profile: Profile, findings: tuple[Finding, ...], prepared: Prepared) -> int:
        metadata = {
            "profile": {**vars(profile), "coarse": None},
            "findings": [vars(finding) for finding in findings],
            "affine": prepared.affine.tolist(),
            "missing": prepared.missing,
            "sum": _sum(prepared.image, _small(prepared.target), _small(prepared.truth)),
        }
        tensors = {"image": prepared.image, "coarse": profile.coarse, "target": _small(prepared.target)}
        if prepared.truth is not prepared.target and not torch.equal(prepared.truth, prepared.target):
            tensors["truth"] = _small(prepared.truth)
        private_folder(self.folder)
        content = save(tensors, {"told": json.dumps(metadata)})
        write_atomically(self._path(key), content)
        return len(content)


def _profile(stored: dict[str, Any]) -> Profile:
    """Return a profile from its JSON form."""
    amounts = {int(label): amount for label, amount in stored["amounts"].items()}
    lists = {key: tuple(value) for key, value in stored.items() if isinstance(value, list)}
    intensities = tuple(tuple(channel) for channel in stored["intensities"])
    return Profile(**{**stored, **lists, "intensities": intensities, "amounts": amounts})


def _sum(*tensors: Tensor) -> str:
    """Return a checksum, which shows if the disk returns other bytes than were stored."""
    digest = sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _small(labels: Tensor) -> Tensor:
    """Return labels in the smallest type that holds them; numbers as they are."""
    if labels.is_floating_point():
        return labels
    return labels.to(torch.uint8 if labels.numel() == 0 or int(labels.max()) < 256 else torch.int32)


def _key(data: Path, case: CaseFiles, task: TaskConfig, config: PreprocessingConfig) -> str | None:
    """Return the name of a case's entry; None if its files can't be read, or need no cache (`QUICK`)."""
    if not case.label or case.image.partition("#")[0].lower().endswith(QUICK):
        return None
    images = [case.images.get(name, "") for name in task.channel_names]
    try:
        files = [content_of(data, image) if image else "" for image in images]
        is_file = task.kind == "segmentation"
        files.append(content_of(data, case.label) if is_file else case.label)
        files += [content_of(data, file) for _, file in case.masks]
    except (OSError, ValueError):
        return None
    what = [VERSION, task.model_dump(mode="json"), cached_part(config), files]
    what += [case.label_map, case.label_names, [name for name, _ in case.masks]]
    return sha256(canonical(what)).hexdigest()


def content_of(data: Path, name: str) -> str:
    """Return a hash of the content of a file or a folder; for an npz, the member's name is included.

    Raises:
        OSError, ValueError: the file does not exist, or is outside the data folder.
    """
    file, _, member = name.partition("#")
    path = (data / file).resolve()
    if not path.is_relative_to(data.resolve()):
        raise ValueError("outside the data folder")
    parts = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    if not all(part.resolve().is_relative_to(path) for part in parts):
        raise ValueError("a file is outside its folder")
    hashes = [_file_hash(part, part.stat().st_size, part.stat().st_mtime_ns) for part in parts]
    return sha256(canonical([hashes, member])).hexdigest()


@lru_cache(maxsize=100_000)
def _file_hash(path: Path, size: int, modified_ns: int) -> str:
    with suppress(OSError), path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
    return f"unreadable {size} {modified_ns}"
