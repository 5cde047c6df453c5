"""The source of a hospital's randomness: a stream cipher with a key from the operating system.

Opacus' `secure_mode` needs a package that is no longer maintained, and torch's own generators are
predictable from their output; ChaCha20's stream is not.
"""

import hashlib
import secrets

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

SEGMENT = 2**37
"""Bytes of the cipher's stream under one nonce, half of what its counter of blocks allows (RFC 8439,
section 2.3, https://www.rfc-editor.org/rfc/rfc8439). Noise takes some 80 bytes a number, so a network of
eleven million parameters draws them in 150 steps."""


class NoiseSource:
    """A stream of random numbers whose key exists only in the memory of this object.

    Args:
        key: 32 bytes.
        segment: bytes under one nonce; each segment has the next nonce, so the stream has no end.
    """

    def __init__(self, key: bytes, segment: int = SEGMENT) -> None:
        self._key, self._segment = key, segment
        self._segments, self._left = 0, 0
        self._drawn = 0

    def _bytes(self, count: int) -> bytes:
        """Return the next `count` bytes of the stream."""
        parts = []
        while count:
            if not self._left:
                nonce = bytes(4) + self._segments.to_bytes(12, "little")
                self._stream = Cipher(ChaCha20(self._key, nonce), mode=None).encryptor()
                self._segments, self._left = self._segments + 1, self._segment
            taken = min(count, self._left)
            parts.append(self._stream.update(bytes(taken)))
            self._left -= taken
            count -= taken
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @classmethod
    def from_system(cls) -> "NoiseSource":
        """Return a source whose key comes from the operating system's entropy."""
        return cls(secrets.token_bytes(32))

    @classmethod
    def for_test(cls, seed: int, purpose: str) -> "NoiseSource":
        """Return a repeatable source, for synthetic patients only."""
        return cls(hashlib.sha256(f"wardround test noise {seed} {purpose}".encode()).digest())

    @property
    def drawn(self) -> int:
        """The number of words of 64 bits drawn so far."""
        return self._drawn

    def skip_to(self, drawn: int) -> None:
        """Skip the numbers that a killed training has drawn from a repeatable source.

        A source from the system has a new key after a restart, so no number repeats there in any case.
        """
        while self._drawn < drawn:
            self.words(min(drawn - self._drawn, 2**20))

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Return `count` numbers in (0, 1], each a multiple of 2^-53."""
        return ((self.words(count) >> np.uint64(11)).astype(np.float64) + 1) * 2.0**-53

    def words(self, count: int) -> NDArray[np.uint64]:
        """Return `count` whole numbers of 64 random bits each."""
        self._drawn += count
        return np.frombuffer(self._bytes(8 * count), dtype=np.uint64)
