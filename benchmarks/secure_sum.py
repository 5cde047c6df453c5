"""What a secure sum costs: bytes, masking, unmasking, noise; and that the sum is exact.

    python benchmarks/secure_sum.py --json > secure_sum.json      # K = 4 and 10, minutes
    python benchmarks/secure_sum.py --full --json                 # also K = 50 and 100; half an hour

| field          | what                                                                               |
|----------------|------------------------------------------------------------------------------------|
| bytes_ratio    | bytes that one hospital sends in a round, statements included, over plain float32   |
| mask_seconds   | shares and masks of one hospital                                                   |
| unmask_seconds | adding the vectors, opening the secrets, taking off the masks                      |
| noise_seconds  | one hospital's share of the noise                                                  |
| exact          | True if the sum is that of the plain whole numbers, bit for bit                    |
"""

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rows import print_rows

from privacy.noise.discrete_gaussian import discrete_gaussian
from privacy.noise.source import NoiseSource
from privacy.secure_aggregation.keys import Secrets, commitment_to, seal
from privacy.secure_aggregation.masking import Opening, mask, unmask
from privacy.secure_aggregation.ring import Vector, on_ring
from privacy.secure_aggregation.terms import Terms

VARIANCE = 10**8
IN_MEMORY = 2 * 10**8
"""Numbers of all vectors together up to which they are made before the unmasking is timed."""
ENVELOPE = 900
"""Bytes of a signed statement without what is counted here."""


class Attempt:
    """All members of one attempt, in one process."""

    def __init__(self, members: int, dropouts: int, numel: int) -> None:
        self.terms = Terms("benchmark 1 1", members, dropouts, 0)
        self.names = [f"hospital-{number:03d}" for number in range(members)]
        self.secrets = {name: Secrets.draw() for name in self.names}
        self.public = {name: secret.public[0] for name, secret in self.secrets.items()}
        self.survivors = self.names[dropouts:]
        self.numel = numel
        self.due = np.zeros(numel, np.int64)
        self.mask_seconds: list[float] = []

    def plain(self, name: str) -> NDArray[np.int64]:
        """Return a hospital's plain vector: numbers that anybody can draw again."""
        rng = np.random.default_rng(self.names.index(name))
        return rng.integers(-(2**20), 2**20, self.numel)

    def vectors(self) -> Iterator[Vector]:
        """Yield the survivors' masked vectors; their plain sum is in `due` afterwards."""
        for name in self.survivors:
            plain = self.plain(name)
            self.due += plain
            vector = on_ring(plain)
            started = time.perf_counter()
            peers = {peer: key for peer, key in self.public.items() if peer != name}
            mask(vector, name, self.secrets[name], peers, self.terms)
            self.mask_seconds.append(time.perf_counter() - started)
            yield vector

    def opening(self) -> tuple[Opening, float]:
        """Return what the first members of the threshold reveal, and one member's seconds for shares."""
        started = time.perf_counter()
        held = {
            name: secret.shares(self.terms.members, self.terms.threshold)
            for name, secret in self.secrets.items()
        }
        mine = self.secrets[self.names[0]]
        for name in self.names:
            key = mine.box_key(self.secrets[name].public[1], self.terms.name)
            seal(key, held[self.names[0]][0], name)
        seconds = (time.perf_counter() - started) / self.terms.members
        givers = self.survivors[: self.terms.threshold]

        def revealed(whose: Sequence[str], part: slice) -> dict[str, Mapping[str, bytes]]:
            return {w: {g: held[w][self.names.index(g)][part] for g in givers} for w in whose}

        lost = [name for name in self.names if name not in self.survivors]
        opening = Opening(
            numbers={name: number for number, name in enumerate(self.names, start=1)},
            public=self.public,
            commitments={name: commitment_to(secret.own) for name, secret in self.secrets.items()},
            own=revealed(self.survivors, slice(16, 32)),
            pair=revealed(lost, slice(0, 16)),
        )
        return opening, seconds


def row_of(members: int, numel: int, dropouts: int) -> dict[str, Any]:
    """Measure one attempt."""
    attempt = Attempt(members, dropouts, numel)
    opening, share_seconds = attempt.opening()
    making: list[float] = []  # where they are made while they are added
    vectors = (
        _timed(attempt.vectors(), making) if members * numel > IN_MEMORY else list(attempt.vectors())
    )
    started = time.perf_counter()
    found = unmask(vectors, attempt.survivors, opening, attempt.terms)
    unmasking = time.perf_counter() - started - sum(making)
    started = time.perf_counter()
    discrete_gaussian(NoiseSource.from_system(), numel, VARIANCE)
    noise = time.perf_counter() - started
    per_member = sum(len(name) for name in attempt.names) / members
    said = members * (2 * (per_member + 64 + 6) + (per_member + 96 + 6) + 2 * (per_member + 38))
    return {
        "hospitals": members,
        "parameters": numel,
        "dropouts": dropouts,
        "bytes_ratio": (4 * numel + 5 * ENVELOPE + said) / (4 * numel),
        "mask_seconds": float(np.median(attempt.mask_seconds)) + share_seconds,
        "unmask_seconds": unmasking,
        "noise_seconds": noise,
        "exact": bool(np.array_equal(found, on_ring(attempt.due))),
    }


def _timed(vectors: Iterator[Vector], seconds: list[float]) -> Iterator[Vector]:
    """Yield the vectors and record how long each took to make."""
    while True:
        started = time.perf_counter()
        vector = next(vectors, None)
        seconds.append(time.perf_counter() - started)
        if vector is None:
            return
        yield vector


def main() -> None:
    """Measure every size and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    parser.add_argument("--full", action="store_true", help="also 50 and 100 hospitals")
    asked = parser.parse_args()
    rows = (
        row_of(members, numel, dropouts)
        for members in ((4, 10, 50, 100) if asked.full else (4, 10))
        for numel in (100_000, 10_000_000)
        for dropouts in sorted({0, max(1, members // 10)})
    )
    print_rows(rows, as_json=asked.json)


if __name__ == "__main__":
    main()
