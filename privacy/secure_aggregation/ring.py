"""The ring of whole numbers modulo 2^32: vectors on it, their masks, and their sums.

Masks are the stream of ChaCha20 (RFC 8439, https://www.rfc-editor.org/rfc/rfc8439) under a key that is
used for one mask. Whatever wraps around costs quality, never privacy.
"""

from collections.abc import Iterable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

Vector = NDArray[np.uint32]
CHUNK = 2**20
"""Numbers of a mask in memory at a time."""


def on_ring(units: NDArray[np.int64]) -> Vector:
    """Return whole numbers modulo 2^32.

    >>> on_ring(np.array([-1, 2**32 + 5])).tolist()
    [4294967295, 5]
    """
    return units.astype(np.uint64).astype(np.uint32)


def signed(vector: Vector) -> NDArray[np.int64]:
    """Return a vector's numbers as those from -2^31 to 2^31 - 1 that they are modulo 2^32.

    >>> signed(on_ring(np.array([-7, 7]))).tolist()
    [-7, 7]
    """
    return vector.view(np.int32).astype(np.int64)


def add_mask(vector: Vector, key: bytes, sign: int) -> None:
    """Add (`sign` 1) or subtract (-1) the mask of a key in place; a key serves for one mask only."""
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    zeros = bytes(4 * CHUNK)
    for start in range(0, len(vector), CHUNK):
        part = vector[start : start + CHUNK]
        mask = np.frombuffer(stream.update(zeros[: 4 * len(part)]), "<u4")
        if sign > 0:
            part += mask
        else:
            part -= mask


def total(vectors: Iterable[Vector]) -> Vector:
    """Return the sum of vectors modulo 2^32, one in memory at a time.

    Raises:
        ValueError: there is none, or their lengths differ.
    """
    result: Vector | None = None
    for vector in vectors:
        if result is None:
            result = vector.copy()
        elif len(vector) != len(result):
            raise ValueError(f"Expected vectors of {len(result)} numbers, got one of {len(vector)}.")
        else:
            result += vector
    if result is None:
        raise ValueError("Expected at least one vector.")
    return result
