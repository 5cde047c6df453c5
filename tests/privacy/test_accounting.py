import math
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants.analysis.rdp import compute_rdp

from privacy.accounting import (
    Budget,
    PrivacyEvent,
    epsilon,
    gaussian_epsilon,
    most_found,
    noise_for,
    reported_epsilon,
)

full_batch = st.builds(
    PrivacyEvent,
    noise_multiplier=st.floats(0.5, 20),
    sampling_rate=st.just(1.0),
    steps=st.integers(1, 50),
)


def test_the_gaussian_epsilon_solves_its_closed_form() -> None:
    for mu in (0.05, 0.5, 2.0, 6.0):
        eps = gaussian_epsilon(mu, 1e-5)
        tail = math.erfc((eps / mu - mu / 2) / math.sqrt(2)) / 2
        rest = math.exp(eps) * math.erfc((eps / mu + mu / 2) / math.sqrt(2)) / 2
        assert tail - rest == pytest.approx(1e-5, rel=1e-5)


def test_what_the_best_test_finds_is_the_likelihood_ratio_tests_power_on_two_gaussians() -> None:
    events = [PrivacyEvent(2.0, 1.0, 3), PrivacyEvent(4.0, 1.0, 5)]
    mu = (3 / 4 + 5 / 16) ** 0.5
    rng = np.random.default_rng(0)
    threshold = np.quantile(rng.normal(0, 1, 400_000), 0.95)
    found = (rng.normal(mu, 1, 400_000) > threshold).mean()
    assert most_found(events, 1e-5) == pytest.approx(found, abs=4e-3)


@given(full_batch)
def test_no_test_finds_more_than_epsilon_and_delta_allow(event: PrivacyEvent) -> None:
    spent = epsilon([event], 1e-5)
    allowed = min(1.0, math.exp(min(spent, 700)) * 0.05 + 1e-5)
    assert 0.05 <= most_found([event], 1e-5) <= allowed + 1e-9


def test_sampled_steps_are_bounded_by_epsilon_and_delta() -> None:
    event = PrivacyEvent(1.5, 0.04, 200)
    spent = epsilon([event], 1e-5)
    bound = min(math.exp(spent) * 0.05 + 1e-5, 1 - math.exp(-spent) * (0.95 - 1e-5))
    assert most_found([event], 1e-5) == pytest.approx(bound)


def test_forty_full_batch_steps_at_the_published_noise_cost_eight() -> None:
    event = PrivacyEvent(2.7535, 1.0, 40)
    assert epsilon([event], 0.0044) == pytest.approx(8.0, abs=0.01)
    assert reported_epsilon([event], 0.0044, "prv") == pytest.approx(8.01, abs=0.02)
    assert reported_epsilon([event], 0.0044, "rdp") == pytest.approx(9.04, abs=0.05)


@pytest.mark.parametrize(("accountant", "published"), [("rdp", 7.32911117), ("prv", 6.77739571)])
def test_opacus_published_example_of_ninety_epochs(
    accountant: Literal["prv", "rdp"], published: float
) -> None:
    event = PrivacyEvent(noise_multiplier=1.5, sampling_rate=0.04, steps=2250)
    assert reported_epsilon([event], 1e-5, accountant) == pytest.approx(published, abs=2e-3)


def test_opacus_published_noise_for_two_thousand_steps() -> None:
    noise = noise_for(Budget(epsilon=8, delta=1e-5), sampling_rate=0.04, steps=2000)
    assert noise == pytest.approx(1.3562, abs=0.01)
    assert epsilon([PrivacyEvent(noise, 0.04, 2000)], 1e-5) <= 8


@pytest.mark.parametrize(
    ("event", "delta"),
    [
        (PrivacyEvent(noise_multiplier=math.sqrt(3), sampling_rate=1.0, steps=3), 0.126936),
        (PrivacyEvent(noise_multiplier=0.5, sampling_rate=0.2, steps=3), 0.15594),
    ],
    ids=["Gaussian", "sampled Gaussian"],
)
def test_dp_accountings_published_examples_cost_an_epsilon_of_one(
    event: PrivacyEvent, delta: float
) -> None:
    assert reported_epsilon([event], delta, "pld") == pytest.approx(1.0, abs=1e-3)
    assert epsilon([event], delta) >= 1.0 - 1e-3


def test_one_gaussian_of_noise_root_three_over_three_steps_is_one_of_noise_one() -> None:
    three = PrivacyEvent(noise_multiplier=math.sqrt(3), sampling_rate=1.0, steps=3)
    assert epsilon([three], 0.126936) == pytest.approx(1.0, abs=1e-4)  # delta(1) of mu = 1


MIXED = [
    [PrivacyEvent(2.7535, 1.0, 40)],
    [PrivacyEvent(1.1, 0.01, 1000)],
    [PrivacyEvent(0.8, 0.1, 300)],
    [PrivacyEvent(4.0, 1.0, 4), PrivacyEvent(3.0, 0.2, 10), PrivacyEvent(2.0, 1.0, 2)],
    [PrivacyEvent(30.0, 0.05, 40)],
    [PrivacyEvent(0.03, 1.0, 1)],
]


