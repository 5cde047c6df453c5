"""Spans of time, for whoever wants to know where a run's time goes: nothing is recorded by default.

`wardround run --profile` records them in each process of this machine and writes them as a Chrome trace.
A hospital's worker behind a firewall never records: how long a hospital takes says something about its
patients.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TextIO, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_sink: TextIO | None = None


def record_to(path: Path) -> None:
    """Append each span that ends in this process to a file from now on, a JSON object a line."""
    global _sink  # noqa: PLW0603  # one for the process, as spans are everywhere
    _sink = path.open("a", buffering=1)


@contextmanager
def span(name: str, **about: object) -> Iterator[None]:
    """Record the time that the block takes; `about` says what it was for."""
    if _sink is None:
        yield
        return
    started, busy = time.time_ns(), time.thread_time_ns()
    try:
        yield
    finally:
        event = {
            "name": name, "ph": "X", "pid": os.getpid(), "tid": threading.get_native_id(),
            "ts": started / 1000, "dur": (time.time_ns() - started) / 1000,
            "args": {**about, "cpu_ms": (time.thread_time_ns() - busy) / 1e6},
        }  # fmt: skip
        _sink.write(json.dumps(event) + "\n")


def spanned(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that records the time of each call."""

    def decorator(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            with span(name):
                return function(*args, **kwargs)

        return wrapped

    return decorator
