"""Where releases and global models are laid down and picked up: write-once files on any fsspec storage.

Tensors are objects named by their sha256; a signed statement is written last, so that whoever reads
it finds everything it names.
"""

import posixpath
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from models.checkpoints import CorruptCheckpoint, sha256_of, write_atomically

STATEMENT_BYTES = 2**20


class AlreadyWritten(Exception):
    """Other bytes lie at this place of the exchange already, and nothing there is ever replaced."""


@dataclass(frozen=True)
class Exchange:
    """An exchange at an fsspec URL or a folder."""

    url: str

    def check(self) -> None:
        """Raise ValueError unless the address is one that storage can be reached by."""
        try:
            _ = self._storage
        except (ImportError, OSError, TypeError) as error:
            raise ValueError(f"no storage by this address: {error}") from error

    @cached_property
    def _storage(self) -> tuple[AbstractFileSystem, str]:
        filesystem, root = url_to_fs(self.url)
        return filesystem, root

    def put_object(self, data: bytes) -> str:
        """Store `data` under its sha256 and return that; again does nothing."""
        sha256 = sha256_of(data)
        self._write_once(f"objects/{sha256}", data)
        return sha256

    def fetch_object(self, sha256: str, into: Path, max_bytes: int) -> None:
        """Write the object of this sha256 to the file `into`, unless it lies there already.

        Raises:
            FileNotFoundError: no such object.
            CorruptCheckpoint: it is larger than `max_bytes`, or its bytes are not those that its
                name promises.
        """
        if into.exists() and sha256_of(into.read_bytes()) == sha256:
            return
        write_atomically(into, self.object(sha256, max_bytes))

    def object(self, sha256: str, max_bytes: int) -> bytes:
        """Return the object of this sha256; raises as `fetch_object` does."""
        data = self._read(f"objects/{sha256}", max_bytes)
        if sha256_of(data) != sha256:
            raise CorruptCheckpoint(f"The object {sha256} of the exchange has other content.")
        return data

    def put_statement(self, place: str, data: bytes) -> None:
        """Lay down a signed statement; the same bytes again do nothing.

        Raises:
            AlreadyWritten: another statement lies at `place`.
        """
        self._write_once(f"{place}.json", data)

    def statement(self, place: str) -> bytes | None:
        """Return the statement at `place`, or None while there is none.

        Raises:
            CorruptCheckpoint: it is larger than any statement.
        """
        try:
            return self._read(f"{place}.json", STATEMENT_BYTES)
        except FileNotFoundError:
            return None

    def statements_of(self, site: str) -> set[str]:
        """Return the places of everything that lies under a hospital's name."""
        filesystem, root = self._storage
        folder = _folder_of(site)
        try:
            found = filesystem.ls(posixpath.join(root, folder), detail=True)
        except FileNotFoundError:
            return set()
        names = (each["name"] for each in found if each["type"] == "file")
        stems = (posixpath.basename(name) for name in names if name.endswith(".json"))
        return {f"{folder}/{stem.removesuffix('.json')}" for stem in stems}

    def _read(self, name: str, max_bytes: int) -> bytes:
        filesystem, root = self._storage
        path = posixpath.join(root, name)
        about = filesystem.info(path)
        if about["type"] != "file" or about["size"] > max_bytes:
            raise CorruptCheckpoint(f"Expected a file of at most {max_bytes:,} bytes at {name}.")
        data: bytes = filesystem.cat_file(path, start=0, end=max_bytes + 1)
        if len(data) > max_bytes:
            raise CorruptCheckpoint(f"Expected at most {max_bytes:,} bytes at {name}.")
        return data

    def _write_once(self, name: str, data: bytes) -> None:
        filesystem, root = self._storage
        path = posixpath.join(root, name)
        if filesystem.exists(path):
            if filesystem.cat_file(path) != data:
                raise AlreadyWritten(f"Expected nothing or the same bytes at {name} of {self.url}.")
            return
        filesystem.makedirs(posixpath.dirname(path), exist_ok=True)
        partial = f"{path}.{sha256_of(data)[:12]}.partial"
        filesystem.pipe_file(partial, data)
        filesystem.mv(partial, path)


def statement_place(run: str, round: int, phase: str, site: str) -> str:
    """Return where a hospital's statement on a phase of a round lies in the exchange."""
    return f"{_folder_of(site)}/{run}.{round:03d}.{phase}"


def _folder_of(site: str) -> str:
    return f"statements/{site}"


def model_place(run: str, round: int) -> str:
    """Return where the coordinator's statement on a global model lies in the exchange."""
    return f"models/{run}.{round:03d}"
