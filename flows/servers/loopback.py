"""Servers on loopback that start with their first user and stop after their last one.

A small supervisor process runs each server. Users hold a shared lock on a file, which the kernel
releases even when a user is killed. When the supervisor gets that lock exclusively, no user is left, and
it stops the server. Supervisor and server hold another lock as long as one of them lives: without it an
address is that of a server that was killed, and may be another folder's by now.
`python -m flows.servers.loopback SERVER` is that supervisor (`Server` as JSON).
"""

import fcntl
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from pydantic import TypeAdapter

from flows.servers.first_database import FirstDatabase, ServerError
from models.errors import FixYourInput
from models.files import write_atomically


class PortTaken(FixYourInput):
    """A port that was asked for is another program's."""


SERVING = "serving.lock"
"""The file that a server and its supervisor hold locked."""
LOOPBACK = "127.0.0.1"
DIRECT = (LOOPBACK, "localhost", "::1")
"""Hosts that no proxy can reach for this machine."""


@dataclass(frozen=True)
class Server:
    """The description of a server.

    Attributes:
        folder: the place of its lock files, address and log.
        command: its command line, with `{port}` for the port.
        health: the path that answers 200 once it serves.
        environment: added to the process's own, with `{port}` for the port.
        database: a database that it finds at its very first start.
    """

    folder: Path
    command: Sequence[str]
    health: str
    environment: Mapping[str, str]
    database: FirstDatabase | None = None
    timeout_s: float = 180


@contextmanager
def running(server: Server, port: int | None = None) -> Iterator[str]:
    """Join the server if it runs, else start it; yield its URL; leave it at the end.

    Raises:
        ServerError: it ended or did not answer in time.
    """
    with starting(server, port) as started:
        yield started.ready()


@dataclass
class Starting:
    """A server that runs or is being started; `url` is its address already."""

    server: Server
    url: str
    _start: IO[str]
    _supervisor: "subprocess.Popen[bytes] | None"

    def ready(self) -> str:
        """Return the server's URL once it answers.

        Raises:
            ServerError: it ended or did not answer in time.
        """
        if self._supervisor is not None:
            _wait_for(self.server, self.url, self._supervisor)
            self._supervisor = None
        self._start.close()  # others may join
        return self.url


@contextmanager
def starting(server: Server, port: int | None = None) -> Iterator[Starting]:
    """Join the server if it runs, else begin to start it; yield at once; leave it at the end."""
    server.folder.mkdir(parents=True, exist_ok=True)
    reach_loopback()
    with (
        (server.folder / "users.lock").open("w") as users,
        (server.folder / "start.lock").open("w") as start,
    ):
        fcntl.flock(start, fcntl.LOCK_EX)
        fcntl.flock(users, fcntl.LOCK_SH)  # waits for a supervisor that is stopping its server
        if running_already := _running_url(server):
            start.close()
            yield Starting(server, running_already, start, None)
            return
        free = port or _free_port()
        _check_free(free)
        yield Starting(server, _url(free), start, _begin(server, free))


def url_of(server: Server) -> str | None:
    """Return the URL of a running server, None if it does not run; start nothing."""
    return _running_url(server)


def _running_url(server: Server) -> str | None:
    if not _is_served(server):
        return None
    try:
        url: str = json.loads((server.folder / "address.json").read_text())["url"]
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return url if _answers(url + server.health) else None


def _is_served(server: Server) -> bool:
    """Return whether a server of this very folder lives, or its supervisor."""
    try:
        with (server.folder / SERVING).open("r") as serving:
            fcntl.flock(serving, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _url(port: int) -> str:
    return f"http://{LOOPBACK}:{port}"


def _begin(server: Server, port: int) -> "subprocess.Popen[bytes]":
    """Return the supervisor of a server that is being started."""
    command = [part.format(port=port) for part in server.command]
    environment = {k: v.replace("{port}", str(port)) for k, v in server.environment.items()}
    told = json.dumps({**asdict(server), "command": command, "environment": {}}, default=str)
    with (server.folder / "server.log").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "flows.servers.loopback", told],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _wait_for(server: Server, url: str, supervisor: "subprocess.Popen[bytes]") -> None:
    """Wait until a server that is being started answers, and store its address."""
    deadline = time.monotonic() + server.timeout_s
    while not _answers(url + server.health):
        if supervisor.poll() is not None or time.monotonic() > deadline:
            log = server.folder / "server.log"
            raise ServerError(f"The server did not start on {url}; see {log}.")
        time.sleep(0.1)
    write_atomically(server.folder / "address.json", json.dumps({"url": url}).encode())


def reach_loopback() -> None:
    """Let this process and its children reach loopback directly, also where a proxy is set."""
    for name in ("no_proxy", "NO_PROXY"):
        named = [each.strip() for each in os.environ.get(name, "").split(",") if each.strip()]
        if "*" in named:
            continue  # everything is reached directly already; a longer list would undo that
        os.environ[name] = ",".join(dict.fromkeys([*named, *DIRECT]))


def _answers(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _check_free(port: int) -> None:
    """Raise `PortTaken` if another program listens on a port: it would answer in this server's place."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            raise PortTaken(
                f"Port {port} of this machine is taken, perhaps by the server of another folder. Take "
                f"another one with --port."
            ) from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def supervise(server: Server) -> int:
    """Run a server until it ends or its last user has gone; return its exit status."""
    if server.database:
        server.database.lay(server.folder / "server.log")
    with (
        (server.folder / "users.lock").open("w") as users,
        (server.folder / SERVING).open("w") as serving,
    ):
        fcntl.flock(serving, fcntl.LOCK_EX)
        process = subprocess.Popen(server.command, pass_fds=[serving.fileno()])
        while process.poll() is None:
            time.sleep(0.5)
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
        (server.folder / "address.json").unlink(missing_ok=True)
    return process.wait()


if __name__ == "__main__":
    sys.exit(supervise(TypeAdapter(Server).validate_json(sys.argv[1])))
