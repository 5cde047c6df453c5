"""Where releases and global models are laid down and picked up: write-once files on any storage.

Tensors are objects named by their sha256; a signed statement is written last, so that whoever reads
it finds everything it names.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from models.checkpoints import CorruptCheckpoint
from models.files import sha256_of, write_atomically
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
            return self._storage.read(f"{place}.json", STATEMENT_BYTES)
        except FileNotFoundError:
            return None

    def statements_of(self, site: str) -> set[str]:
        """Return the places of everything that lies under a hospital's name."""
        return self._places_in(_folder_of(site))

    def orders_of(self, site: str) -> set[str]:
        """Return the places of every order for a hospital."""
        return self._places_in(f"orders/{site}")

    def rounds_of(self, run: str) -> set[tuple[int, str]]:
        """Return the rounds of which the coordinator has laid down a `model` or a `head` of a run."""
        found = set()
        for place in self._places_in("models"):
            name, _, rest = place.rpartition("/")[2].partition(".")
            number, _, kind = rest.partition(".")
            if name == run and number.isdecimal():
                found.add((int(number), kind or "model"))
        return found

    def _places_in(self, folder: str) -> set[str]:
        names = self._storage.names(folder)
        return {f"{folder}/{name.removesuffix('.json')}" for name in names if name.endswith(".json")}

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


def statement_place(run: str, round: int, phase: str, site: str) -> str:
    """Return where a hospital's statement on a phase of a round lies in the exchange."""
    return f"{_folder_of(site)}/{run}.{round:03d}.{phase}"


def revocation_place(site: str, public_key: str) -> str:
    """Return where a hospital says that one of its keys is no longer good."""
    return f"{_folder_of(site)}/revoked.{public_key[:32]}"


def order_place(run: str, round: int, phase: str, attempt: int, site: str) -> str:
    """Return where the coordinator's order for a phase of a round lies in the exchange."""
    return f"orders/{site}/{run}.{round:03d}.{phase}.{attempt}"


def released_place(run: str, round: int, site: str) -> str:
    """Return where the coordinator's statement on a hospital's released model lies."""
    return f"models/{run}.{round:03d}.of-{site}"


def head_place(run: str, round: int) -> str:
    """Return where the coordinator's statement on the record of a finished round lies."""
    return f"models/{run}.{round:03d}.head"


def decision_place(run: str, number: int) -> str:
    """Return where a decision about a run's models lies, which the coordinator has put on record."""
    return f"models/{run}.decision-{number:04d}"


def _folder_of(site: str) -> str:
    return f"statements/{site}"


def model_place(run: str, round: int) -> str:
    """Return where the coordinator's statement on a global model lies in the exchange."""
    return f"models/{run}.{round:03d}"
