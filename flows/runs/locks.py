"""Locks on files: one process holds a lock at a time, and it ends with the process, also in a crash."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def waiting_for(path: Path) -> Iterator[None]:
    """Wait until no other process holds a lock, then hold it."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def held(path: Path, busy: Exception) -> Iterator[None]:
    """Hold a lock; raise `busy` where another process holds it."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        yield
