import math
from dataclasses import replace

import pytest
import torch

from privacy.accounting import PrivacyEvent, epsilon
from privacy.mechanisms import AdaptiveClip, ClipConfig, LocalPrivacy, Mechanism, mechanism_for
from privacy.noise.discrete_gaussian import grid_noise
from privacy.noise.source import NoiseSource

PRIVACY = LocalPrivacy(
    mode="local", unit="patient", epsilon=8, delta=1e-4, clip={"kind": "flat", "norm": 0.5}
)


@pytest.mark.parametrize("lot", [None, 10])
def test_all_rounds_together_spend_the_studys_budget_and_not_more(lot: int | None) -> None:
    mechanism = mechanism_for(PRIVACY, rounds=6, steps=4, lot=lot, declared=70)
    assert mechanism.event.steps == 4
    spent = epsilon([mechanism.event] * 6, 1e-4)
    assert 7.99 < spent <= 8.000001


def test_noise_divisor_and_rate_come_from_the_declared_number() -> None:
    mechanism = mechanism_for(PRIVACY, rounds=6, steps=4, lot=10, declared=70)
    assert mechanism.sampling_rate == 10 / 70
    assert mechanism.divisor == 10
    assert mechanism.noise_std == mechanism.noise_multiplier * 0.5


def test_a_delta_of_one_over_n_is_refused() -> None:
    with pytest.raises(ValueError, match="delta < 1/10000"):
        mechanism_for(PRIVACY, rounds=1, steps=1, lot=None, declared=10_000)


def test_a_lot_above_the_declared_number_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 70"):
        mechanism_for(PRIVACY, rounds=1, steps=1, lot=71, declared=70)


def adaptive(noise: float = 1e-6, divisor: float = 50, **changes: float) -> Mechanism:
    clip = AdaptiveClip.model_validate({"kind": "adaptive", "norm": 0.1, **changes})
    return Mechanism(clip, noise, 1.0, 1, divisor)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5])
def test_sum_and_count_together_cost_the_one_event_that_is_charged(share: float) -> None:
    mechanism = adaptive(noise=3.0, count_share=share)
    count_std = 3.0 / (2 * math.sqrt(share))  # as `adapted` draws it, measured below
    both = (mechanism.clip.norm / mechanism.noise_std) ** 2 + (0.5 / count_std) ** 2
    assert both == pytest.approx(1 / 3.0**2)
    assert mechanism.event == PrivacyEvent(3.0, 1.0, 1)
    assert mechanism.noise_std > 3.0 * mechanism.clip.norm
    source, half = NoiseSource.for_test(0, "count"), replace(mechanism, divisor=1000 * count_std)
    norms = [half.adapted(0, source).clip.norm for _ in range(2000)]
    moved = torch.tensor(norms).double().div(0.1).log().div(-0.2).mul(1000 * count_std)
    assert moved.std().item() == pytest.approx(count_std, rel=0.06)


def test_zeroing_a_patient_moves_the_count_by_a_half_and_the_sum_by_the_norm_at_most() -> None:
    mechanism, norms = adaptive(), torch.tensor([0.01, 0.1, 5.0, math.nan, math.inf])
    assert mechanism.count_within(norms) == 2 - 2.5
    for left_out in range(5):
        others = torch.cat([norms[:left_out], norms[left_out + 1 :]])
        assert abs(mechanism.count_within(norms) - mechanism.count_within(others)) == 0.5
    assert (norms * mechanism.clip_factors(norms)).nan_to_num().max() <= 0.1 * (1 + 1e-6)


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
def test_an_adaptive_norm_finds_the_quantile_of_the_patients_norms(quantile: float) -> None:
    norms = torch.randn(50, generator=torch.Generator().manual_seed(0)).mul(0.3).exp() * 7
    mechanism, noise = adaptive(quantile=quantile), NoiseSource.for_test(0, "quantile")
    for _ in range(200):
        mechanism = mechanism.adapted(mechanism.count_within(norms), noise)
    assert (norms <= mechanism.clip.norm).double().mean().item() == pytest.approx(quantile, abs=0.04)


def test_a_step_moves_the_norm_as_the_paper_says_and_a_fixed_one_stays() -> None:
    norms = torch.tensor([0.05, 0.05, 0.05, 1.0])
    mechanism = adaptive(noise=1e-12, divisor=4)
    moved = mechanism.adapted(mechanism.count_within(norms), NoiseSource.for_test(0, ""))
    assert moved.clip.norm == pytest.approx(0.1 * math.exp(-0.2 * (0.75 - 0.5)))
    assert moved.event == mechanism.event
    fixed = mechanism_for(PRIVACY, rounds=1, steps=1, lot=None, declared=70)
    assert fixed.adapted(3.0, NoiseSource.for_test(0, "")) is fixed


def test_an_adaptive_norm_stays_within_what_floats_can_hold() -> None:
    mechanism, noise = adaptive(norm=1e-6, rate=1.0), NoiseSource.for_test(0, "")
    for _ in range(5):
        mechanism = mechanism.adapted(25.0, noise)
    assert mechanism.clip.norm == 1e-6


@pytest.mark.parametrize("rate", [1.0, 0.2])
def test_no_step_of_noise_and_patients_is_longer_than_the_longest(rate: float) -> None:
    """Twice the declared patients, all with the same gradient, in every step."""
    clip, declared = ClipConfig(kind="flat", norm=0.7), 10
    mechanism = Mechanism(clip, 1.3, rate, 1, divisor=rate * declared)
    longest = mechanism.longest_step(50)
    direction = torch.nn.functional.normalize(torch.ones(50, dtype=torch.float64), dim=0)
    together = direction * clip.norm * 2 * declared
    source = NoiseSource.for_test(0, "longest")
    drawn = grid_noise(source, 500 * 50, mechanism.noise_std, mechanism.grid(50)).reshape(500, 50)
    steps = [together + torch.from_numpy(noise) for noise in drawn]
    norms = [float(step.norm()) / mechanism.divisor for step in steps]
    assert 0.5 * longest < max(norms) < longest
