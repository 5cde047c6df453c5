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
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from privacy.accounting import PrivacyEvent
from privacy.noise.discrete_gaussian import LEAST_SHARE, SMOOTHING, discrete_gaussian
from privacy.noise.source import NoiseSource

UNITS = 2**16
"""Units of the grid in one patient's largest number, 1."""

STEP = 2.0**-20
"""The grid of published shares: each is a multiple of it, exact in float64 and in JSON."""

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


def shared_sums(
    values: NDArray[np.float64],
    event: PrivacyEvent,
    sensitivity: float,
    noise: NoiseSource,
    honest: int,
) -> NDArray[np.int64]:
    """Return a hospital's sums in units with its share of the noise, as `noised_sums` has all of it.

    Guarantees: with the shares of `honest` hospitals the total has the noise that the event states.
    """
    sums = _sums(values, event)
    return sums + discrete_gaussian(noise, len(sums), share_variance(event, sensitivity, honest))


def share_variance(event: PrivacyEvent, sensitivity: float, honest: int) -> int:
    """Return the variance of one hospital's share of the noise, in units^2 (docs/decisions/0017)."""
    whole = (event.noise_multiplier * sensitivity * UNITS) ** 2 + SMOOTHING
    return max(math.ceil(whole / honest), LEAST_SHARE)


def own_event(event: PrivacyEvent, sensitivity: float, honest: int) -> PrivacyEvent:
    """Return the event that sums would cost if no other hospital added noise."""
    alone = math.sqrt(share_variance(event, sensitivity, honest) - SMOOTHING)
    return PrivacyEvent(alone / (sensitivity * UNITS), 1.0, 1)


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
