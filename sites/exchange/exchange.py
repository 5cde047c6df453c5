"""Exchange of releases and global models: write-once files on any storage.

Tensors are objects named by their sha256. A signed statement is written last, so a reader of a statement
finds every object that it names.

In a shared folder, others may write at a hospital's places. A statement whose place is taken is written
under a further name, which nobody can know before it is written, and readers take the file that the
hospital signed and that is about the place.
"""

import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, product
from pathlib import Path
from secrets import token_hex

from models.errors import CorruptCheckpoint
from models.files import sha256_of, write_atomically
from privacy.signing import BadSignature, verified
from sites.exchange.places import Place
from sites.exchange.storage import Storage, storage_at

STATEMENT_BYTES = 2**20
UNREADABLE = frozenset(
    {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
)
"""Errors of a file that exists and can't be opened; other errors are about the storage."""


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
        under a further name.
        """
        sha256 = sha256_of(data)
        name = f"objects/{owner}/{sha256}"
        try:
            self._write_once(name, data)
        except AlreadyWritten:
            others = (self._present_at(other, data) for other in self._further_objects(owner, sha256))
            if data not in others:
                self._storage.write_new(f"{name}.{token_hex(6)}", data)
        return sha256

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
        name = f"objects/{owner}/{sha256}"
        fault = CorruptCheckpoint(f"Expected the object {sha256} in the exchange, got another.")
        found: Exception | None = None
        for each in chain([name], self._further_objects(owner, sha256)):
            try:
                data = self._storage.read(each, max_bytes)
            except (FileNotFoundError, CorruptCheckpoint) as error:
                found = found or error
                continue
            if sha256_of(data) == sha256:
                return data
            found = fault
        raise found or fault

    def _further_objects(self, owner: str, sha256: str) -> Iterator[str]:
        """Yield further names of an object: somebody else's file may have its own name."""
        with suppress(OSError):  # a hospital may not list the coordinator's objects
            for name in sorted(self._storage.names(f"objects/{owner}")):
                if name.startswith(f"{sha256}."):
                    yield f"objects/{owner}/{name}"

    def put_statement(
        self, place: Place, data: bytes, is_own: Callable[[bytes], bool] = lambda _: True
    ) -> Place:
        """Write a signed statement and return where; writing the same bytes again changes nothing.

        Args:
            is_own: returns whether the writer made a file that is there already, for this place. Others'
                files do not occupy a hospital's place.

        Raises:
            AlreadyWritten: the writer's own other statement is there.
        """
        if not self._is_taken(place, data):
            return place
        if any(other != data and is_own(other) for other in self.answers(place)):
            raise AlreadyWritten(f"Expected nothing or the same bytes at {place} of {self.url}.")
        marked = place.marked(sha256_of(data))
        self._write_once(f"{marked}.json", data)
        return marked

    def _is_taken(self, place: Place, data: bytes) -> bool:
        """Write a statement at a place; return True if another file is there."""
        try:
            self._write_once(f"{place}.json", data)
        except AlreadyWritten:
            return True
        return False

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

        A file that is larger than any statement, no file, or one that can't be opened is returned as
        empty bytes, which are no statement of anybody: what is written there is an error of that place
        alone.
        """
        try:
            return self.statement(place)
        except CorruptCheckpoint:
            return b""
        except OSError as error:
            if error.errno in UNREADABLE:
                return b""
            raise

    def answers(self, place: Place) -> Iterator[bytes]:
        """Yield what was written at a hospital's place, then at its further names, as `answer` does."""
        first = self.answer(place)
        if first is not None:
            yield first
        for other in sorted(self._places_in(place.folder)):
            if other.mark and replace(other, mark="") == place:
                data = self.answer(other)
                if data is not None:
                    yield data

    def signed_answer(self, place: Place, keys: Iterable[str]) -> bytes | None:
        """Return the file at a hospital's place that one of its keys signed and that is about the place.

        Everything else there, a copy of another of its statements included, is somebody else's file.
        """
        for data, key in product(self.answers(place), tuple(keys)):
            with suppress(BadSignature, ValueError):
                if Place.of_statement(verified(data, place.site, {place.site: key})) == place:
                    return data
        return None

    def statement_with(self, place: Place, sha256: str) -> bytes:
        """Return what was written at a hospital's place with this sha256.

        Raises:
            LookupError: there is nothing, or something else.
        """
        written = {sha256_of(data): data for data in self.answers(place)}
        if not written:
            raise LookupError("its statement is not in the exchange.")
        if sha256 not in written:
            raise LookupError("the exchange has another statement than the record names.")
        return written[sha256]

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
