"""Where releases and global models are laid down and picked up: write-once files on any storage.

Tensors are objects named by their sha256; a signed statement is written last, so that whoever reads
it finds everything it names.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from models.checkpoints import CorruptCheckpoint
from models.files import sha256_of, write_atomically
from sites.exchange.places import Place
from sites.exchange.storage import Storage, storage_at

STATEMENT_BYTES = 2**20


COORDINATOR = "coordinator"
"""Whose objects the global models are."""


class AlreadyWritten(Exception):
    """Other bytes lie at this place of the exchange already, and nothing there is ever replaced."""


@dataclass(frozen=True)
class Exchange:
    """An exchange in a folder, over HTTPS (WebDAV), or at an fsspec URL."""

    url: str

    def check(self) -> None:
        """Raise ValueError unless the address is one that storage can be reached by."""
        _ = self._storage

    @cached_property
    def _storage(self) -> Storage:
        return storage_at(self.url)

    def put_object(self, data: bytes, owner: str) -> str:
        """Store `data` of a writer under its sha256 and return that; again does nothing.

        Each writer has a folder of its own, so that nobody can take a name from another.
        """
        sha256 = sha256_of(data)
        self._write_once(f"objects/{owner}/{sha256}", data)
        return sha256

    def fetch_object(self, sha256: str, owner: str, into: Path, max_bytes: int) -> None:
        """Write a writer's object of this sha256 to the file `into`, unless it lies there already.

        Raises:
            FileNotFoundError: no such object.
            CorruptCheckpoint: it is larger than `max_bytes`, or its bytes are not those that its
                name promises.
        """
        if into.exists() and sha256_of(into.read_bytes()) == sha256:
            return
        write_atomically(into, self.object(sha256, owner, max_bytes))

    def object(self, sha256: str, owner: str, max_bytes: int) -> bytes:
        """Return a writer's object of this sha256; raises as `fetch_object` does."""
        data = self._storage.read(f"objects/{owner}/{sha256}", max_bytes)
        if sha256_of(data) != sha256:
            raise CorruptCheckpoint(f"The object {sha256} of the exchange has other content.")
        return data

    def put_statement(self, place: Place, data: bytes) -> None:
        """Lay down a signed statement; the same bytes again do nothing.

        Raises:
            AlreadyWritten: another statement lies at `place`.
        """
        self._write_once(f"{place}.json", data)

    def statement(self, place: Place) -> bytes | None:
        """Return the statement at `place`, or None while there is none.

        Raises:
            CorruptCheckpoint: it is larger than any statement.
        """
        try:
            return self._storage.read(f"{place}.json", STATEMENT_BYTES)
        except FileNotFoundError:
            return None

    def statements_of(self, site: str) -> set[Place]:
        """Return the places of everything that a hospital has written, revocations included."""
        return self._places_in(f"statements/{site}")

    def orders_of(self, site: str) -> set[Place]:
        """Return the places of every order for a hospital."""
        return self._places_in(f"orders/{site}")

    def models_of(self, run: str) -> set[Place]:
        """Return the places of the coordinator's statements about a run."""
        return {place for place in self._places_in("models") if place.run == run}

    def _places_in(self, folder: str) -> set[Place]:
        found = (name for name in self._storage.names(folder) if name.endswith(".json"))
        parsed = (Place.parse(f"{folder}/{name.removesuffix('.json')}") for name in found)
        return {place for place in parsed if place is not None}

    def _write_once(self, name: str, data: bytes) -> None:
        lying = self._lying_at(name, data)
        if lying is None:
            try:
                self._storage.write_new(name, data)
            except FileExistsError:  # somebody was faster
                lying = self._lying_at(name, data)
            else:
                return
        if lying != data:
            raise AlreadyWritten(f"Expected nothing or the same bytes at {name} of {self.url}.")

    def _lying_at(self, name: str, expected: bytes) -> bytes | None:
        """Return what lies there, None where nothing does; of something longer no byte."""
        try:
            return self._storage.read(name, len(expected))
        except FileNotFoundError:
            return None
        except CorruptCheckpoint:
            return b""
