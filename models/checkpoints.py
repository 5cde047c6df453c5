"""Tensors on disk: safetensors with a sha256, read lazily. Nothing is ever unpickled."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from models.errors import CorruptCheckpoint
from models.files import replaced, sha256_of_file
from models.params import Params

NAMES = {torch.float32: "F32", torch.int32: "I32", torch.uint8: "U8"}
"""Types of tensors in releases and models, and what a safetensors file calls them
(https://github.com/huggingface/safetensors#format)."""


def to_bytes(params: Params) -> bytes:
    """Return `params` as a safetensors file's bytes; equal params give equal bytes."""
    return save({name: params[name].detach().cpu().contiguous() for name in sorted(params)})


def save_to(path: Path, params: Params) -> None:
    """Write `params` to a file, without a second copy of them in memory; the bytes are `to_bytes`'."""
    save_file({name: params[name].detach().cpu().contiguous() for name in sorted(params)}, path)


def write(path: Path, params: Params) -> str:
    """Write `params` to `path` atomically and return the file's sha256."""
    with replaced(path) as partial:
        save_to(partial, params)
        return sha256_of_file(partial)


def digest(params: Params) -> str:
    """Return the sha256 of the file that `params` make, without a second copy of them in memory."""
    with tempfile.TemporaryDirectory() as folder:
        save_to(Path(folder) / "params", params)
        return sha256_of_file(Path(folder) / "params")


@dataclass(frozen=True)
class StoredParams(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read from the mapped file when it is accessed.

    A `StoredParams` can be read repeatedly and holds no tensor itself, so the releases of forty
    hospitals cost the memory of one tensor at a time.
    """

    path: Path

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor, read from the file's header alone."""
        with self._open() as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # a file, no dict

    @property
    def dtypes(self) -> dict[str, str]:
        """The type of each tensor as the format names it, such as `F32`, read from the header alone."""
        with self._open() as file:
            return {name: str(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        with self._open() as file:
            if name not in self.shapes:
                raise KeyError(name)
            try:
                tensor: Tensor = file.get_tensor(name)
            except (SafetensorError, KeyError, ValueError, TypeError) as error:
                raise CorruptCheckpoint(f"{name!r} can't be read: {error}") from error
            return tensor

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return rows `start` to `stop` of a tensor along its first axis, reading only those."""
        with self._open() as file:
            part: Tensor = file.get_slice(name)[start:stop]
            return part

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def _open(self) -> safe_open:
        try:
            return safe_open(self.path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CorruptCheckpoint(f"{self.path.name} is not a safetensors file: {error}") from error


def read(path: Path, sha256: str, dtype: torch.dtype | None = torch.float32) -> StoredParams:
    """Return the tensors of `path` after checking that the file has this `sha256`.

    Args:
        dtype: the type of all tensors; None for any.

    Raises:
        CorruptCheckpoint: the file's content has another sha256, or a tensor another type.
    """
    found = sha256_of_file(path)
    if found != sha256:
        raise CorruptCheckpoint(f"Expected {path.name} with sha256 {sha256}, got {found}.")
    stored = StoredParams(path)
    if dtype and (bad := [name for name, kind in stored.dtypes.items() if kind != NAMES[dtype]]):
        raise CorruptCheckpoint(f"Expected {dtype} in {path.name}, {bad[0]!r} is not.")
    return stored
