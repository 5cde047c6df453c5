"""Machines of hospitals for tests: network namespaces with one cable each, services that are kept up."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def bridge(name: str, address: str) -> Iterator[None]:
    """Make a network between the coordinator, at `address`, and hospitals."""
    ip("link", "add", name, "type", "bridge")
    try:
        ip("address", "add", address, "dev", name)
        ip("link", "set", name, "up")
        yield
    finally:
        ip("link", "delete", name)


@contextmanager
def namespace(name: str, link: str, network: str, address: str) -> Iterator[None]:
    """Make a network namespace with one link to a bridge, isolated from the other hospitals' links."""
    ip("netns", "add", name)
    try:
        ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", link, "master", network)
        subprocess.run(["bridge", "link", "set", "dev", link, "isolated", "on"], check=True)
        ip("link", "set", link, "up")
        ip("-n", name, "address", "add", address, "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        ip("netns", "delete", name)


def has_namespaces() -> bool:
    """Return whether this process may make network namespaces."""
    name = f"wr{os.getpid()}p"
    try:
        with bridge(name, "10.209.0.1/24"), namespace(f"{name}-0", f"{name}0", name, "10.209.0.2/24"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


needs_namespaces = pytest.mark.skipif(
    not has_namespaces(), reason="network namespaces need root and iproute2"
)


@dataclass
class Service:
    """A command that is started again a second after it has died, until it is stopped or `is_done`."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    log: Path
    user: str | None = None
    is_done: Callable[[], bool] = lambda: False
    _process: "subprocess.Popen[bytes] | None" = None
    _stopped: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> "Service":
        """Start it, and keep it alive."""
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()
        return self

    def _keep(self) -> None:
        while not self._stopped.is_set() and not self.is_done():
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    self.command, env=dict(self.environment), cwd=self.folder, stdout=log, stderr=log,
                    stdin=subprocess.DEVNULL, start_new_session=True, user=self.user,
                )  # fmt: skip
            self._process.wait()
            self._stopped.wait(1)

    @property
    def is_over(self) -> bool:
        """Whether it has ended for good."""
        return self._thread is not None and not self._thread.is_alive()

    @property
    def pid(self) -> int | None:
        """Its process, while there is one."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def kill(self, *, alone: bool = False) -> bool:
        """Kill its process, and those of its session unless `alone`; return whether there was one."""
        if (pid := self.pid) is None:
            return False
        with suppress(ProcessLookupError):
            (os.kill if alone else os.killpg)(pid, signal.SIGKILL)
        return True

    def stop(self, *, alone: bool = False) -> None:
        """Kill it for good."""
        self._stopped.set()
        self.kill(alone=alone)
        if self._thread:
            self._thread.join()
