"""Exact discrete Gaussian noise: whole numbers with P(x) proportional to exp(-x^2 / (2 sigma^2)).

Rejection from a discrete Laplace, as Canonne, Kamath and Steinke propose (2020, The Discrete Gaussian
for Differential Privacy, algorithms 1 to 3, https://arxiv.org/abs/2004.00010), for whole arrays at once.

Every choice is the comparison of a uniform number u, a sequence of random bits, with a probability
exp(-a). Floating point numbers decide it where their error cannot change the answer; otherwise integers
do, with more bits of u and more digits of exp(-a) until they differ. So the distribution is exact, and
the slow way is needed about once in 2^36 comparisons.
"""

import math
from collections.abc import Callable
from decimal import Decimal, localcontext

import numpy as np
from numpy.typing import NDArray

from privacy.noise.source import NoiseSource

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

LARGEST_VARIANCE = 2**104
"""Largest variance: numbers up to a thousand standard deviations fit 63 bits."""
RELATIVE, ABSOLUTE = 2.0**-36, 2.0**-60
"""Bounds of the error of a probability exp(-a), and of u, as floating point numbers.

A computed a is off by less than 2^-48 of itself, and by less than 2^-50 where terms cancel. For a <=
2^11, beyond which exp(-a) is zero within 2^-1000, that moves exp(-a) by less than 2^-36 of itself. Of u
64 bits are drawn and 53 used, so it is off by less than 2^-53 u + 2^-64.
"""
LEAST_SHARE = 18
"""The smallest variance of a share, in units^2.

A sum of discrete Gaussians of at least this variance is one, up to a factor of 1 +- 1e-75 for each
(docs/decisions/0017).
"""
SMOOTHING = 9
"""Variance that a discrete Gaussian has beyond the continuous Gaussian that it counts as (units^2).

A discrete Gaussian of variance 9 around a number x ~ N(0, s^2) is a discrete Gaussian of variance s^2 +
9 around 0, up to a factor of 1 +- 4 exp(-18 pi^2), which is below 1e-75: so the discrete one is
post-processing of the continuous one (docs/decisions/0017).
"""


def share_of(deviation: float, honest: int) -> int:
    """Return the variance of each share of a noise, in units^2 (docs/decisions/0017).

    The shares of `honest` members together count as a continuous Gaussian of at least this standard
    deviation, in units.

    >>> share_of(30.0, honest=3), share_of(1.0, honest=3)
    (303, 18)
    """
    return max(math.ceil((deviation**2 + SMOOTHING) / honest), LEAST_SHARE)


def counted_deviation(variance: int) -> float:
    """Return the standard deviation of the continuous Gaussian that a discrete one counts as, in units.

    >>> counted_deviation(25)
    4.0
    """
    return math.sqrt(variance - SMOOTHING)


def discrete_gaussian(source: NoiseSource, count: int, variance: int) -> Ints:
    """Return `count` independent discrete Gaussians of parameter sigma^2 = `variance`, `(count,)`.

    Their variance is at most sigma^2, and for sigma of at least 3 equals it up to 1e-70.

    Raises:
        ValueError: the variance is not a whole number from 1 to 2^104.

    >>> drawn = discrete_gaussian(NoiseSource.for_test(0, "example"), 10_000, variance=400)
    >>> bool(abs(drawn.mean()) < 1), bool(19 < drawn.std() < 21)
    (True, True)
    """
    if not 1 <= variance <= LARGEST_VARIANCE:
        raise ValueError(f"Expected a variance from 1 to 2^104, got {variance}.")
    scale = math.isqrt(variance) + 1
    return _filled(count, lambda left: _accepted(source, left, variance, scale))


def grid_noise(source: NoiseSource, count: int, std: float, grid: float) -> Floats:
    """Return noise on a grid that protects at least as much as N(0, std^2), `(count,)`.

    Args:
        grid: a power of two; each number is a multiple of it, exactly.
    """
    variance = math.ceil((std / grid) ** 2) + SMOOTHING
    return np.multiply(discrete_gaussian(source, count, variance), grid, dtype=np.float64)


