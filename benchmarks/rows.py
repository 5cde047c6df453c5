"""Rows of a benchmark: what calls return in processes of their own, and their printing."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

T = TypeVar("T")


def side_by_side(
    calls: Iterable[Callable[[], T]], workers: int, first: Sequence[Callable[[], object]] = ()
) -> Iterator[T]:
    """Yield what calls return, in their order, from so many processes at the same time.

    Args:
        first: calls that begin before the others, such as what several of them share; a failure of one
            shows in those that need it.
    """
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for call in first:
            pool.submit(call)
        for each in [pool.submit(call) for call in calls]:
            yield each.result()


def print_rows(rows: Iterable[Mapping[str, Any]], *, as_json: bool) -> None:
    """Print each row as it comes, or all of them as one JSON array."""
    found = []
    for row in rows:
        found.append(row)
        if not as_json:
            print(row, flush=True)
    if as_json:
        print(json.dumps(found, indent=1))
