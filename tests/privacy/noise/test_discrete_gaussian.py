"""The discrete Gaussian is exact: against its probabilities, a slow plain sampler, and 100 digits."""

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chi2, kstest, norm

from privacy.noise.discrete_gaussian import LARGEST_VARIANCE, _happens, discrete_gaussian, grid_noise
from privacy.noise.source import NoiseSource


def probabilities(values: NDArray[np.int64], variance: float) -> NDArray[np.float64]:
    everything = np.arange(-60 * math.isqrt(int(variance)) - 60, 60 * math.isqrt(int(variance)) + 61)
    whole = np.exp(-(everything**2) / (2 * variance)).sum()
    found: NDArray[np.float64] = np.exp(-(values**2) / (2 * variance)) / whole
    return found


def fits(drawn: NDArray[np.int64], variance: float) -> bool:
    """Return whether a chi-square test finds no difference to the distribution, at one in a million."""
    reach = int(3 * variance**0.5)
    cells = np.arange(-reach, reach + 1)
    expected = probabilities(cells, variance) * len(drawn)
    found = np.array([(drawn == cell).sum() for cell in cells])
    statistic = ((found - expected) ** 2 / expected).sum()
    return bool(statistic < chi2.ppf(1 - 1e-6, len(cells)))


class Plain:
    """The same distribution in exact fractions, number by number (Canonne, Kamath and Steinke 2020)."""

    def __init__(self, source: NoiseSource) -> None:
        self._source = source

    def below(self, bound: int) -> int:
        bits = (bound - 1).bit_length()
        while True:
            drawn = int(self._source.words(1)[0]) >> (64 - bits) if bits else 0
            if drawn < bound:
                return drawn

    def happens(self, exponent: Fraction) -> bool:
        while exponent > 1:
            if not self.happens(Fraction(1)):
                return False
            exponent -= 1
        count = 1
        while self.below(exponent.denominator * count) < exponent.numerator:
            count += 1
        return count % 2 == 1

    def laplace(self, scale: int) -> int:
        while True:
            part = self.below(scale)
            if not self.happens(Fraction(part, scale)):
                continue
            whole = 0
            while self.happens(Fraction(1)):
                whole += 1
            size, negative = part + scale * whole, bool(self.below(2))
            if size or not negative:
                return -size if negative else size

    def gaussian(self, variance: int) -> int:
        scale = math.isqrt(variance) + 1
        while True:
            drawn = self.laplace(scale)
            distance = abs(drawn) - Fraction(variance, scale)
            if self.happens(distance**2 / (2 * variance)):
                return drawn


@pytest.mark.parametrize("variance", [1, 2, 9, 40])
def test_each_number_is_as_likely_as_the_definition_says(variance: int) -> None:
    assert fits(discrete_gaussian(NoiseSource.for_test(variance, "dg"), 200_000, variance), variance)


def test_the_test_itself_finds_a_wrong_variance_and_the_plain_sampler_right() -> None:
    assert not fits(discrete_gaussian(NoiseSource.for_test(0, "dg"), 200_000, 9), 9.3)
    plain = Plain(NoiseSource.for_test(0, "plain"))
    assert fits(np.array([plain.gaussian(9) for _ in range(20_000)]), 9)


@pytest.mark.parametrize("bits", [20, 50, 80, 104])
def test_wide_noise_is_the_gaussian_that_it_approaches(bits: int) -> None:
    drawn = discrete_gaussian(NoiseSource.for_test(bits, "wide"), 100_000, 2**bits) / 2 ** (bits / 2)
    assert kstest(drawn, "norm").pvalue > 1e-6
    assert drawn.std() == pytest.approx(1, abs=0.02)
    assert np.abs(drawn).max() > norm.isf(1e-4)


def test_the_variance_is_the_parameter_from_nine_on() -> None:
    values = np.arange(-400, 401)
    assert (probabilities(values, 9) * values**2).sum() == pytest.approx(9, rel=1e-12)


class Given(NoiseSource):
    """A source whose words are given; later ones are zero."""

    def __init__(self, words: list[int]) -> None:
        super().__init__(bytes(32))
        self._given = list(words)

    def words(self, count: int) -> NDArray[np.uint64]:
        taken, self._given = self._given[:count], self._given[count:]
        return np.array([*taken, *[0] * (count - len(taken))], np.uint64)


@given(
    numerator=st.integers(0, 10**9),
    denominator=st.integers(10**7, 10**9),
    away=st.integers(-3, 3),
    later=st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=2),
)
def test_where_floating_point_cannot_decide_more_bits_and_digits_do(
    numerator: int, denominator: int, away: int, later: list[int]
) -> None:
    with localcontext() as context:
        context.prec = 120
        probability = (-Decimal(numerator) / Decimal(denominator)).exp()
        word = min(max(int(probability * 2**64) + away, 0), 2**64 - 1)
        bits = (word << 128) | (later[0] << 64) | later[1]
        uniform = Decimal(bits) / Decimal(2**192)
        due = uniform < probability
    source = Given([word, *later])
    exponent = np.array([numerator / denominator])
    (found,) = _happens(source, exponent, lambda _: Decimal(numerator) / Decimal(denominator))
    assert bool(found) == due


def test_noise_on_a_grid_is_on_it_and_at_least_as_wide_as_asked() -> None:
    drawn = grid_noise(NoiseSource.for_test(1, "grid"), 100_000, std=1.5, grid=0.25)
    assert np.array_equal(drawn, np.round(drawn / 0.25) * 0.25)
    assert drawn.std() == pytest.approx(math.sqrt(1.5**2 + 9 * 0.25**2), rel=0.02)


@pytest.mark.parametrize("variance", [0, -1, LARGEST_VARIANCE + 1])
def test_a_variance_outside_its_bounds_is_refused(variance: int) -> None:
    with pytest.raises(ValueError, match="Expected a variance"):
        discrete_gaussian(NoiseSource.for_test(0, ""), 1, variance)


def test_a_sum_of_a_gaussian_and_the_smoothing_is_the_discrete_gaussian_it_counts_as() -> None:
    """Decision 0017: rounding N(0, s^2) by a discrete Gaussian of variance 9 gives variance s^2 + 9."""
    centres, step = np.linspace(-60, 60, 240_001, retstep=True)
    density = norm.pdf(centres, scale=5.0)
    around = np.arange(-100, 101)
    weights = np.exp(-((around[:, None] - centres[None, ::40]) ** 2) / 18)
    rounded = weights / weights.sum(0)
    found = rounded @ density[::40] * step * 40
    assert np.abs(found - probabilities(around, 25 + 9)).max() < 1e-9