def _filled(count: int, draw: Callable[[int], Ints]) -> Ints:
    """Return `count` numbers of a rejection sampler, which returns those of `left` tries it accepts."""
    parts: list[Ints] = []
    left = count
    while left > 0:
        parts.append(draw(left + left // 2 + 16)[:left])
        left -= len(parts[-1])
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _accepted(source: NoiseSource, tries: int, variance: int, scale: int) -> Ints:
    """Return the discrete Laplace numbers y that are accepted, with P = exp(-(|y| - s)^2 / 2 sigma^2).

    s = sigma^2 / scale.
    """
    drawn = _laplace(source, tries, scale)
    whole, rest = divmod(variance, scale)
    distance = (np.abs(drawn) - whole) - rest / scale
    exponent = distance**2 / (2 * variance)

    def exact(index: int) -> Decimal:
        away = abs(int(drawn[index])) * scale - variance
        return Decimal(away**2) / Decimal(2 * variance * scale**2)

    return drawn[_happens(source, exponent, exact)]


def _laplace(source: NoiseSource, tries: int, scale: int) -> Ints:
    """Return discrete Laplace numbers: P(x) proportional to exp(-|x| / scale)."""
    rest = _below(source, tries, scale)
    kept = _happens(source, rest / scale, lambda index: Decimal(int(rest[index])) / Decimal(scale))
    rest = rest[kept]
    whole = rest + scale * _geometric(source, len(rest))
    negative = source.words(len(rest)) >> np.uint64(63) == 1
    signed: Ints = np.where(negative, -whole, whole)
    once: Ints = signed[~(negative & (whole == 0))]  # zero has no sign
    return once


def _geometric(source: NoiseSource, count: int) -> Ints:
    """Return how many times in a row an event of probability 1/e happens."""
    happened = np.zeros(count, np.int64)
    going = np.arange(count)
    while len(going):
        going = going[_happens(source, np.ones(len(going)), lambda _: Decimal(1))]
        happened[going] += 1
    return happened


def _happens(
    source: NoiseSource, exponent: Floats, exact: Callable[[int], Decimal]
) -> NDArray[np.bool_]:
    """Return for each a in `exponent` whether an event of probability exp(-a) happens, exactly.

    Args:
        exact: `(index) -> a` as a quotient in the decimal context of the call.
    """
    words = source.words(len(exponent))
    uniform, probability = words * 2.0**-64, np.exp(-exponent)
    unsure = np.abs(uniform - probability) <= RELATIVE * probability + ABSOLUTE
    happens = uniform < probability
    for index in np.flatnonzero(unsure):
        happens[index] = _is_below(source, int(words[index]), exact, int(index))
    return happens


def _is_below(source: NoiseSource, bits: int, exact: Callable[[int], Decimal], index: int) -> bool:
    """Return whether a uniform number, of which 64 bits are drawn, is below exp(-a); draw more bits."""
    length = 64
    while True:
        with localcontext() as context:
            context.prec = length // 3 + 20
            context.Emin = -(10**9)
            probability = (-exact(index)).exp()
            low, high = (Decimal(each) / Decimal(2**length) for each in (bits, bits + 1))
            margin = probability * Decimal(10) ** (12 - context.prec)
            if high <= probability - margin:
                return True
            if low >= probability + margin:
                return False
        bits, length = (bits << 64) | int(source.words(1)[0]), length + 64


def _below(source: NoiseSource, count: int, bound: int) -> Ints:
    """Return whole numbers from 0 to `bound` - 1, each with the same probability."""
    unused = 64 - max(1, (bound - 1).bit_length())

    def draw(tries: int) -> Ints:
        drawn = (source.words(tries) >> np.uint64(unused)).astype(np.int64)
        return np.extract(drawn < bound, drawn)

    return _filled(count, draw)
