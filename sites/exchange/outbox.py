"""Outbox: every byte that has left the hospital or will leave, in files named by their sha256.

Files are never replaced.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from models.errors import CorruptCheckpoint
from models.files import replaced, sha256_of, sha256_of_file, write_atomically


@dataclass(frozen=True)
class Outbox:
    """A hospital's outbox folder: statements as `<sha256>.json`, tensors as `<sha256>.safetensors`."""

    folder: Path

    def put_statement(self, data: bytes) -> str:
        """Store a signed statement, flushed to disk, and return its sha256."""
        return self._put(data, ".json")

    def put_tensors(self, write: Callable[[Path], object]) -> str:
        """Store a safetensors file that `write` writes to a path, and return its sha256."""
        self.folder.mkdir(parents=True, exist_ok=True)
        written = self.folder / "new.safetensors"
        try:
            with replaced(written) as partial:
                write(partial)
            sha256 = sha256_of_file(written)
            path = self.folder / f"{sha256}.safetensors"
            if not path.exists():
                written.rename(path)
                path.chmod(0o400)
        finally:
            written.unlink(missing_ok=True)
        return sha256

    def statement(self, sha256: str) -> bytes:
        """Return the statement of this sha256."""
        return self._get(sha256, ".json")

    def tensors(self, sha256: str) -> Path:
        """Return the path of the safetensors file of this sha256.

        Raises:
            CorruptCheckpoint: it was changed.
        """
        path = self.folder / f"{sha256}.safetensors"
        _check(path.name, sha256_of_file(path), sha256)
        return path

    def statements(self) -> set[str]:
        """Return the sha256 of every statement."""
        return {path.stem for path in self.folder.glob("*.json")}

    def _put(self, data: bytes, suffix: str) -> str:
        sha256 = sha256_of(data)
        path = self.folder / f"{sha256}{suffix}"
        if not path.exists():
            write_atomically(path, data)
            path.chmod(0o400)
        return sha256

    def _get(self, sha256: str, suffix: str) -> bytes:
        data = (self.folder / f"{sha256}{suffix}").read_bytes()
        _check(f"{sha256}{suffix}", sha256_of(data), sha256)
        return data


def _check(name: str, found: str, expected: str) -> None:
    if found != expected:
        raise CorruptCheckpoint(
            f"Expected the outbox file {name} as it was written, but it was changed."
        )
