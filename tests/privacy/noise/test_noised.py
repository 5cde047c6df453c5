"""Noised figures show nothing but a noised integer on a public grid."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.accounting import PrivacyEvent
from privacy.noise.noised import (
    LEAST_SIGMA,
    STEP,
    UNITS,
    Noised,
    is_on_grid,
    noised_sums,
    to_grid,
)
from privacy.noise.source import NoiseSource

EVENT = PrivacyEvent(4.0, 1.0, 1)


def test_its_variance_is_the_gaussians_from_the_smallest_noise_on() -> None:
    """The discrete Gaussian's variance is below sigma^2 by less than one part in 1e300 (theorem 2)."""
    values = np.arange(-200, 201)
    weights = np.exp(-(values**2) / (2 * LEAST_SIGMA**2))
    assert (weights * values**2).sum() / weights.sum() == pytest.approx(LEAST_SIGMA**2, rel=1e-12)


def test_the_noise_is_what_the_event_states() -> None:
    values = np.full((3, 4000), 0.25)
    noised = noised_sums(values, EVENT, 2.0, NoiseSource.for_test(2, "scale"))
    drawn = np.array(noised.units) / UNITS - 0.75
    assert drawn.std() == pytest.approx(8.0, rel=0.05)
    assert abs(drawn.mean()) < 5 * 8 / 4000**0.5


@given(
    rows=st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=6),
    declared=st.integers(1, 10**6),
    seed=st.integers(0, 10**6),
)
def test_what_is_published_is_on_the_grid_and_a_function_of_the_noised_integers(
    rows: list[list[float]], declared: int, seed: int
) -> None:
    noised = noised_sums(np.array(rows), EVENT, 3**0.5, NoiseSource.for_test(seed, "grid"))
    assert all(isinstance(each, int) for each in noised.units)
    shares = noised.shares(declared)
    assert all(is_on_grid(share) and 0 <= share <= 1 for share in shares)
    assert shares == Noised(noised.units).shares(declared)


@given(value=st.floats(0, 1))
def test_a_patients_number_never_grows_on_the_grid(value: float) -> None:
    source = NoiseSource.for_test(3, "floor")
    (units,) = noised_sums(np.array([[value]]), EVENT, 1.0, source).units
    (nothing,) = noised_sums(np.zeros((1, 1)), EVENT, 1.0, NoiseSource.for_test(3, "floor")).units
    assert 0 <= units - nothing <= value * UNITS


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_number_outside_its_bounds_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        noised_sums(np.array([[0.5, value]]), EVENT, 1.0, NoiseSource.for_test(4, "bounds"))


def test_noise_that_is_too_small_for_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="units of the grid"):
        noised_sums(np.ones((1, 1)), PrivacyEvent(5e-5, 1.0, 1), 1.0, NoiseSource.for_test(5, "small"))


def test_a_mean_of_published_figures_goes_back_to_the_grid() -> None:
    assert is_on_grid(to_grid(1 / 3)) and abs(to_grid(1 / 3) - 1 / 3) <= STEP / 2
