"""Files that one process holds at a time: a lock ends with its process, however that ends."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def waiting_for(path: Path) -> Iterator[None]:
    """Hold a lock, as soon as nobody else does."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def held(path: Path, busy: Exception) -> Iterator[None]:
    """Hold a lock; raise `busy` where somebody else does."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        yield
