"""Peers' statements, which the coordinator passes on and a hospital verifies by its own list of keys."""

import json
from collections.abc import Mapping
from typing import TypeVar

from models.files import sha256_of
from privacy.signing import BadSignature, canonical, verified
from privacy.statements import RejectedRelease, Statement, parse_statement
from sites.exchange.exchange import COORDINATOR, Exchange
from sites.exchange.phases import Phase, act_of
from sites.exchange.storage import StorageFailed
from sites.hospital import Hospital
from sites.orders import Order
from sites.policy.policy import Refused

RELAY_BYTES = 2**28
"""Size of the largest bundle of statements."""

S = TypeVar("S", bound=Statement)


def bundle(statements: Mapping[str, bytes]) -> bytes:
    """Return signed statements by hospital as one object of the exchange."""
    return canonical({site: data.decode() for site, data in sorted(statements.items())})


def unbundled(data: bytes) -> dict[str, bytes]:
    """Return the signed statements in a bundle, or raise ValueError."""
    found = json.loads(data)
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
        raise ValueError("expected a JSON object of statements by hospital")
    return {str(site): text.encode() for site, text in found.items()}


def relayed(hospital: Hospital, order: Order, phase: Phase, kind: type[S]) -> dict[str, tuple[S, str]]:
    """Return the members' statements of a phase of this attempt, each with its sha256.

    Raises:
        Refused: one is not signed with the key that this hospital has for its peer, or is about another
            run, round or attempt; or the hospital's own is missing or another.
    """
    try:
        data = Exchange(order.exchange).object(
            order.sum.relay if order.sum else "", COORDINATOR, RELAY_BYTES
        )
        written = unbundled(data)
    except StorageFailed:
        raise  # to be tried again
    except (ValueError, OSError, RecursionError) as error:
        raise Refused("the statements of the other hospitals can't be read") from error
    found: dict[str, tuple[S, str]] = {}
    for site, each in sorted(written.items()):
        statement = _verified(hospital, site, each)
        named = (
            statement.study_sha256,
            statement.run,
            statement.round,
            statement.purpose,
            statement.site,
        )
        due = (order.study.sha256, order.run, order.round, act_of(phase, order.sum_attempt), site)
        if named != due or not isinstance(statement, kind):
            raise Refused(f"what is passed on for {site} is not its {phase} of this attempt")
        found[site] = (statement, sha256_of(each))
    return found


def _verified(hospital: Hospital, site: str, data: bytes) -> Statement:
    try:
        if site == hospital.name:
            return parse_statement(hospital.verified(data))
        key = peer_key(hospital, site)
        return parse_statement(verified(data, site, {site: key}))
    except (BadSignature, RejectedRelease) as error:
        raise Refused(f"the statement that is passed on for {site} can't be trusted: {error}") from error


def peer_key(hospital: Hospital, site: str) -> str:
    """Return the key of a peer by this hospital's own list, or raise `Refused`."""
    key = hospital.policy.peers.get(site)
    if key is None:
        raise Refused(
            f"the secure sum is shared with {site}, whose key is not among `peers` of the hospital's "
            f"site.yaml"
        )
    return key


def check_peers(hospital: Hospital) -> None:
    """Raise `Refused` if the hospital knows no peers, without whose keys a sum hides nothing."""
    if not set(hospital.policy.peers) - {hospital.name}:
        raise Refused(
            "the study has a secure sum, for which the hospital's site.yaml needs the other hospitals' "
            "public keys under `peers`"
        )
