"""Secrets of a member for one attempt, and what follows from them: keys, masks, shares, sealed boxes.

| secret  | what for                                         | opened for whom                |
|---------|--------------------------------------------------|--------------------------------|
| `pair`  | a mask with each peer, which cancels in the sum  | members who dropped out        |
| `own`   | a mask of the member alone                       | members whose vector is summed |
| `box`   | reading the shares that peers seal for it        | nobody                         |

The secrets are 16 bytes: seeds of X25519 keys and of masks by HKDF (RFC 7748, RFC 5869). `pair` and
`own` are shared among the members by Shamir's scheme over GF(2^128) (Shamir 1979, How to Share a Secret,
https://doi.org/10.1145/359168.359176), as in Bonawitz et al. 2017, Practical Secure Aggregation for
Privacy-Preserving Machine Learning (https://doi.org/10.1145/3133956.3133982).
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SEED_BYTES = 16
SHARE_BYTES = 2 * SEED_BYTES
"""A member's share of both secrets of another: of `pair`, then of `own`."""

FIELD = 2**255 - 19
"""The prime of Curve25519: other forms of a coordinate would be a second name for the same key."""


class BadShare(ValueError):
    """A share or a sealed box is not what it should be."""


@dataclass(frozen=True)
class Secrets:
    """The secrets of one member in one attempt, drawn from the operating system for it alone."""

    pair: bytes
    own: bytes
    box: bytes

    @classmethod
    def draw(cls) -> "Secrets":
        """Return fresh secrets."""
        return cls(*(secrets.token_bytes(SEED_BYTES) for _ in range(3)))

    @property
    def public(self) -> tuple[str, str]:
        """The public keys of the `pair` secret and of the `box` secret, in hexadecimal digits."""
        return _public(_private(self.pair, "pair")), _public(_private(self.box, "box"))

    def shares(self, count: int, threshold: int) -> list[bytes]:
        """Return `count` shares of `pair` and `own`, of which `threshold` open both."""
        pair, own = (_split(secret, count, threshold) for secret in (self.pair, self.own))
        return [a + b for a, b in zip(pair, own, strict=True)]

    def box_key(self, peer_box: str, context: str) -> bytes:
        """Return the key of the boxes between this member and a peer."""
        return agreed(self.box, peer_box, "box", context)


def mask_key(pair: bytes, peer_pair: str, context: str, members: tuple[str, str]) -> bytes:
    """Return the key of the mask between the member with the secret `pair` and a peer.

    Args:
        members: the names of both, in any order; masks of different pairs differ, whatever
            keys are used.
    """
    return agreed(pair, peer_pair, "pair", f"{context} {' and '.join(sorted(members))}")


def commitment_to(own: bytes) -> str:
    """Return what a member states about its `own` secret beforehand, to compare with the opened one."""
    return _derived(own, "commitment").hex()


def own_mask_key(own: bytes, context: str) -> bytes:
    """Return the key of a member's own mask."""
    return _derived(own, f"own mask {context}")


def check_public(public: str) -> None:
    """Raise `BadShare` unless a public key is canonical and one with which secrets can be agreed."""
    _ = agreed(bytes(SEED_BYTES), public, "check", "")


def agreed(secret: bytes, peer: str, use: str, context: str) -> bytes:
    """Return the 32 bytes on which two members agree, each by the own secret and the other's public key.

    Raises:
        BadShare: the public key is none, not in its one canonical form, or one of the few with which
            every agreement is zero.
    """
    if int.from_bytes(bytes.fromhex(peer), "little") >= FIELD:
        raise BadShare("a member's public key is not in its canonical form")
    try:
        shared = _private(secret, use).exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(peer)))
    except ValueError as error:
        raise BadShare("a member's public key is not valid") from error
    return _derived(shared, f"{use} {context}")


def seal(key: bytes, share: bytes, label: str) -> bytes:
    """Return a share that only the holder of `key` can read; a key seals one box for each label."""
    return ChaCha20Poly1305(_derived(key, label)).encrypt(bytes(12), share, label.encode())


def unseal(key: bytes, box: bytes, label: str) -> bytes:
    """Return the share in a box, or raise `BadShare`."""
    try:
        share = ChaCha20Poly1305(_derived(key, label)).decrypt(bytes(12), box, label.encode())
    except InvalidTag as error:
        raise BadShare(
            "a sealed share can't be opened: it was changed, or is for somebody else"
        ) from error
    if len(share) != SHARE_BYTES:
        raise BadShare(f"expected a share of {SHARE_BYTES} bytes, got {len(share)}")
    return share


def opened(shares: Mapping[int, bytes]) -> bytes:
    """Return the secret of which `shares` are the shares, by their number from 1."""
    secret: bytes = Shamir.combine(list(shares.items()))
    return secret


def public_of(pair: bytes) -> str:
    """Return the public key of an opened `pair` secret, to compare with the one that was announced."""
    return _public(_private(pair, "pair"))


def _split(secret: bytes, count: int, threshold: int) -> Sequence[bytes]:
    return [share for _, share in Shamir.split(threshold, count, secret)]


def _private(secret: bytes, use: str) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(_derived(secret, f"{use} key"))


def _public(key: X25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def _derived(secret: bytes, info: str) -> bytes:
    return HKDF(SHA256(), 32, salt=None, info=f"wardround secure sum {info}".encode()).derive(secret)
