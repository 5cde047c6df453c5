from pathlib import Path

import pytest

from models.errors import CorruptCheckpoint
from sites.exchange.outbox import Outbox


def test_files_are_kept_by_their_content_and_cannot_be_written(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    sha256 = outbox.put_tensors(b"data")
    assert outbox.put_tensors(b"data") == sha256
    (file,) = outbox.folder.iterdir()
    assert file.name == f"{sha256}.safetensors"
    assert file.stat().st_mode & 0o777 == 0o400
    assert outbox.tensors(sha256) == b"data"


def test_a_changed_file_is_not_given_out(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    sha256 = outbox.put_statement(b"{}")
    (file,) = outbox.folder.iterdir()
    file.chmod(0o600)
    file.write_bytes(b"[]")
    with pytest.raises(CorruptCheckpoint, match="was changed"):
        outbox.statement(sha256)
