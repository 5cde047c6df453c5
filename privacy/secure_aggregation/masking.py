"""Double masking of one vector, and the unmasking of the sum (Bonawitz et al. 2017, figure 4).

    masked_k = vector_k + own_k + sum over peers j > k of pair_kj - sum over peers j < k of pair_kj

Pair masks cancel in the sum over all who sent a vector. For a member who did not, its peers' masks with
it are left, and the shares of its `pair` secret open them; the own masks of the others are opened by
the shares of their `own` secrets. Nobody opens both secrets of anybody
(https://doi.org/10.1145/3133956.3133982, section 4).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice

from privacy.secure_aggregation.keys import (
    BadShare,
    Secrets,
    commitment_to,
    mask_key,
    opened,
    own_mask_key,
    public_of,
)
from privacy.secure_aggregation.ring import Vector, add_mask, total
from privacy.secure_aggregation.terms import Terms

MOST_CHOICES = 200
"""Choices of shares that are tried to open a secret, where members have revealed wrong ones."""


def mask(vector: Vector, me: str, secrets: Secrets, peers: Mapping[str, str], terms: Terms) -> None:
    """Mask a member's vector in place.

    Args:
        peers: the other members' public keys for pairs, by name: those whose shares this member has.
    """
    add_mask(vector, own_mask_key(secrets.own, terms.name), 1)
    for peer, public in sorted(peers.items()):
        key = mask_key(secrets.pair, public, terms.name, (me, peer))
        add_mask(vector, key, 1 if me < peer else -1)


@dataclass(frozen=True)
class Opening:
    """What members have revealed to unmask a sum.

    Attributes:
        numbers: each member's number, from 1, by which it holds shares.
        public: each member's public key for pairs.
        commitments: what each member stated about its `own` secret.
        own: by survivor, the revealed shares of its `own` secret by the member that revealed it.
        pair: by member that dropped out, the same of its `pair` secret.
    """

    numbers: Mapping[str, int]
    public: Mapping[str, str]
    commitments: Mapping[str, str]
    own: Mapping[str, Mapping[str, bytes]]
    pair: Mapping[str, Mapping[str, bytes]]


def unmask(
    vectors: Iterable[Vector], survivors: Sequence[str], opening: Opening, terms: Terms
) -> Vector:
    """Return the sum of the survivors' vectors.

    Args:
        vectors: the survivors' masked vectors, in any order.

    Raises:
        BadShare: a secret has fewer shares than the threshold, or does not open to what was announced.
        ValueError: the vectors differ in length.
    """
    result = total(vectors)
    own, pair = opened_secrets(survivors, opening, terms)
    for survivor in survivors:
        add_mask(result, own_mask_key(own[survivor], terms.name), -1)
    for lost, secret in pair.items():
        for survivor in survivors:
            key = mask_key(secret, opening.public[survivor], terms.name, (survivor, lost))
            add_mask(result, key, -1 if survivor < lost else 1)
    return result


def opened_secrets(
    survivors: Sequence[str], opening: Opening, terms: Terms
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Return the survivors' `own` secrets and the `pair` secrets of those who dropped out, by name.

    Raises:
        BadShare: a secret has fewer shares than the threshold, or no choice of them opens what was
            announced.
    """
    own = {
        name: _open(opening, opening.own, name, terms, commitment_to, opening.commitments)
        for name in survivors
    }
    pair = {
        name: _open(opening, opening.pair, name, terms, public_of, opening.public)
        for name in sorted(opening.public.keys() - set(survivors))
    }
    return own, pair


def _choices(givers: Sequence[str], threshold: int) -> Iterator[Sequence[str]]:
    """Yield choices of givers: the first ones, then those without any one of all, any two, and so on."""
    for left_out in range(len(givers) - threshold + 1):
        for gone in combinations(givers, left_out):
            yield [giver for giver in givers if giver not in gone][:threshold]


def _open(
    opening: Opening, revealed: Mapping[str, Mapping[str, bytes]], whose: str, terms: Terms,
    announced_by: Callable[[bytes], str], announced: Mapping[str, str],
) -> bytes:  # fmt: skip
    """Return a secret that fits what its owner announced; where shares are wrong, others are tried."""
    found = revealed.get(whose, {})
    if len(found) < terms.threshold:
        raise BadShare(
            f"expected {terms.threshold} shares of {whose}'s secret to unmask the sum, got {len(found)}"
        )
    for givers in islice(_choices(sorted(found), terms.threshold), MOST_CHOICES):
        secret = opened({opening.numbers[giver]: found[giver] for giver in givers})
        if announced_by(secret) == announced[whose]:
            return secret
    raise BadShare(f"the shares of {whose}'s secret open another one than it announced")
