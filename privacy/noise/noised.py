"""Noised figures: integers on a public grid, with exact discrete Gaussian noise.

The last bits of a float64 sum show which sum is under its noise (Mironov 2012, On Significance of the
Least Significant Bits for Differential Privacy, https://doi.org/10.1145/2382196.2382264). So each
patient's numbers are rounded to a grid, their sum and the noise are integers, and whatever is published
depends on the noised integer alone.

The discrete Gaussian with the same sigma satisfies the same concentrated DP as the continuous one, and
its cost converges to the Gaussian's as exp(-2 pi^2 sigma^2) in units of the grid (Canonne, Kamath and
Steinke 2020, The Discrete Gaussian for Differential Privacy, theorem 4 and section 2.4,
https://arxiv.org/abs/2004.00010). `LEAST_SIGMA` keeps that difference below 1e-300.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from privacy.accounting import PrivacyEvent
from privacy.noise.discrete_gaussian import counted_deviation, discrete_gaussian, share_of
from privacy.noise.source import NoiseSource

UNITS = 2**16
"""Units of the grid in one patient's largest number, 1."""

STEP = 2.0**-20
"""The grid of published shares: each is a multiple of it, exact in float64 and in JSON."""

LARGEST_TOTAL = 2**30
"""Largest total of units in a secure sum, whose ring has the numbers below 2^31."""

LEAST_SIGMA = 6.0
"""The smallest noise, in units of the grid, at which both Gaussians cost the same."""


@dataclass(frozen=True)
class Noised:
    """Sums over patients with their noise, in units of the grid: of `noised_sums` or a secure sum."""

    units: tuple[int, ...]

    def means(self, declared: int) -> list[float]:
        """Return each sum over a declared number of patients, a multiple of `STEP`.

        The values are not limited to [0, 1]: the mean of limited values would have a bias.

        >>> Noised((UNITS * 3, -UNITS)).means(declared=4)
        [0.75, -0.25]
        """
        means = (Fraction(each, UNITS * declared) for each in self.units)
        return [round(mean / Fraction(STEP)) * STEP for mean in means]

    def shares(self, declared: int) -> list[float]:
        """Return `means`, limited to what a share can be: from 0 to 1.

        >>> Noised((UNITS * 3, -5)).shares(declared=4)
        [0.75, 0.0]
        """
        return [min(max(mean, 0.0), 1.0) for mean in self.means(declared)]


def to_grid(value: float) -> float:
    """Return the nearest multiple of `STEP`.

    >>> to_grid(0.1)
    0.10000038146972656
    """
    return round(value / STEP) * STEP


def is_on_grid(value: float) -> bool:
    """Return whether a number is a multiple of `STEP`.

    >>> is_on_grid(0.5), is_on_grid(0.1)
    (True, False)
    """
    return (value / STEP).is_integer()


@dataclass(frozen=True)
class SharedSums:
    """Sums over the patients of all hospitals, of whose noise each hospital adds a share.

    Guarantees: with the shares of `honest` hospitals the total has the noise that the event states.

    Attributes:
        sensitivity: the largest L2 norm of a patient's row.
        numel: the length of a row (D).
        honest: hospitals whose shares are counted on.
        patients: public number of patients of all members; it decides how coarse sums have to be to stay
            on the ring.
    """

    event: PrivacyEvent
    sensitivity: float
    numel: int
    honest: int
    patients: int

    @property
    def shift(self) -> int:
        """The number of bits by which a hospital's sums are rounded down."""
        return max(0, (self.patients * UNITS - 1).bit_length() - LARGEST_TOTAL.bit_length() + 1)

    @property
    def moved(self) -> float:
        """How far zeroing a patient moves a hospital's sums, in units after rounding and L2."""
        exact = self.sensitivity * UNITS / float(2**self.shift)
        return exact + (math.sqrt(self.numel) if self.shift else 0.0)

    @property
    def share_variance(self) -> int:
        """The variance of one hospital's share of the noise, in units^2 (docs/decisions/0017)."""
        return share_of(self.event.noise_multiplier * self.moved, self.honest)

    @property
    def own_event(self) -> PrivacyEvent:
        """The event that sums would cost if no other hospital added noise."""
        return PrivacyEvent(counted_deviation(self.share_variance) / self.moved, 1.0, 1)

    def deviation(self, members: int) -> float:
        """Return the standard deviation of a total with the shares of so many hospitals."""
        return math.sqrt(members * self.share_variance) * float(2**self.shift) / UNITS

    def noisy(self, values: NDArray[np.float64], noise: NoiseSource) -> NDArray[np.int64]:
        """Return a hospital's sums of `(P, D)` from 0 to 1 in units, with its share of the noise."""
        sums = _sums(values, self.event) >> self.shift
        return sums + discrete_gaussian(noise, len(sums), self.share_variance)

    def total(self, units: Sequence[int]) -> Noised:
        """Return the total of all hospitals' units."""
        return Noised(tuple(each << self.shift for each in units))


def noised_sums(
    values: NDArray[np.float64], event: PrivacyEvent, sensitivity: float, noise: NoiseSource
) -> Noised:
    """Return the sum over patients of their numbers, with the noise that an event states.

    Guarantees: zeroing a patient's row moves the sums by at most `sensitivity` in L2 before the noise of
    `event.noise_multiplier * sensitivity`; rounding down to the grid keeps that bound.

    Args:
        values: `(P, D)`, each from 0 to 1.
        sensitivity: the largest L2 norm of a row.

    Raises:
        ValueError: a value outside [0, 1], more than one step, or noise too small for the grid.
    """
    sigma = event.noise_multiplier * sensitivity * UNITS
    if sigma < LEAST_SIGMA:
        raise ValueError(f"Expected noise of at least {LEAST_SIGMA:g} units of the grid, got {sigma:g}.")
    sums = _sums(values, event)
    drawn = discrete_gaussian(noise, len(sums), math.ceil(sigma**2))
    return Noised(tuple((sums + drawn).tolist()))


def _sums(values: NDArray[np.float64], event: PrivacyEvent) -> NDArray[np.int64]:
    """Return the sums over patients in units, rounded down for each patient."""
    if not (np.all(values >= 0) and np.all(values <= 1)):  # NaN fails too
        raise ValueError("Expected each patient's numbers to be from 0 to 1.")
    if (event.steps, event.sampling_rate) != (1, 1.0):
        raise ValueError("Expected an event of one step over all patients.")
    return np.asarray(np.floor(values * UNITS).astype(np.int64).sum(0))
