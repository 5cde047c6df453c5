"""Canaries in one training: what they see, and that they prove no more than is true."""

import numpy as np
import pytest
import torch
from trainings import TASK, examples, network

from privacy.accounting import epsilon
from privacy.mechanisms import ClipConfig, Mechanism
from sites.audit.one_run import one_run
from sites.training.config import TrainingConfig


def run(noise: float, *, momentum: float = 0.9, rate: float = 1.0, seed: int = 0, canaries: int = 4000):
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 64, 3, padding=1), torch.nn.PReLU(), torch.nn.Conv2d(64, 64, 1),
        torch.nn.Conv2d(64, 2, 1),
    )  # fmt: skip
    mechanism = Mechanism(ClipConfig(kind="flat", norm=0.5), noise, rate, 3, divisor=6 * rate)
    config = TrainingConfig(steps=3, lr=0.1, lot="all", momentum=momentum)
    rng = np.random.default_rng(seed)
    return one_run(net, TASK, examples(6), [config] * 2, mechanism, 1e-5, canaries, rng)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_canaries_prove_part_of_the_claim_and_never_more(momentum: float) -> None:
    found = run(noise=2.0, momentum=momentum)
    assert found.claimed == pytest.approx(epsilon([_event(2.0)], 1e-5))
    assert 0.15 * found.claimed < found.epsilon_lower < found.claimed


def _event(noise: float):
    from privacy.accounting import PrivacyEvent

    return PrivacyEvent(noise, 1.0, 6)


def test_noise_that_is_too_small_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the charged noise: the guesses prove more than was charged."""
    right = Mechanism.noise_std.fget
    monkeypatch.setattr(Mechanism, "noise_std", property(lambda self: right(self) / 10))
    found = run(noise=8.0)
    assert found.epsilon_lower > found.claimed


def test_canaries_that_are_not_there_are_not_found() -> None:
    found = run(noise=1e3)
    assert found.epsilon_lower == 0
    assert abs(found.right / found.made - 0.5) < 0.2


def test_sampled_steps_are_bounded_at_the_attacks_own_delta() -> None:
    found = run(noise=2.0, rate=0.5)
    assert found.delta < 1e-5 or found.delta == 1e-5
    assert found.epsilon_lower < found.claimed


def test_no_more_canaries_than_parameters_take_part() -> None:
    small = network()
    numel = sum(p.numel() for p in small.parameters())
    mechanism = Mechanism(ClipConfig(kind="normalised", norm=1.0), 1.0, 1.0, 1, divisor=6)
    config = TrainingConfig(steps=1, lr=0.1, lot="all")
    found = one_run(
        small, TASK, examples(6), [config], mechanism, 1e-5, 10_000, np.random.default_rng(0)
    )
    assert found.canaries == numel
