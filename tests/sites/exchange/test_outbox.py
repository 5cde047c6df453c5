from pathlib import Path

import pytest

from models.errors import CorruptCheckpoint
from sites.exchange.outbox import Outbox


def test_files_are_kept_by_their_content_and_cannot_be_written(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    sha256 = outbox.put_tensors(lambda path: path.write_bytes(b"data"))
    assert outbox.put_tensors(lambda path: path.write_bytes(b"data")) == sha256
    (file,) = outbox.folder.iterdir()
    assert file.name == f"{sha256}.safetensors"
    assert file.stat().st_mode & 0o777 == 0o400
    assert outbox.tensors(sha256).read_bytes() == b"data"


def test_a_changed_file_is_not_given_out(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    told = outbox.put_statement(b"{}")
    sent = outbox.put_tensors(lambda path: path.write_bytes(b"data"))
    for file in outbox.folder.iterdir():
        file.chmod(0o600)
        file.write_bytes(b"[]")
    with pytest.raises(CorruptCheckpoint, match="was changed"):
        outbox.statement(told)
    with pytest.raises(CorruptCheckpoint, match="was changed"):
        outbox.tensors(sent)


def test_tensors_that_cant_be_written_leave_nothing(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "no space left")

    with pytest.raises(OSError, match="no space left"):
        outbox.put_tensors(fail)
    assert list(outbox.folder.iterdir()) == []
