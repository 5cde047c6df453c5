"""Lower bounds on epsilon: against closed forms and slow plain versions, never above what is claimed."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from privacy.accounting import gaussian_epsilon
from privacy.audit.bounds import (
    Guesses,
    best_attempt,
    epsilon_of_one_run,
    epsilon_of_repeated,
    guesses,
    mu_of,
    share,
)


def test_a_share_has_the_exact_interval() -> None:
    found = share(3, 20)
    assert binom.sf(2, 20, found.low) == pytest.approx(0.025)
    assert binom.cdf(3, 20, found.high) == pytest.approx(0.025)
    with pytest.raises(ValueError, match="at least one trial"):
        share(0, 0)


def test_repeated_trainings_prove_nearly_the_whole_epsilon_of_a_gaussian_and_never_more() -> None:
    mu, delta, rng = 1.5, 1e-5, np.random.default_rng(0)
    claim = gaussian_epsilon(mu, delta)
    bounds = [
        epsilon_of_repeated(
            rng.normal(mu, 1, 20_000), rng.normal(0, 1, 20_000), mu / 2, delta,
            confidence=0.9999, gaussian=True,
        )
        for _ in range(20)
    ]  # fmt: skip
    assert all(0.9 * claim < bound < claim for bound in bounds)


def test_without_the_gaussian_claim_only_the_error_rates_count() -> None:
    """With error rates of 1 % and 10 % of a million trials: log(0.9 / 0.01), less for the interval."""
    inside = np.repeat([1.0, 0.0], [900_000, 100_000])
    outside = np.repeat([1.0, 0.0], [10_000, 990_000])
    bound = epsilon_of_repeated(inside, outside, 0.5, 1e-5, confidence=0.95, gaussian=False)
    assert math.log(0.89 / 0.0103) < bound < math.log(0.9 / 0.01)
    nothing = np.zeros(100)
    assert epsilon_of_repeated(nothing, nothing, 0.5, 1e-5, confidence=0.95, gaussian=True) == 0


def test_the_bound_of_one_run_is_that_of_the_theorem_written_out() -> None:
    """Steinke et al. 2023, theorem 5.2, by plain loops and bisection."""

    def chance(eps: float, m: int, r: int, v: int, delta: float) -> float:
        q = math.exp(eps) / (1 + math.exp(eps))
        tail = sum(binom.pmf(k, r, q) for k in range(v, r + 1))
        steepest = max(sum(binom.pmf(k, r, q) for k in range(v - i, v)) / i for i in range(1, v + 1))
        return tail + 2 * m * delta * steepest

    for m, r, v, delta in [(100, 60, 55, 1e-4), (50, 50, 40, 0.0), (200, 20, 20, 1e-5)]:
        bound = epsilon_of_one_run(Guesses(m, r, v), delta, confidence=0.95)
        assert chance(bound - 1e-4, m, r, v, delta) < 0.05 <= chance(bound + 1e-4, m, r, v, delta)


def test_one_run_of_randomised_response_proves_less_than_its_epsilon_and_most_of_it() -> None:
    epsilon, canaries, rng = 2.0, 20_000, np.random.default_rng(1)
    truth = 1 / (1 + math.exp(-epsilon))
    for _ in range(10):
        inside = rng.random(canaries) < 0.5
        answers = np.where(rng.random(canaries) < truth, inside, ~inside).astype(float)
        found = guesses(answers + rng.normal(0, 1e-3, canaries), inside, canaries)
        bound = epsilon_of_one_run(found, 0.0, confidence=0.9999)
        assert 1.8 < bound < epsilon


def test_guesses_at_random_prove_nothing() -> None:
    assert epsilon_of_one_run(Guesses(1000, 1000, 520), 1e-6, confidence=0.9999) == 0


def test_the_attempt_is_chosen_by_the_claim_and_expects_what_a_simulation_finds() -> None:
    mu, canaries, rng = 1.8, 20_000, np.random.default_rng(2)
    attempt = best_attempt(canaries, mu, confidence=0.9999)
    inside = rng.random(canaries) < 0.5
    found = guesses(rng.normal(0, 1, canaries) + mu * inside, inside, attempt.made)
    bound = mu_of(epsilon_of_one_run(found, attempt.delta, confidence=0.9999), attempt.delta)
    assert 0.35 * mu < bound < mu
    assert (found.made, found.right / found.made > 0.5) == (attempt.made, True)
