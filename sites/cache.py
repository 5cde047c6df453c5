"""Scans as they were read and checked, kept on the hospital's disk from round to round.

An entry is named by a hash of the files' content and of what was done to them, so a changed file or
another task makes another entry, and no name of a patient, a file or a case is in the cache.
"""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from hashlib import file_digest, sha256
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from models.checkpoints import write_atomically
from models.objectives import TaskConfig
from privacy.signing import canonical
from sites.intake import Finding, Scan, read_case
from sites.listing import CaseFiles

QUICK = (".png", ".jpg", ".jpeg", ".npz")
"""Files that are read as quickly as an entry of the cache."""
VERSION = 1
"""Raised whenever reading or checking a case changes."""


@dataclass(frozen=True)
class ScanCache:
    """A cache folder of at most `max_bytes`; the entries unused for longest go first."""

    folder: Path
    max_bytes: int

    def reader(self, data: Path, task: TaskConfig) -> Callable[[CaseFiles], tuple[Scan, list[Finding]]]:
        """Return what reads the cases of a data folder as `read_case` does, or from the cache."""

        def read(case: CaseFiles) -> tuple[Scan, list[Finding]]:
            key = _key(data, case, task)
            found = self._get(key) if key else None
            if found is None:
                found = read_case(data, case, task)  # a broken case is read, and named, each time
                if key:
                    self._put(key, *found)
            return found

        return read

    def trim(self) -> None:
        """Delete the entries unused for longest until the rest fit."""
        entries = [(path.stat(), path) for path in self.folder.glob("*.safetensors")]
        total = sum(stat.st_size for stat, _ in entries)
        for stat, path in sorted(entries, key=lambda entry: entry[0].st_mtime):
            if total <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= stat.st_size

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _get(self, key: str) -> tuple[Scan, list[Finding]] | None:
        path = self._path(key)
        try:
            with safe_open(path, "numpy") as file:
                told = json.loads(file.metadata()["told"])
                image, target = file.get_tensor("image"), file.get_tensor("target")
            os.utime(path)
        except (FileNotFoundError, SafetensorError, KeyError, TypeError, ValueError):
            return None
        findings = [Finding(**finding) for finding in told["findings"]]
        return Scan(image, target.astype(np.int64), tuple(told["spacing_mm"])), findings

    def _put(self, key: str, scan: Scan, findings: list[Finding]) -> None:
        told = {"spacing_mm": scan.spacing_mm, "findings": [vars(finding) for finding in findings]}
        small = np.min_scalar_type(int(scan.target.max()))
        # safetensors writes an array in its memory's order, whatever its strides say
        arrays = {
            "image": np.ascontiguousarray(scan.image),
            "target": np.ascontiguousarray(scan.target, dtype=small).reshape(scan.target.shape),
        }
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self._path(key), save(arrays, {"told": json.dumps(told)}))


def _key(data: Path, case: CaseFiles, task: TaskConfig) -> str | None:
    """Return the name of a case's entry; None where its files can't be read, or at once are."""
    if case.image.partition("#")[0].lower().endswith(QUICK):
        return None
    try:
        files = [_content(data, case.image)]
        files.append(case.label if task.kind == "classification" else _content(data, case.label))
    except (OSError, ValueError):
        return None
    what = [VERSION, task.model_dump(mode="json"), files]
    return sha256(canonical(what)).hexdigest()


def _content(data: Path, name: str) -> str:
    """Return a hash of a file's content, or of a folder's; the member of an npz is part of it."""
    file, _, member = name.partition("#")
    path = (data / file).resolve()
    if not path.is_relative_to(data.resolve()):
        raise ValueError("outside the data folder")
    parts = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    hashes = [_file_hash(part, part.stat().st_size, part.stat().st_mtime_ns) for part in parts]
    return sha256(canonical([hashes, member])).hexdigest()


@lru_cache(maxsize=100_000)
def _file_hash(path: Path, size: int, modified_ns: int) -> str:
    with suppress(OSError), path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
    return f"unreadable {size} {modified_ns}"
