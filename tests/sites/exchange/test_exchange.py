import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from models.errors import CorruptCheckpoint
from sites.exchange.exchange import AlreadyWritten, Exchange
from sites.exchange.places import Place
from sites.exchange.storage import Filesystem, Source, read

PLACE = Place.statement("r", 1, "contribute", "north")


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
    exchange.put_statement(PLACE, b"{}")
    exchange.put_statement(PLACE, b"{}")
    assert exchange.statement(PLACE) == b"{}"


def test_nothing_there_is_ever_replaced(exchange: Exchange) -> None:
    exchange.put_statement(PLACE, b"first")
    with pytest.raises(AlreadyWritten, match="the same bytes"):
        exchange.put_statement(PLACE, b"second")
    assert exchange.statement(PLACE) == b"first"


def test_a_missing_statement_is_none_and_a_missing_object_an_error(
    exchange: Exchange, tmp_path: Path
) -> None:
    assert exchange.statement(PLACE) is None
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
    exchange.put_statement(PLACE, b" " * (2**20 + 1))
    with pytest.raises(CorruptCheckpoint, match="at most"):
        exchange.statement(PLACE)


def is_mine(data: bytes) -> bool:
    return data.startswith(b"mine")


@pytest.mark.parametrize("other", [b"{}", b" " * (2**20 + 1)])
def test_what_others_leave_at_a_place_does_not_occupy_it(exchange: Exchange, other: bytes) -> None:
    exchange.put_statement(PLACE, other, is_mine)
    for _ in range(2):
        found = exchange.put_statement(PLACE, b"mine", is_mine)
    assert found == PLACE.marked(hashlib.sha256(b"mine").hexdigest())
    assert list(exchange.answers(PLACE)) == [other if len(other) < 9 else b"", b"mine"]
    assert exchange.statements_of("north") == {PLACE, found}
    with pytest.raises(AlreadyWritten):
        exchange.put_statement(PLACE, b"mine, another", is_mine)


def test_a_file_that_cannot_be_opened_is_an_error_of_its_place_alone(tmp_path: Path) -> None:
    exchange = Exchange(str(tmp_path / "exchange"))
    path = tmp_path / "exchange" / f"{PLACE}.json"
    path.parent.mkdir(parents=True)
    path.symlink_to(path)
    assert exchange.answer(PLACE) == b""
    assert exchange.signed_answer(PLACE, ["0" * 64]) is None


def test_an_object_is_found_beside_another_file_of_its_name(exchange: Exchange, tmp_path: Path) -> None:
    sha256 = hashlib.sha256(b"tensors").hexdigest()
    exchange._storage.write_new(f"objects/north/{sha256}", Source(b"other"))
    with pytest.raises(CorruptCheckpoint):
        exchange.object(sha256, "north", 100)
    for _ in range(2):
        exchange.put_object(b"tensors", "north")
    exchange.fetch_object(sha256, "north", tmp_path / "copy", 100)
    assert (tmp_path / "copy").read_bytes() == b"tensors"


def test_of_two_writers_at_once_one_wins_and_its_bytes_stay(tmp_path: Path) -> None:
    """Both have looked, and found no file, before either writes."""
    looked = threading.Barrier(2, timeout=30)
    storage = Exchange(str(tmp_path / "exchange"))._storage

    class Slow(type(storage.filesystem)):  # type: ignore[misc]
        def exists(self, path: str, **kwargs: object) -> bool:
            found = super().exists(path, **kwargs)
            if not found and threading.current_thread() is not threading.main_thread():
                looked.wait()
            return bool(found)

    def write(data: bytes) -> bool:
        try:
            Filesystem(Slow(skip_instance_cache=True), storage.root).write_new("a/b", Source(data))
        except FileExistsError:
            return False
        return True

    content = [bytes([number]) * 100_000 for number in (1, 2)]
    with ThreadPoolExecutor(2) as threads:
        won = list(threads.map(write, content))
    assert sorted(won) == [False, True]
    assert read(storage, "a/b", 100_000) == content[won.index(True)]
    assert storage.names("a") == {"b"}
