"""What a hospital has sent in a run, as it lies in the exchange: kinds, numbers and bytes."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from flows.runs.run import Run
from privacy.release import RejectedRelease, ReleaseManifest, parse_statement

WORDS = {
    "acceptance": "acceptance, with the numbers it declares",
    "refusal": "refusal, with its reason",
    "readiness": "word that it is ready",
    "departure": "word that it leaves",
    "release": "release",
    "scores": "quality of the global model",
    "comparison": "quality of hospitals' models",
}
"""What a statement tells, in words for the reader of a report."""
UNREADABLE = "file that is no statement"


@dataclass(frozen=True)
class Sent:
    """Everything of one kind that a hospital has sent: how often, how many bytes."""

    kind: str
    count: int
    bytes: int


def sent(run: Run, site: str, until: int) -> list[Sent]:
    """Return what a hospital has sent up to a round, the largest first; a release with its tensors."""
    count: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for data in _statements(run, site, until):
        kind, more = _read(data)
        count[kind] += 1
        size[kind] += len(data) + more
    return [Sent(kind, count[kind], size[kind]) for kind, _ in size.most_common()]


def _statements(run: Run, site: str, until: int) -> Iterator[bytes]:
    for place in sorted(run.exchange.statements_of(site)):
        if place.kind == "statement" and place.run == run.name and place.round <= until:
            data = run.exchange.statement(place)
            if data is not None:
                yield data


def _read(data: bytes) -> tuple[str, int]:
    """Return a statement's kind, and the bytes of the tensors that it names."""
    try:
        said = parse_statement(json.loads(data)["statement"])
    except (RejectedRelease, ValueError, LookupError, TypeError):
        return UNREADABLE, 0
    payload = said.payload_bytes if isinstance(said, ReleaseManifest) else 0
    return WORDS.get(said.kind, said.kind), payload
