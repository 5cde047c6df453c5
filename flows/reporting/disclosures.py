"""Disclosures: everything that a hospital has sent in a run, by kind, number and bytes."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from flows.runs.run import Run
from models.files import sha256_of
from privacy.statements import RejectedRelease, ReleaseManifest, parse_statement
from sites.exchange.places import Place

WORDS = {
    "acceptance": "acceptance, with the numbers it declares",
    "refusal": "refusal, with its reason",
    "readiness": "statement that it is ready",
    "departure": "statement that it leaves",
    "release": "release",
    "scores": "quality of the global model",
    "comparison": "quality of hospitals' models",
    "audit": "result of an attack on the global model, with noise",
    "survey": "statistics of its scans",
    "sum_keys": "public keys for a secure sum",
    "sum_shares": "sealed shares for a secure sum",
    "sum_survivors": "list of who is in a secure sum",
    "sum_opening": "shares that open a secure sum",
}
"""A statement's kind in words, for the reader of a report."""
UNREADABLE = "file that is no statement"
UNREADABLE_ERRORS = (RejectedRelease, ValueError, LookupError, TypeError)


@dataclass(frozen=True)
class Disclosure:
    """Everything of one kind that a hospital has sent: how often, how many bytes."""

    kind: str
    count: int
    bytes: int


@dataclass(frozen=True)
class Departure:
    """One statement that a hospital has sent, with the sha256 of it and of its tensors, if any."""

    round: int
    kind: str
    bytes: int
    statement_sha256: str
    tensors_sha256: str


def departures(run: Run, site: str) -> list[Departure]:
    """Return every statement that a hospital has sent in a run, in the order of the exchange's names."""
    return [_departure(place.round, data) for place, data in _placed(run, site, run.study.rounds)]


def _departure(round: int, data: bytes) -> Departure:
    kind, more = _read(data)
    try:
        statement = parse_statement(json.loads(data)["statement"])
    except UNREADABLE_ERRORS:
        statement = None
    tensors = ""
    if isinstance(statement, ReleaseManifest):
        kind, tensors = f"{kind}: {statement.content.replace('_', ' ')}", statement.payload_sha256
    return Departure(round, kind, len(data) + more, sha256_of(data), tensors)


def disclosures(run: Run, site: str, until: int) -> list[Disclosure]:
    """Return a hospital's disclosures up to a round, the largest first; a release counts its tensors."""
    count: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for _, data in _placed(run, site, until):
        kind, more = _read(data)
        count[kind] += 1
        size[kind] += len(data) + more
    return [Disclosure(kind, count[kind], size[kind]) for kind, _ in size.most_common()]


def _placed(run: Run, site: str, until: int) -> Iterator[tuple[Place, bytes]]:
    for place in sorted(run.exchange.statements_of(site)):
        if place.kind == "statement" and place.run == run.name and place.round <= until:
            data = run.exchange.answer(place)
            if data is not None:
                yield place, data


def _read(data: bytes) -> tuple[str, int]:
    """Return a statement's kind, and the bytes of the tensors that it names."""
    try:
        statement = parse_statement(json.loads(data)["statement"])
    except UNREADABLE_ERRORS:
        return UNREADABLE, 0
    payload = statement.payload_bytes if isinstance(statement, ReleaseManifest) else 0
    return WORDS.get(statement.kind, statement.kind), payload
