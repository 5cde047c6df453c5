"""A process that has imported everything, and forks a hospital's process for each request.

It reads requests from a socket: a hospital's folder, arguments for `sites.worker`, an environment, and
modules to import first, with the two ends of its pipes. Importing takes seconds and a fork hundredths of
one. It forks while it has one thread and no hospital's data: each process has its own folder,
environment and session, and ends when its standard input closes. The template ends when the socket
closes; hospitals' processes then go on until their own pipes close. It is itself a fork of whoever has
imported everything already (`split_off`), or `python -m sites.template FD`, where FD is the socket.
"""

import ctypes
import gc
import json
import os
import random
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from sites import worker

LARGEST_REQUEST = 2**17
"""Bytes of the largest request."""


THREADS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""Variables with which OpenBLAS and pyarrow, which MONAI imports, start no thread when imported."""


def main() -> None:
    """Import everything, and fork processes until the socket closes."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    gc.disable()
    worker.load()
    gc.enable()
    _serve(connection)


def has_one_thread() -> bool:
    """Return whether this process may fork: another thread's locks would stay locked in the child."""
    return len(os.listdir("/proc/self/task")) == 1


def split_off(connection: socket.socket, environment: Mapping[str, str]) -> int:
    """Import everything here, fork a template that serves `connection`, and return its process id.

    The template keeps nothing of this process but its modules: no environment, no open file.
    """
    gc.disable()  # nothing of what is imported is garbage
    worker.load()
    gc.freeze()  # and it is never searched for garbage: a search would copy it into each process
    gc.enable()
    if pid := os.fork():
        return pid
    try:
        os.setsid()
        _forget_environment()
        os.environ.update(environment)
        own = os.dup2(connection.detach(), 3)
        os.closerange(4, 2**16)
        for standard in range(3):
            os.dup2(os.open(os.devnull, os.O_RDWR), standard)
        os.closerange(4, 2**16)
        os.chdir("/")
        _serve(socket.socket(fileno=own))
    finally:
        os._exit(0)


def _forget_environment() -> None:
    """Erase the environment with which this process began, also where the system shows it."""
    os.environ.clear()
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[47]), int(fields[48])  # env_start and env_end, fields 50 and 51 of proc(5)
    ctypes.memset(start, 0, end - start)


def _serve(connection: socket.socket) -> None:
    """Fork processes until the socket closes."""
    worker.warm_up()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps what has ended
    while True:
        data, pipes, _, _ = socket.recv_fds(connection, LARGEST_REQUEST, 2)
        if not data:
            return
        request = json.loads(data)
        for name in request["modules"]:
            import_module(name)
        pid, ended = _forked(request, pipes, connection)
        socket.send_fds(connection, [json.dumps({"pid": pid}).encode()], [ended] if ended >= 0 else [])
        for each in (*pipes, *([ended] if ended >= 0 else [])):
            os.close(each)


def _forked(request: dict[str, Any], pipes: Sequence[int], connection: socket.socket) -> tuple[int, int]:
    """Return a new process's id and a descriptor that tells its end, -1 if it has ended already.

    Raises:
        RuntimeError: there is more than one thread: another one's locks would stay locked in the child.
    """
    if not has_one_thread():
        raise RuntimeError("expected one thread")
    pid = os.fork()
    if pid == 0:
        try:
            connection.close()
            _become(request, pipes)
        finally:
            os._exit(1)
    try:
        return pid, os.pidfd_open(pid)
    except ProcessLookupError:
        return pid, -1


def _become(request: dict[str, Any], pipes: Sequence[int]) -> None:
    """Be a hospital's process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    nothing = os.open(os.devnull, os.O_WRONLY)
    for own, standard in zip((*pipes, nothing), range(3), strict=True):
        os.dup2(own, standard)
        os.close(own)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, closefd=False)  # noqa: SIM115  # a descriptor, as long as the process
        for number, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    os.chdir(Path(request["folder"]))
    os.environ.clear()
    os.environ.update(request["environment"])
    random.seed()
    worker.main(request["arguments"])


if __name__ == "__main__":
    main()
