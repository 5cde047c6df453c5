"""The source of a hospital's randomness: a stream cipher with a key from the operating system.

Opacus' `secure_mode` needs a package that is no longer maintained, and torch's own generators are
predictable from their output; ChaCha20's stream is not.
"""

import hashlib
import secrets

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray
from torch import Tensor

SEGMENT = 2**37
"""Bytes of the cipher's stream under one nonce, half of what its counter of blocks allows (RFC 8439,
section 2.3, https://www.rfc-editor.org/rfc/rfc8439). Noise takes 32 bytes a number, so a network of
eleven million parameters draws them in 391 steps."""


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
        """The number of uniform numbers drawn so far."""
        return self._drawn

    def skip_to(self, drawn: int) -> None:
        """Skip the numbers that a killed training has drawn from a repeatable source.

        A source from the system has a new key after a restart, so no number repeats there in any case.
        """
        while self._drawn < drawn:
            self.uniform(min(drawn - self._drawn, 2**20))

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Return `count` numbers in (0, 1], each a multiple of 2^-53."""
        words = np.frombuffer(self._bytes(8 * count), dtype=np.uint64)
        self._drawn += count
        return ((words >> np.uint64(11)).astype(np.float64) + 1) * 2.0**-53

    def below(self, bound: int) -> int:
        """Return a whole number from 0 to `bound` - 1, each with the same probability, exactly.

        Numbers at or above the bound are drawn again, so none is more likely than another.
        """
        bits = (bound - 1).bit_length()
        words = (bits + 63) // 64
        while True:
            data = self._bytes(8 * words)
            self._drawn += words
            drawn = int.from_bytes(data) >> (64 * words - bits)
            if drawn < bound:
                return drawn

    def normal(self, shape: tuple[int, ...], std: float) -> Tensor:
        """Return N(0, std^2) noise of `shape` in float64.

        Each number is the sum of four Box-Muller normals over two, which hides the gaps of
        floating point numbers (Mironov 2012, On Significance of the Least Significant Bits for DP,
        https://doi.org/10.1145/2382196.2382264; Holohan and Braghin 2021, Secure Random Sampling in DP,
        section 5.1, https://arxiv.org/abs/2107.10138).
        """
        count = int(np.prod(shape))
        radius = np.sqrt(-2 * np.log(self.uniform(2 * count)))
        angle = 2 * np.pi * self.uniform(2 * count)
        normals = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
        return torch.from_numpy(normals.reshape(4, count).sum(0) / 2 * std).reshape(shape)
