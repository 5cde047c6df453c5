"""Outbox: every byte that has left the hospital or will leave, in files named by their sha256.

Files are never replaced.
"""

from dataclasses import dataclass
from pathlib import Path

from models.errors import CorruptCheckpoint
from models.files import sha256_of, write_atomically


@dataclass(frozen=True)
class Outbox:
    """A hospital's outbox folder: statements as `<sha256>.json`, tensors as `<sha256>.safetensors`."""

    folder: Path

    def put_statement(self, data: bytes) -> str:
        """Store a signed statement, flushed to disk, and return its sha256."""
        return self._put(data, ".json")

    def put_tensors(self, data: bytes) -> str:
        """Store a safetensors file's bytes, flushed to disk, and return their sha256."""
        return self._put(data, ".safetensors")

    def statement(self, sha256: str) -> bytes:
        """Return the statement of this sha256."""
        return self._get(sha256, ".json")

    def tensors(self, sha256: str) -> bytes:
        """Return the safetensors file of this sha256."""
        return self._get(sha256, ".safetensors")

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
        if sha256_of(data) != sha256:
            raise CorruptCheckpoint(
                f"Expected the outbox file {sha256}{suffix} as it was written, but it was changed."
            )
        return data
