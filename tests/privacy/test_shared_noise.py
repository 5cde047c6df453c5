"""Shares of the noise on a sum: size, sensitivity, and cost by an independent accountant."""

import math

import numpy as np
import pytest
import torch
from dp_accounting.pld import privacy_loss_distribution as pld
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from privacy.accounting import PrivacyEvent, epsilon
from privacy.mechanisms import ClipConfig, Mechanism
from privacy.noise.discrete_gaussian import LEAST_SHARE, SMOOTHING, discrete_gaussian
from privacy.noise.source import NoiseSource
from privacy.shared_noise import SharedGaussian, clipped_change


def shared(noise: float = 2.0, numel: int = 400, honest: int = 3, clip: float = 1.0) -> SharedGaussian:
    mechanism = Mechanism(ClipConfig(kind="normalised", norm=clip), noise, 1.0, 1, divisor=10)
    return SharedGaussian(mechanism, numel, honest)


@given(
    noise=st.floats(0.05, 100), numel=st.integers(1, 10**7), honest=st.integers(1, 200),
    clip=st.floats(1e-3, 1e3),
)  # fmt: skip
def test_the_shares_of_those_counted_on_reach_the_noise_and_rounding_costs_one_per_cent(
    noise: float, numel: int, honest: int, clip: float
) -> None:
    found = shared(noise, numel, honest, clip)
    due = (noise * found.sensitivity) ** 2 + SMOOTHING
    assert honest * found.share_variance >= due * (1 - 1e-12)
    assert found.share_variance >= LEAST_SHARE
    assert math.log2(found.grid).is_integer()
    assert found.sensitivity <= 1.01 * clip / found.grid * (1 + 1e-12)


@given(
    st.lists(st.floats(-50, 50), min_size=6, max_size=6),
    st.lists(st.floats(-1, 1), min_size=6, max_size=6),
)
def test_zeroing_a_patient_moves_a_rounded_sum_by_at_most_the_sensitivity(
    others: list[float], direction: list[float]
) -> None:
    found = shared(numel=6)
    patient = np.array(direction) / max(1.0, float(np.linalg.norm(direction)))
    with_patient, without = (
        np.rint(s / found.grid) for s in (np.array(others) + patient, np.array(others))
    )
    assert np.linalg.norm(with_patient - without) <= found.sensitivity


def test_a_discrete_gaussian_costs_no_more_than_the_gaussian_it_counts_as() -> None:
    """In one dimension, against Google's accountant for the discrete Gaussian itself."""
    sensitivity, variance, delta = 7, 40, 1e-5
    discrete = pld.from_discrete_gaussian_mechanism(
        math.sqrt(variance), sensitivity=sensitivity, value_discretization_interval=1e-4
    ).get_epsilon_for_delta(delta)
    counted = epsilon([PrivacyEvent(math.sqrt(variance - SMOOTHING) / sensitivity, 1.0, 1)], delta)
    exact = epsilon([PrivacyEvent(math.sqrt(variance) / sensitivity, 1.0, 1)], delta)
    assert exact * 0.99 < discrete <= counted


def test_a_sum_of_shares_is_the_discrete_gaussian_of_their_variances_together() -> None:
    around = np.arange(-400, 401)
    one = np.exp(-(around**2) / (2 * LEAST_SHARE))
    one /= one.sum()
    together = np.convolve(np.convolve(one, one, "same"), one, "same")
    due = np.exp(-(around**2) / (2 * 3 * LEAST_SHARE))
    assert np.abs(together - due / due.sum()).max() < 1e-15


def test_the_noise_of_a_share_is_what_it_says_and_alone_it_protects_as_stated() -> None:
    found = shared(noise=3.0, numel=50_000, honest=4)
    drawn = found.noisy(np.zeros(found.numel), NoiseSource.for_test(0, "share"))
    assert drawn.std() == pytest.approx(math.sqrt(found.share_variance), rel=0.02)
    assert found.own_event.noise_multiplier == pytest.approx(1.5, rel=1e-3)
    whole = sum(
        discrete_gaussian(NoiseSource.for_test(k, "share"), found.numel, found.share_variance)
        for k in range(4)
    )
    assert whole.std() / found.sensitivity == pytest.approx(3.0, rel=0.02)
    assert np.abs(whole).max() / whole.std() < norm.isf(1e-9)


NUMBERS = st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=6, max_size=6)


@given(one=NUMBERS, other=NUMBERS, kind=st.sampled_from(["flat", "normalised"]))
def test_whatever_a_hospital_sends_moves_the_sum_by_at_most_twice_the_norm(
    one: list[float], other: list[float], kind: str
) -> None:
    mechanism = Mechanism(ClipConfig(kind=kind, norm=0.5), 2.0, 1.0, 1, 10, unit="hospital")
    found = SharedGaussian(mechanism, 6, 3)
    sent = [
        np.rint(
            clipped_change({"b": torch.tensor(v[:2]), "a": torch.tensor(v[2:])}, mechanism) / found.grid
        )
        for v in (one, other)
    ]
    assert mechanism.sensitivity == 1.0
    assert np.linalg.norm(sent[0] - sent[1]) <= found.sensitivity


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_change_that_is_not_finite_counts_as_none_and_parameters_are_ordered_by_name(
    value: float,
) -> None:
    mechanism = Mechanism(ClipConfig(kind="flat", norm=10.0), 2.0, 1.0, 1, 10, unit="hospital")
    change = {"b": torch.tensor([3.0]), "a": torch.tensor([[1.0], [2.0]])}
    assert clipped_change(change, mechanism) == pytest.approx([1.0, 2.0, 3.0], rel=1e-4)
    change["b"] = torch.tensor([value])
    assert clipped_change(change, mechanism).tolist() == [0.0, 0.0, 0.0]
