"""Exchange of releases and global models: write-once files on any storage.

Tensors are objects named by their sha256. A signed statement is written last, so a reader of a statement
finds every object that it names.

In a shared folder, others may write at a hospital's places. A statement whose place is taken is written
under a further name, which nobody can know before it is written, and readers take the file that the
hospital signed and that is about the place.
"""

import errno
import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from itertools import chain, product
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

from models.errors import CorruptCheckpoint
from models.files import replaced, sha256_of, sha256_of_file
from privacy.signing import BadSignature, verified
from sites.exchange.places import Place
from sites.exchange.storage import Source, Storage, read, storage_at

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

    def put_object(self, data: bytes | Path, owner: str) -> str:
        """Store bytes, or a file's, of the writer `owner` under their sha256 and return the sha256.

        A second call changes nothing. Other bytes under that name are not replaced: the object is then
        under a further name.
        """
        source = Source(path=data) if isinstance(data, Path) else Source(data)
        name = f"objects/{owner}/{source.sha256}"
        try:
            self._write_once(name, source)
        except AlreadyWritten:
            further = self._further_objects(owner, source.sha256)
            if source.sha256 not in (self._digest_at(other, source.size) for other in further):
                self._storage.write_new(f"{name}.{token_hex(6)}", source)
        return source.sha256

    def fetch_object(self, sha256: str, owner: str, into: Path, max_bytes: int) -> None:
        """Write the object with this sha256 to the file `into`, unless the file already holds it.

        Raises:
            FileNotFoundError: there is no such object.
            CorruptCheckpoint: it is larger than `max_bytes`, or its content has another sha256.
        """
        if into.exists() and sha256_of_file(into) == sha256:
            return
        with replaced(into) as partial:
            self._read_object(sha256, owner, max_bytes, lambda: partial.open("wb"))

    def object(self, sha256: str, owner: str, max_bytes: int) -> bytes:
        """Return the object of `owner` with this sha256; raises as `fetch_object` does."""
        taken: list[BytesIO] = []

        def another() -> BytesIO:
            taken.append(_Kept())
            return taken[-1]

        self._read_object(sha256, owner, max_bytes, another)
        return taken[-1].getvalue()

    def _read_object(
        self, sha256: str, owner: str, max_bytes: int, opened: Callable[[], BinaryIO]
    ) -> None:
        """Write the object to what `opened` returns; it is called again for each file of that name."""
        name = f"objects/{owner}/{sha256}"
        fault = CorruptCheckpoint(f"Expected the object {sha256} in the exchange, got another.")
        found: Exception | None = None
        for each in chain([name], self._further_objects(owner, sha256)):
            try:
                with opened() as file:
                    hashed = _Hashed(file)
                    self._storage.read_into(hashed, each, max_bytes)
            except (FileNotFoundError, CorruptCheckpoint) as error:
                found = found or error
                continue
            if hashed.digest == sha256:
                return
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
        self._write_once(f"{marked}.json", Source(data))
        return marked

    def _is_taken(self, place: Place, data: bytes) -> bool:
        """Write a statement at a place; return True if another file is there."""
        try:
            self._write_once(f"{place}.json", Source(data))
        except AlreadyWritten:
            return True
        return False

    def statement(self, place: Place) -> bytes | None:
        """Return the statement at `place`, or None while there is none.

        Raises:
            CorruptCheckpoint: it is larger than any statement.
        """
        try:
            return read(self._storage, f"{place}.json", STATEMENT_BYTES)
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

    def _write_once(self, name: str, source: Source) -> None:
        present = self._digest_at(name, source.size)
        if present is None:
            try:
                self._storage.write_new(name, source)
            except FileExistsError:  # another process was faster
                present = self._digest_at(name, source.size)
            else:
                return
        if present != source.sha256:
            raise AlreadyWritten(f"Expected nothing or the same bytes at {name} of {self.url}.")

    def _digest_at(self, name: str, size: int) -> str | None:
        """Return the sha256 of the file at `name`: None without one, empty if it has more bytes."""
        hashed = _Hashed()
        try:
            self._storage.read_into(hashed, name, size)
        except FileNotFoundError:
            return None
        except CorruptCheckpoint:
            return ""
        return hashed.digest


class _Kept(BytesIO):
    """Bytes that stay readable when the file is closed."""

    def close(self) -> None:
        """Keep the bytes."""


class _Hashed:
    """A sink that passes bytes on to a file, if there is one, and knows their sha256."""

    def __init__(self, file: BinaryIO | None = None) -> None:
        self._file, self._hash = file, hashlib.sha256()

    def write(self, data: bytes, /) -> None:
        """Take more bytes."""
        self._hash.update(data)
        if self._file is not None:
            self._file.write(data)

    @property
    def digest(self) -> str:
        """The sha256 of what came so far."""
        return self._hash.hexdigest()
