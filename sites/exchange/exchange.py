"""Exchange of releases and global models: write-once files on any storage.

Tensors are objects named by their sha256. A signed statement is written last, so a reader of a statement
finds every object that it names.

In a shared folder, others may write at a hospital's places. Each place has several names therefore: the
hospital takes the first that nobody else occupies, and readers take the first file that it signed.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from models.checkpoints import CorruptCheckpoint
from models.files import sha256_of, write_atomically
from sites.exchange.places import COPIES, Place
from sites.exchange.storage import Storage, storage_at

STATEMENT_BYTES = 2**20


COORDINATOR = "coordinator"
"""Owner of the objects that hold global models."""


class AlreadyWritten(Exception):
    """The exchange already holds other bytes at this place; nothing in it is ever replaced."""


@dataclass(frozen=True)
class Exchange:
    """An exchange in a folder, over HTTPS (WebDAV), or at an fsspec URL."""

    url: str

    def check(self) -> None:
        """Raise ValueError unless the URL is a valid address of a storage."""
        _ = self._storage

    @cached_property
    def _storage(self) -> Storage:
        return storage_at(self.url)

    def put_object(self, data: bytes, owner: str) -> str:
        """Store `data` of the writer `owner` under its sha256 and return the sha256.

        A second call changes nothing. Other bytes under that name are not replaced: the object is then
        under the next name.

        Raises:
            AlreadyWritten: all names are occupied.
        """
        sha256 = sha256_of(data)
        for name in _object_names(owner, sha256):
            with suppress(AlreadyWritten):
                self._write_once(name, data)
                return sha256
        raise AlreadyWritten(f"Expected a free name for the object {sha256} of {owner} in {self.url}.")

    def fetch_object(self, sha256: str, owner: str, into: Path, max_bytes: int) -> None:
        """Write the object with this sha256 to the file `into`, unless the file already holds it.

        Raises:
            FileNotFoundError: there is no such object.
            CorruptCheckpoint: it is larger than `max_bytes`, or its content has another sha256.
        """
        if into.exists() and sha256_of(into.read_bytes()) == sha256:
            return
        write_atomically(into, self.object(sha256, owner, max_bytes))

    def object(self, sha256: str, owner: str, max_bytes: int) -> bytes:
        """Return the object of `owner` with this sha256; raises as `fetch_object` does."""
        fault: Exception | None = None
        for name in _object_names(owner, sha256):
            try:
                data = self._storage.read(name, max_bytes)
                if sha256_of(data) == sha256:
                    return data
                raise CorruptCheckpoint(f"Expected the object {sha256} in the exchange, got another.")
            except CorruptCheckpoint as error:  # somebody else's file; the object may have another name
                fault = fault or error
            except FileNotFoundError as error:
                raise fault or error from error
        raise fault or FileNotFoundError(sha256)

    def put_statement(
        self, place: Place, data: bytes, is_own: Callable[[bytes], bool] = lambda _: True
    ) -> Place:
        """Write a signed statement and return where; writing the same bytes again changes nothing.

        Args:
            is_own: returns whether the writer made a file that is there already. Others' files do not
                occupy a hospital's place: the statement is written at its next name.

        Raises:
            AlreadyWritten: the writer's own other statement is there, or no name is free.
        """
        for name in place.names:
            try:
                self._write_once(f"{name}.json", data)
            except AlreadyWritten:
                if is_own(self.answer(name) or b""):
                    raise
            else:
                return name
        raise AlreadyWritten(f"Expected a free name of {place} in {self.url}, found none.")

    def has_room(self, place: Place) -> bool:
        """Return whether a name of a place is free; what is there already may be the writer's own."""
        return any(self.answer(name) is None for name in place.names)

    def statement(self, place: Place) -> bytes | None:
        """Return the statement at `place`, or None while there is none.

        Raises:
            CorruptCheckpoint: it is larger than any statement.
        """
        try:
            return self._storage.read(f"{place}.json", STATEMENT_BYTES)
        except FileNotFoundError:
            return None

    def answer(self, place: Place) -> bytes | None:
        """Return what a hospital has written at `place`, or None while there is nothing.

        A file that is larger than any statement, or no file, is returned as empty bytes, which are no
        statement of anybody: what one hospital writes is an error of that hospital alone.
        """
        try:
            return self.statement(place)
        except CorruptCheckpoint:
            return b""

    def answers(self, place: Place) -> Iterator[bytes]:
        """Yield what was written at a hospital's place, at each of its names, as `answer` returns it."""
        for name in place.names:
            data = self.answer(name)
            if data is None:
                return
            yield data

    def statements_of(self, site: str) -> set[Place]:
        """Return the places of all statements of a hospital, revocations included."""
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
        present = self._present_at(name, data)
        if present is None:
            try:
                self._storage.write_new(name, data)
            except FileExistsError:  # another process was faster
                present = self._present_at(name, data)
            else:
                return
        if present != data:
            raise AlreadyWritten(f"Expected nothing or the same bytes at {name} of {self.url}.")

    def _present_at(self, name: str, expected: bytes) -> bytes | None:
        """Return the bytes at `name`: None without a file, empty if it is longer than `expected`."""
        try:
            return self._storage.read(name, len(expected))
        except FileNotFoundError:
            return None
        except CorruptCheckpoint:
            return b""


def _object_names(owner: str, sha256: str) -> list[str]:
    first = f"objects/{owner}/{sha256}"
    return [first, *(f"{first}.{number}" for number in range(2, COPIES + 1))]
