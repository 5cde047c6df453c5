"""A run's spans as a Chrome trace, which https://ui.perfetto.dev and `chrome://tracing` show.

The format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models import spans
from models.files import write_atomically
from sites.worker import SPANS

COORDINATOR = "coordinator"


@contextmanager
def traced(out: Path | None, wards: Mapping[str, Path], state: Path) -> Iterator[None]:
    """Record spans here, and write them with those of the hospitals' processes to `out` at the end.

    Args:
        wards: the folder of each hospital on this machine.
        state: the coordinator's folder.
    """
    if out is None:
        yield
        return
    places = {COORDINATOR: state / SPANS} | {
        site: ward / "state" / SPANS for site, ward in wards.items()
    }
    for place in places.values():
        place.unlink(missing_ok=True)
    places[COORDINATOR].parent.mkdir(parents=True, exist_ok=True)
    spans.record_to(places[COORDINATOR])
    try:
        yield
    finally:
        events = [event for name, place in places.items() for event in _events(name, place)]
        write_atomically(out, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode())
        for place in places.values():
            place.unlink(missing_ok=True)


def _events(name: str, place: Path) -> Iterator[dict[str, Any]]:
    """Yield a file's spans, after the name of each of its processes."""
    if not place.exists():
        return
    found = [json.loads(line) for line in place.read_text().splitlines()]
    for pid in dict.fromkeys(event["pid"] for event in found):
        yield {"name": "process_name", "ph": "M", "pid": pid, "args": {"name": name}}
    yield from found
