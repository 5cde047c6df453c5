from pathlib import Path

import pytest
import torch

from models import checkpoints
from models.errors import CorruptCheckpoint
from models.files import sha256_of


def test_what_is_written_is_read_back_tensor_by_tensor(tmp_path: Path) -> None:
    params = {"b": torch.randn(3, 4), "a": torch.randn(2)}
    sha256 = checkpoints.write(tmp_path / "x.safetensors", params)
    stored = checkpoints.read(tmp_path / "x.safetensors", sha256)
    assert set(stored) == {"a", "b"}
    assert all(torch.equal(stored[name], params[name]) for name in params)
    assert stored.shapes == {"a": (2,), "b": (3, 4)}
    assert torch.equal(stored.rows("b", 1, 3), params["b"][1:3])


def test_stored_parameters_can_be_read_again_and_again(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    stored = checkpoints.read(path, checkpoints.write(path, {"a": torch.arange(5.0)}))
    assert [dict(stored)["a"].sum().item() for _ in range(3)] == [10, 10, 10]


def test_equal_parameters_give_equal_bytes_whatever_their_order() -> None:
    a, b = torch.randn(3), torch.randn(2)
    assert checkpoints.to_bytes({"a": a, "b": b}) == checkpoints.to_bytes({"b": b, "a": a})


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    sha256 = checkpoints.write(path, {"a": torch.ones(4)})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptCheckpoint, match=sha256):
        checkpoints.read(path, sha256)


def test_a_pickle_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    torch.save({"a": torch.ones(4)}, path)
    with pytest.raises(CorruptCheckpoint, match="not a safetensors file"):
        checkpoints.read(path, sha256_of(path.read_bytes()))


def test_other_types_than_float32_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(CorruptCheckpoint, match="float32"):
        checkpoints.read(path, checkpoints.write(path, {"a": torch.ones(4, dtype=torch.float64)}))
