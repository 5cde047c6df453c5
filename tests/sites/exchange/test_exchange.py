from pathlib import Path

import fsspec
import pytest

from models.checkpoints import CorruptCheckpoint
from sites.exchange.exchange import AlreadyWritten, Exchange


@pytest.fixture(params=["folder", "memory"])
def exchange(request: pytest.FixtureRequest, tmp_path: Path) -> Exchange:
    if request.param == "folder":
        return Exchange(str(tmp_path / "exchange"))
    fsspec.filesystem("memory").store.clear()
    return Exchange("memory://exchange")


def test_an_object_is_found_by_its_sha256(exchange: Exchange, tmp_path: Path) -> None:
    sha256 = exchange.put_object(b"tensors", "north")
    exchange.fetch_object(sha256, "north", tmp_path / "copy", 100)
    assert (tmp_path / "copy").read_bytes() == b"tensors"


def test_laying_down_the_same_again_changes_nothing(exchange: Exchange) -> None:
    assert exchange.put_object(b"x", "north") == exchange.put_object(b"x", "north")
    exchange.put_statement("statements/north/r.001.contribute", b"{}")
    exchange.put_statement("statements/north/r.001.contribute", b"{}")
    assert exchange.statement("statements/north/r.001.contribute") == b"{}"


def test_nothing_there_is_ever_replaced(exchange: Exchange) -> None:
    exchange.put_statement("statements/north/r.001.contribute", b"first")
    with pytest.raises(AlreadyWritten, match="the same bytes"):
        exchange.put_statement("statements/north/r.001.contribute", b"second")
    assert exchange.statement("statements/north/r.001.contribute") == b"first"


def test_a_missing_statement_is_none_and_a_missing_object_an_error(
    exchange: Exchange, tmp_path: Path
) -> None:
    assert exchange.statement("statements/north/r.001.contribute") is None
    with pytest.raises(FileNotFoundError):
        exchange.fetch_object("0" * 64, "north", tmp_path / "copy", 100)


def test_an_object_with_other_content_than_its_name_is_refused(tmp_path: Path) -> None:
    exchange = Exchange(str(tmp_path / "exchange"))
    sha256 = exchange.put_object(b"x", "north")
    (tmp_path / "exchange" / "objects" / "north" / sha256).write_bytes(b"y")
    with pytest.raises(CorruptCheckpoint):
        exchange.fetch_object(sha256, "north", tmp_path / "copy", 100)
    assert not (tmp_path / "copy").exists()


def test_more_bytes_than_expected_are_not_read(exchange: Exchange, tmp_path: Path) -> None:
    sha256 = exchange.put_object(b"x" * 101, "north")
    with pytest.raises(CorruptCheckpoint, match="at most 100 bytes"):
        exchange.fetch_object(sha256, "north", tmp_path / "copy", max_bytes=100)
    exchange.put_statement("statements/north/r.001.contribute", b" " * (2**20 + 1))
    with pytest.raises(CorruptCheckpoint, match="at most"):
        exchange.statement("statements/north/r.001.contribute")
