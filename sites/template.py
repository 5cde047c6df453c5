"""A process that has imported everything, and forks a hospital's process for each request.

`python -m sites.template FD` reads requests from the socket FD: a hospital's folder, arguments
for `sites.worker` and an environment, with the two ends of its pipes. Importing takes seconds and a fork
hundredths of one. It forks while it has one thread and no hospital's data: each process has its own
folder, environment and session, and ends when its standard input closes. The template ends when the
socket closes; hospitals' processes then go on until their own pipes close.
"""

import gc
import json
import os
import random
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sites import worker

LARGEST_REQUEST = 2**17
"""Bytes of the largest request."""


def main() -> None:
    """Fork processes until the socket closes."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    worker.load()
    gc.collect()
    gc.freeze()  # what every process has: a collection in one of them copies none of it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps what has ended
    while True:
        data, pipes, _, _ = socket.recv_fds(connection, LARGEST_REQUEST, 2)
        if not data:
            return
        pid, ended = _forked(json.loads(data), pipes, connection)
        socket.send_fds(connection, [json.dumps({"pid": pid}).encode()], [ended] if ended >= 0 else [])
        for each in (*pipes, *([ended] if ended >= 0 else [])):
            os.close(each)


def _forked(request: dict[str, Any], pipes: Sequence[int], connection: socket.socket) -> tuple[int, int]:
    """Return a new process's id and a descriptor that tells its end, -1 if it has ended already.

    Raises:
        RuntimeError: there is more than one thread: another one's locks would stay locked in the child.
    """
    if len(os.listdir("/proc/self/task")) > 1:
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
