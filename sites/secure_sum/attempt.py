"""A hospital's secrets and what it has seen of its peers, for one attempt at a secure sum.

The file lies in the hospital's private state from the first message of the attempt to the last.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from models.config import Config
from models.files import private_folder, write_atomically
from models.settings.tasks import Name
from privacy.mechanisms import MaskedPrivacy, SharedNoise
from privacy.secure_aggregation.keys import Secrets
from privacy.secure_aggregation.masking import mask
from privacy.secure_aggregation.ring import Vector, on_ring
from privacy.secure_aggregation.terms import BadTerms, Terms
from privacy.statements import Count, Sha256, Share
from sites.exchange.phases import SUMS, SumKind
from sites.hospital import Hospital
from sites.orders import Order
from sites.policy.policy import Refused
from sites.study import Study

Seed = Share
BothShares = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Peer(Config):
    """The fresh public keys of a member, its weight, and the statement that announced them."""

    pair: Sha256
    box: Sha256
    weight: Count
    keys_sha256: Sha256


class Attempt(Config):
    """What a hospital stores of an attempt.

    Attributes:
        pair, own, box: its secrets, in hexadecimal digits.
        roster: every member's public keys, its own included, once it has sealed shares for them.
        held: by member who has sealed shares, this hospital's shares of its secrets.
        shares_sha256: by the same member, the statement with its sealed shares.
        survivors: by hospital, the release that the one signed list of survivors has.
    """

    pair: Seed
    own: Seed
    box: Seed
    roster: dict[Name, Peer] = Field(default_factory=dict)
    held: dict[Name, BothShares] = Field(default_factory=dict)
    shares_sha256: dict[Name, Sha256] = Field(default_factory=dict)
    survivors: dict[Name, Sha256] = Field(default_factory=dict)

    @classmethod
    def fresh(cls) -> "Attempt":
        """Return an attempt with new secrets."""
        drawn = Secrets.draw()
        return cls(pair=drawn.pair.hex(), own=drawn.own.hex(), box=drawn.box.hex())

    @property
    def secrets(self) -> Secrets:
        """The hospital's secrets."""
        return Secrets(*(bytes.fromhex(each) for each in (self.pair, self.own, self.box)))

    @property
    def members(self) -> list[str]:
        """The roster's names in order; a member's number is its place, from 1."""
        return sorted(self.roster)


def sum_terms(
    study: Study, run: str, round: int, attempt: int, members: int, kind: SumKind
) -> Terms:  # fmt: skip
    """Return the terms of an attempt with so many members, at a sum of a kind.

    Raises:
        BadTerms: the study has no secure sum, or none among so many hospitals.
    """
    if not isinstance(study.privacy, MaskedPrivacy | SharedNoise):
        raise BadTerms("The study has no secure sum.")
    name, config = f"{study.sha256} {run} {round} {attempt} {kind}", study.privacy.sum
    return Terms(name, members, config.dropouts, config.colluding)


def terms_of(order: Order, members: int, kind: SumKind | None = None) -> Terms:
    """Return the terms of an order's attempt, of its own kind or another, or raise `Refused`."""
    if members < order.study.sites.min:
        raise Refused(
            f"expected at least {order.study.sites.min} hospitals in the secure sum, as the study says, "
            f"got {members}"
        )
    try:
        of = kind or order.sum_kind
        return sum_terms(order.study, order.run, order.round, order.sum_attempt, members, of)
    except BadTerms as error:
        raise Refused(str(error)) from error


def masked_vector(units: NDArray[np.int64], me: str, attempt: Attempt, terms: Terms) -> Vector:
    """Return whole numbers on the ring, masked for the members who have sealed shares."""
    vector = on_ring(units)
    peers = {n: peer.pair for n, peer in attempt.roster.items() if n in attempt.held and n != me}
    mask(vector, me, attempt.secrets, peers, terms)
    return vector


def begin(hospital: Hospital, order: Order) -> Attempt:
    """Return a new attempt, stored; earlier ones of its kind in the run are deleted."""
    forget_secrets(hospital, order.run, order.sum_kind)
    attempt = Attempt.fresh()
    keep(hospital, order, attempt)
    return attempt


def forget_secrets(hospital: Hospital, run: str, kind: SumKind) -> None:
    """Delete the secrets of a run's attempts at a kind of sum, once an opening is recorded."""
    for path in (hospital.state / "sums" / run).glob(f"*-{SUMS[kind].vector}-*.json"):
        path.unlink(missing_ok=True)


def keep(hospital: Hospital, order: Order, attempt: Attempt) -> None:
    """Store an attempt, readable by the hospital's own account alone."""
    path = _path(hospital, order)
    private_folder(path.parent)
    write_atomically(path, attempt.model_dump_json().encode())


def stored(hospital: Hospital, order: Order) -> Attempt:
    """Return the attempt of an order, or raise `Refused` if this hospital is no part of it."""
    try:
        return Attempt.model_validate_json(_path(hospital, order).read_bytes())
    except FileNotFoundError as error:
        raise Refused("the hospital has announced no keys for this attempt at a secure sum") from error


def _path(hospital: Hospital, order: Order) -> Path:
    name = f"{order.round:03d}-{order.sum_phases.vector}-{order.sum_attempt}.json"
    return hospital.state / "sums" / order.run / name
