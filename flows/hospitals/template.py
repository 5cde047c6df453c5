"""Hospitals' processes from a template: one process that imports everything and is forked for each.

Without it each process imports torch, MONAI and Opacus for itself. Where a system has no descriptors of
processes (Linux has), or the template has ended, processes are started one by one.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from sites.template import THREADS, has_one_thread, split_off

CODE = Path(__file__).parents[2]
"""The folder of the packages, from which hospitals' processes import."""
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
"""The environment variables that a hospital's process gets: no secrets, nothing of other hospitals."""
PRIVATE = ("sites.training.dp_sgd", "privacy.accountants")
"""What hospitals import to train under differential privacy alone; it takes more than a second."""
LARGEST_REPLY = 2**12


class TemplateEnded(Exception):
    """There is no template to fork."""


@dataclass
class Forked:
    """A process that a template has forked, with what is used here of `subprocess.Popen`."""

    pid: int
    stdin: IO[str]
    stdout: IO[str]
    _descriptor: int

    def poll(self) -> int | None:
        """Return 0 if the process has ended, however it did, else None."""
        return 0 if self._has_ended(0) else None

    def wait(self) -> int:
        """Wait until the process has ended."""
        self._has_ended(None)
        return 0

    def _has_ended(self, timeout_ms: int | None) -> bool:
        if self._descriptor < 0:
            return True
        watched = select.poll()
        watched.register(self._descriptor, select.POLLIN)
        if not watched.poll(timeout_ms):
            return False
        os.close(self._descriptor)
        self._descriptor = -1
        return True


@dataclass(frozen=True)
class _Child:
    """A forked child of this process, with what is used here of `subprocess.Popen`."""

    pid: int

    def kill(self) -> None:
        """Kill it."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Wait until it has ended."""
        os.waitpid(self.pid, 0)


@dataclass
class Template:
    """The process that is forked.

    Attributes:
        environment: the template's own.
        modules: what it imports for its next forks, beside `sites.worker.load`.
    """

    environment: Mapping[str, str]
    modules: Sequence[str] = ()
    _process: "subprocess.Popen[bytes] | _Child | None" = None
    _connection: socket.socket | None = None
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Start the template, so that it imports its libraries; do nothing where it can't be used."""
        if not hasattr(os, "pidfd_open"):
            return
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "sites.template", str(other.fileno())],
                env={**self.environment, **THREADS, "PYTHONPATH": str(CODE)},
                cwd="/",
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._connection = own

    def split_off(self) -> None:
        """Import the hospitals' libraries in this process, and fork the template from it.

        Where this process has several threads, the template starts as another program.
        """
        os.environ.update({**THREADS, **os.environ})
        if not hasattr(os, "pidfd_open") or not has_one_thread():
            self.start()
            return
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self._process = _Child(split_off(other, self.environment))
        self._connection = own

    def forked(
        self, folder: Path, arguments: Sequence[str], environment: Mapping[str, str]
    ) -> Forked:  # fmt: skip
        """Return a hospital's process; waits for the template's imports, `modules` among them.

        Raises:
            TemplateEnded: there is no template, or it has ended.
        """
        request = {
            "folder": str(folder.resolve()),
            "arguments": list(arguments),
            "environment": dict(environment),
            "modules": list(self.modules),
        }
        with self._one_at_a_time:
            if self._connection is None:
                raise TemplateEnded
            to_child, from_child = os.pipe(), os.pipe()
            pipes = [to_child[0], from_child[1]]
            try:
                socket.send_fds(self._connection, [json.dumps(request).encode()], pipes)
                reply, found, _, _ = socket.recv_fds(self._connection, LARGEST_REPLY, 1)
                if not reply:
                    raise OSError
            except OSError:
                self._close_connection()
                for end in (to_child[1], from_child[0]):
                    os.close(end)
                raise TemplateEnded from None
            finally:
                for end in pipes:
                    os.close(end)
        stdin, stdout = os.fdopen(to_child[1], "w"), os.fdopen(from_child[0])
        return Forked(json.loads(reply)["pid"], stdin, stdout, found[0] if found else -1)

    def _close_connection(self) -> None:
        """Tell the template to end."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        """End the template; processes that it has forked go on."""
        if self._process is not None:
            self._process.kill()  # first: whoever waits for its answer goes on
            self._process.wait()
            self._process = None
        self._close_connection()


@contextmanager
def started_template(*, shares: bool = False) -> Iterator[Template]:
    """Start a template, end it afterwards.

    Args:
        shares: this process imports what hospitals need and forks the template; otherwise the template
            imports it meanwhile. It is asked before this process has threads.
    """
    template = Template({name: os.environ[name] for name in PASSED_ON if name in os.environ})
    if shares:
        template.split_off()
    else:
        template.start()
    try:
        yield template
    finally:
        template.close()