@pytest.mark.parametrize("events", MIXED, ids=str)
@pytest.mark.parametrize("delta", [1e-3, 1e-5])
def test_pld_and_prv_agree_and_neither_is_above_what_is_enforced(
    events: list[PrivacyEvent], delta: float
) -> None:
    pld, prv = (reported_epsilon(events, delta, name) for name in ("pld", "prv"))
    allowed = max(0.02 * pld, 0.02)
    assert abs(pld - prv) <= allowed
    assert max(pld, prv) <= epsilon(events, delta) + allowed


@settings(max_examples=8, deadline=None)
@given(
    st.floats(0.7, 6), st.sampled_from([0.02, 0.1, 0.3, 1.0]), st.integers(1, 200),
    st.sampled_from([1e-3, 1e-5]),
)  # fmt: skip
def test_pld_and_prv_agree_on_any_usual_schedule(
    noise: float, rate: float, steps: int, delta: float
) -> None:
    event = PrivacyEvent(noise, rate, steps)
    if 0.05 < epsilon([event], delta) < 50:
        pld, prv = (reported_epsilon([event], delta, name) for name in ("pld", "prv"))
        assert abs(pld - prv) <= max(0.02 * pld, 0.02)


def test_sampling_in_the_ledgers_figure_never_costs_less_than_the_exact_one() -> None:
    """The enforced epsilon of a mixed history is an upper bound of the tight figures."""
    history = [PrivacyEvent(2.0, 1.0, 3), PrivacyEvent(1.5, 0.1, 30)]
    assert epsilon(history, 1e-5) > reported_epsilon(history, 1e-5, "pld")


def test_nothing_costs_nothing() -> None:
    assert epsilon([], 1e-5) == 0
    assert reported_epsilon([], 1e-5, "prv") == 0


@given(st.lists(full_batch, max_size=5), full_batch)
def test_another_event_never_makes_epsilon_smaller(
    events: list[PrivacyEvent], event: PrivacyEvent
) -> None:
    assert epsilon([*events, event], 1e-5) >= epsilon(events, 1e-5)


@given(st.lists(full_batch, min_size=1, max_size=5), st.randoms())
def test_the_order_of_events_does_not_matter(events: list[PrivacyEvent], random) -> None:
    shuffled = random.sample(events, len(events))
    assert epsilon(shuffled, 1e-5) == pytest.approx(epsilon(events, 1e-5), rel=1e-9)


@settings(max_examples=25)
@given(full_batch)
def test_opacus_prv_agrees_with_the_exact_figure(event: PrivacyEvent) -> None:
    exact = epsilon([event], 1e-5)
    if 0.1 < exact < 20:
        reported = reported_epsilon([event], 1e-5, "prv")
        assert abs(reported - exact) <= max(0.02 * exact, 0.02)


@pytest.mark.parametrize("rate", [1.0, 0.1])
@pytest.mark.parametrize("target", [0.5, 8.0])
def test_the_solved_noise_spends_the_budget_and_not_more(rate: float, target: float) -> None:
    budget = Budget(epsilon=target, delta=1e-4)
    noise = noise_for(budget, sampling_rate=rate, steps=32)
    spent = epsilon([PrivacyEvent(noise, rate, 32)], 1e-4)
    assert 0.999 * target < spent <= target


def test_sampling_costs_less_than_every_patient_in_each_step() -> None:
    budget = Budget(epsilon=4, delta=1e-5)
    sampled = noise_for(budget, sampling_rate=0.05, steps=100)
    assert sampled < noise_for(budget, sampling_rate=1, steps=100)


@pytest.mark.parametrize(
    ("noise", "rate", "steps"),
    [(0, 1, 1), (-1, 1, 1), (math.inf, 1, 1), (1, 0, 1), (1, 1.1, 1), (1, 1, 0)],
)
def test_an_impossible_event_is_refused(noise: float, rate: float, steps: int) -> None:
    with pytest.raises(ValueError, match="Expected"):
        PrivacyEvent(noise, rate, steps)


def test_small_charges_cost_about_what_they_should_under_renyi_dp() -> None:
    """Opacus' own grid of orders ends at 63, and makes it 0.104."""
    one = [PrivacyEvent(200.0, 1.0, 1)]
    exact = gaussian_epsilon(1 / 200, 1e-5)
    assert exact == pytest.approx(0.0125, abs=1e-4)
    assert exact < epsilon(one, 1e-5, "renyi") < 0.0148


@given(st.floats(1, 3000), st.integers(1, 300), st.sampled_from([1e-3, 1e-5, 1e-9]))
def test_the_renyi_rule_is_never_below_the_exact_one(noise: float, steps: int, delta: float) -> None:
    event = [PrivacyEvent(noise, 1.0, steps)]
    exact = epsilon(event, delta)
    assert exact <= epsilon(event, delta, "renyi") <= 1.35 * exact + steps**0.5 / noise


@given(st.floats(5, 500), st.sampled_from([0.01, 0.1, 0.5]), st.sampled_from([64, 640, 1024]))
def test_a_sampled_step_counts_at_most_like_one_over_all_patients(
    noise: float, rate: float, order: int
) -> None:
    """By which the largest orders are bounded."""
    sampled = compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=[order])
    assert float(np.atleast_1d(sampled)[0]) <= order / (2 * noise**2) * (1 + 1e-9)
