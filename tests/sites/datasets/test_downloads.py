"""Downloads from a real local server that breaks the connection, ignores ranges, or has another file."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from sites.datasets.downloads import DownloadFailed, Source, fetch, unpacked
from sites.datasets.public_sets import DECATHLON, PICTURES

CONTENT = bytes(range(256)) * 20_000


@dataclass
class Publisher:
    """Behaviour of the server, and the requests that it got."""

    url: str = ""
    content: bytes = CONTENT
    breaks_after: list[int] = field(default_factory=list)
    knows_ranges: bool = True
    status: int | None = None
    asked: list[str | None] = field(default_factory=list)
    sent: int = 0

    @property
    def source(self) -> Source:
        return Source(f"{self.url}/set.npz", hashlib.md5(CONTENT).hexdigest())


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    state = Publisher()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.asked.append(asked)
            if state.status:
                self.send_error(state.status)
                return
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state.knows_ranges else 0
            if start >= len(state.content) and start:
                self.send_error(416)
                return
            data = state.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if state.breaks_after:
                data = data[: state.breaks_after.pop(0)]
                self.close_connection = True
            state.sent += len(data)
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()


def quietly(have: int, of: int | None) -> None:
    pass


def test_a_file_is_fetched_once_and_its_progress_told(publisher: Publisher, tmp_path: Path) -> None:
    progress: list[tuple[int, int | None]] = []
    for _ in range(2):
        path = fetch(publisher.source, tmp_path, lambda have, of: progress.append((have, of)))
        assert path.read_bytes() == CONTENT
    assert publisher.asked == [None]
    assert progress[-1] == (len(CONTENT), len(CONTENT))
    assert [path.name for path in tmp_path.iterdir()] == ["set.npz"]


def test_a_broken_download_goes_on_where_it_stopped(publisher: Publisher, tmp_path: Path) -> None:
    publisher.breaks_after = [2_000_000, 1_500_000]
    path = fetch(publisher.source, tmp_path, quietly, wait_s=0.01)
    assert path.read_bytes() == CONTENT
    assert publisher.asked[0] is None
    assert len(publisher.asked) == 3
    assert publisher.sent < 1.5 * len(CONTENT)  # bytes that had arrived were not requested again


def test_the_next_call_goes_on_after_the_last_try(publisher: Publisher, tmp_path: Path) -> None:
    publisher.breaks_after = [1_200_000] + [0] * 4
    with pytest.raises(DownloadFailed, match="broke 5 times"):
        fetch(publisher.source, tmp_path, quietly, wait_s=0.001)
    have = (tmp_path / "set.npz.part").stat().st_size
    assert have > 1_000_000
    assert fetch(publisher.source, tmp_path, quietly).read_bytes() == CONTENT
    assert publisher.asked[-1] == f"bytes={have}-"


def test_a_server_without_ranges_sends_all_of_it_again(publisher: Publisher, tmp_path: Path) -> None:
    publisher.knows_ranges = False
    (tmp_path / "set.npz.part").write_bytes(CONTENT[:100])
    assert fetch(publisher.source, tmp_path, quietly).read_bytes() == CONTENT


def test_a_complete_part_is_kept_without_asking_for_more(publisher: Publisher, tmp_path: Path) -> None:
    (tmp_path / "set.npz.part").write_bytes(CONTENT)
    assert fetch(publisher.source, tmp_path, quietly).read_bytes() == CONTENT
    assert publisher.sent == 0


def test_another_file_is_deleted_and_named(publisher: Publisher, tmp_path: Path) -> None:
    publisher.content = b"other" + CONTENT[5:]
    with pytest.raises(DownloadFailed, match="expected a file with the MD5"):
        fetch(publisher.source, tmp_path, quietly)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_refusal_is_told_at_once(status: int, publisher: Publisher, tmp_path: Path) -> None:
    publisher.status = status
    with pytest.raises(DownloadFailed, match=str(status)):
        fetch(publisher.source, tmp_path, quietly)
    assert len(publisher.asked) == 1


def tar_of(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def test_an_archive_is_unpacked_once(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "a.tar", ("Task/dataset.json", b"{}"), ("Task/x/y", b"1"))
    for _ in range(2):
        assert (unpacked(archive) / "x" / "y").read_bytes() == b"1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Task", "a.tar"]


@pytest.mark.parametrize("name", ["../evil", "Task/../../evil", "/evil"])
def test_an_archive_that_leads_out_of_its_folder_writes_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    archive = tar_of(tmp_path / "in" / "a.tar", ("Task/dataset.json", b"{}"), (name, b"1"))
    with suppress(DownloadFailed):
        unpacked(archive)
    inside = tmp_path / "in" / "Task"
    assert not [path for path in tmp_path.rglob("evil") if not path.is_relative_to(inside)]
    assert not Path("/evil").exists()


def test_what_macos_adds_is_no_second_folder_and_two_folders_are_refused(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "a.tar", ("./._Task", b"x"), ("./Task/dataset.json", b"{}"))
    assert unpacked(archive).name == "Task"
    archive = tar_of(tmp_path / "b.tar", ("One/a", b"x"), ("Two/b", b"x"))
    with pytest.raises(DownloadFailed, match="one folder"):
        unpacked(archive)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Task", "a.tar", "b.tar"]


def test_damaged_archives_are_errors(tmp_path: Path) -> None:
    for content in (b"", b"no archive", b"\0" * 2048):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(DownloadFailed, match="expected an archive"):
            unpacked(tmp_path / "a.tar")


def test_every_public_set_has_an_address_and_a_sum() -> None:
    sources = [*DECATHLON.values(), *(each.source for each in PICTURES.values())]
    assert {"hippocampus", "prostate", "spleen"} <= DECATHLON.keys()
    for source in sources:
        assert source.url.startswith("https://")
        assert source.name.endswith((".tar", ".npz"))
        assert len(bytes.fromhex(source.md5)) == 16


@pytest.mark.parametrize("name", ["hippocampus", "prostate", "pneumonia", "chest"])
def test_the_command_fetches_from_a_mirror_and_says_what_is_wrong_with_it(
    name: str, publisher: Publisher, tmp_path: Path
) -> None:
    where = ["--downloads", str(tmp_path / "d"), "--out", str(tmp_path / "wards")]
    result = CliRunner().invoke(app, ["data", name, "--download", "--mirror", publisher.url, *where])
    assert result.exit_code == 2
    assert "expected a file with the MD5" in result.output
    assert len(publisher.asked) == 1
    assert not (tmp_path / "wards").exists()
    result = CliRunner().invoke(app, ["data", name, *where])
    assert result.exit_code == 2
    assert "--download to fetch it" in result.output
