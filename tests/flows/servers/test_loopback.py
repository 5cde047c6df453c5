import os
import signal
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import requests

from flows.runs.paths import Home
from flows.servers.environment import prefect_server
from flows.servers.loopback import PortTaken, Server, ServerError, reach_loopback, running, url_of

USER = """
import sys
from pathlib import Path
from flows.servers.loopback import Server, running
folder = Path(sys.argv[1])
server = Server(folder, [sys.executable, "-m", "http.server", "{port}", "--bind", "127.0.0.1"], "/", {})
with running(server) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


def http_server(folder: Path) -> Server:
    command = [sys.executable, "-m", "http.server", "{port}", "--bind", "127.0.0.1"]
    return Server(folder, command, "/", {}, timeout_s=20)


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return reply.status == 200
    except OSError:
        return False


def is_down_soon(url: str) -> bool:
    for _ in range(100):
        if not is_up(url):
            return True
        time.sleep(0.1)
    return False


def test_a_server_stops_after_its_last_user_and_starts_again(tmp_path: Path) -> None:
    with running(http_server(tmp_path)) as first:
        with running(http_server(tmp_path)) as second:
            assert first == second
        time.sleep(1.2)
        assert is_up(first)
    assert is_down_soon(first)
    with running(http_server(tmp_path)) as again:
        assert is_up(again)


def test_users_that_come_at_once_share_one_server(tmp_path: Path) -> None:
    def use(_: int) -> str:
        with running(http_server(tmp_path)) as url:
            time.sleep(1)
            return url

    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(use, range(4)))) == 1


def test_a_server_stops_when_its_only_user_is_killed(tmp_path: Path) -> None:
    user = subprocess.Popen(
        [sys.executable, "-c", USER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    url = user.stdout.readline().strip()
    assert is_up(url)
    os.kill(user.pid, signal.SIGKILL)
    user.wait()
    assert is_down_soon(url)


def test_a_server_that_ends_at_once_is_an_error_that_names_its_log(tmp_path: Path) -> None:
    broken = Server(tmp_path, [sys.executable, "-c", "raise SystemExit(3)"], "/", {}, timeout_s=20)
    with pytest.raises(ServerError, match="server.log"), running(broken):
        pass


def test_a_server_is_looked_after_by_a_process_that_imports_no_torch() -> None:
    said = (
        "import sys, flows.servers.loopback; "
        "print(sorted({'torch', 'numpy', 'mlflow'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("known", ["", "hub.example.org"])
def test_a_server_on_loopback_is_reached_where_a_proxy_is_set(
    known: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy at which nobody answers; later clients and children go past it, too."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, known)
    with running(http_server(tmp_path)) as url:
        assert httpx.get(url).status_code == 200
        assert requests.get(url, timeout=5).status_code == 200
        code = f"import urllib.request as u; print(u.urlopen({url!r}).status)"
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert child.stdout.strip() == "200"
        assert os.environ["NO_PROXY"].split(",")[: bool(known)] == [known][: bool(known)]


def test_where_nothing_goes_through_a_proxy_it_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("NO_PROXY", "example.org")
    reach_loopback()
    assert os.environ["no_proxy"] == "*"
    assert os.environ["NO_PROXY"].startswith("example.org,127.0.0.1")


def test_a_port_that_another_program_has_is_refused_before_its_answers_are_taken_for_ours(
    tmp_path: Path,
) -> None:
    with running(http_server(tmp_path / "theirs")) as theirs:
        port = int(theirs.rpartition(":")[2])
        with (
            pytest.raises(PortTaken, match=f"Port {port} of this machine is taken"),
            running(http_server(tmp_path / "ours"), port),
        ):
            pass
        with running(http_server(tmp_path / "theirs"), port) as same:  # the folder's own
            assert same == theirs


def test_prefects_pages_ask_the_server_that_they_are_on(tmp_path: Path) -> None:
    with running(prefect_server(Home(tmp_path))) as url:
        assert httpx.get(f"{url}/ui-settings").json()["api_url"] == f"{url}/api"


def test_an_address_that_a_killed_server_left_is_not_taken_for_this_folders(tmp_path: Path) -> None:
    for name in ("own", "other", "copy"):
        (tmp_path / name).mkdir()
    own, other, copied = (http_server(tmp_path / name) for name in ("own", "other", "copy"))
    with running(own) as left:
        stale = (own.folder / "address.json").read_bytes()
        (copied.folder / "address.json").write_bytes(stale)
        (copied.folder / "serving.lock").touch()
        assert url_of(own) == left
        assert url_of(copied) is None  # a copied folder has no server of its own
    assert is_down_soon(left)
    port = int(left.rpartition(":")[2])
    with running(other, port) as taken:
        assert taken == left
        (own.folder / "address.json").write_bytes(stale)  # as a kill of both leaves it
        assert url_of(own) is None
        with running(own) as again:
            assert again != taken


def test_a_server_whose_supervisor_was_killed_is_joined_and_not_started_twice(tmp_path: Path) -> None:
    server = http_server(tmp_path)
    with running(server) as url:
        (supervisor,) = (
            int(process.name)
            for process in Path("/proc").iterdir()
            if process.name.isdigit() and is_supervisor_of(process, tmp_path)
        )
        os.kill(supervisor, signal.SIGKILL)
        assert url_of(server) == url
        (orphan,) = (
            int(process.name)
            for process in Path("/proc").iterdir()
            if process.name.isdigit() and f"\0{url.rpartition(':')[2]}\0".encode() in command_of(process)
        )
        os.kill(orphan, signal.SIGKILL)
    assert is_down_soon(url)
    assert url_of(server) is None


def command_of(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def is_supervisor_of(process: Path, folder: Path) -> bool:
    command = command_of(process)
    return b"flows.servers.loopback" in command and str(folder).encode() in command
