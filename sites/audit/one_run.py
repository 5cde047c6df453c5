"""Audit of one private training by canaries: many made-up gradients, each planted by the toss of a coin.

Each canary is a gradient along a direction of its own, clipped by the mechanism's own factor and added
to the patients' sums in every step that it takes part in. Who sees every step guesses the coins. The
more guesses are right, the larger the epsilon that this one training proves (`privacy.audit.bounds`).

It sees the noise, its reuse, the number of steps and the sampling of what was planted. It can't see
whether patients' own gradients are clipped, or kept apart: canaries enter after that. The checks of
`sites.audit.mechanism` see it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.config import Config
from models.objectives import Task
from privacy.accounting import epsilon, gaussian_epsilon
from privacy.audit.bounds import best_attempt, epsilon_of_one_run, guesses, mu_of
from privacy.mechanisms import Mechanism
from privacy.noise.source import NoiseSource
from sites.training import dp_sgd
from sites.training.config import TrainingConfig
from sites.training.examples import Examples

CONFIDENCE = 0.9999
LONG = 1e6
"""Length of a canary before clipping, in clip norms: clipping leaves it the whole norm."""


class OneRun(Config):
    """The result of an audit of one training.

    Attributes:
        canaries, made, right: canaries, guesses about them, and right guesses.
        epsilon_lower: what the guesses prove.
        claimed: what the training was charged, at the same delta.
        delta: the study's; for sampled steps, which are no Gaussian mechanism, that of the attack's
            bound.
        steps: steps of the training, over all rounds.
    """

    canaries: int
    made: int
    right: int
    epsilon_lower: float
    claimed: float
    delta: float
    steps: int
    confidence: float = CONFIDENCE

    @property
    def holds(self) -> bool:
        """Whether the guesses leave the claim standing."""
        return self.epsilon_lower <= self.claimed


@dataclass
class _Watched:
    """A training's noisy sums along the canaries' directions, added up over its steps.

    Attributes:
        places: each canary's coordinate among the parameters, one after the other in their order.
        signs: each canary's direction along it, +1 or -1.
        inside: the coins.
    """

    network: nn.Module
    places: Tensor
    signs: Tensor
    inside: NDArray[np.bool_]
    source: NoiseSource
    total: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.total = torch.zeros(len(self.places), dtype=torch.float64)

    def planted(self, mechanism: Mechanism) -> Sequence[Tensor]:
        """Return the sum of the clipped canaries that take part in a step, by parameter."""
        lot = dp_sgd.poisson_lot(len(self.inside), mechanism.sampling_rate, self.source)
        taking = np.zeros_like(self.inside)
        taking[lot] = self.inside[lot]
        long = torch.full((len(taking),), LONG * mechanism.clip.norm, dtype=torch.float64)
        clipped = long * mechanism.clip_factors(long) * self.signs * torch.from_numpy(taking)
        sizes = [p.numel() for p in self.network.parameters()]
        whole = torch.zeros(sum(sizes), dtype=torch.float64).index_add_(0, self.places, clipped)
        parts = torch.split(whole, sizes)
        return [
            part.view(p.shape).to(p.device)
            for part, p in zip(parts, self.network.parameters(), strict=True)
        ]

    def at(self) -> Tensor:
        """Return the parameters along the canaries' directions."""
        flat = torch.cat([p.detach().double().ravel().cpu() for p in self.network.parameters()])
        return flat[self.places] * self.signs


def one_run(
    network: nn.Module,
    task: Task,
    examples: Examples,
    rounds: Sequence[TrainingConfig],
    mechanism: Mechanism,
    delta: float,
    canaries: int,
    rng: np.random.Generator,
) -> OneRun:
    """Train `network` in place with canaries beside the patients, and return what guesses prove.

    Args:
        rounds: the configuration of each round, one after the other.
        mechanism: of one round.
        canaries: number of canaries; at most one for each parameter takes part.
    """
    numel = sum(p.numel() for p in network.parameters())
    count = min(canaries, numel)
    watched = _Watched(
        network,
        torch.from_numpy(rng.choice(numel, count, replace=False)),
        torch.from_numpy(rng.choice([-1.0, 1.0], count)),
        rng.random(count) < 0.5,
        NoiseSource.from_system(),
    )
    for config in rounds:
        _watch(watched, task, examples, config, mechanism)
    events, steps = [mechanism.event] * len(rounds), mechanism.steps * len(rounds)
    shift = mechanism.sampling_rate * math.sqrt(steps) / mechanism.noise_multiplier
    attempt = best_attempt(count, shift, confidence=CONFIDENCE)
    found = guesses(watched.total.numpy(), watched.inside, attempt.made)
    lower = epsilon_of_one_run(found, attempt.delta, confidence=CONFIDENCE)
    if mechanism.sampling_rate == 1:
        lower = gaussian_epsilon(mu_of(lower, attempt.delta), delta)
    else:
        delta = attempt.delta
    claimed = epsilon(events, delta)
    return OneRun(
        canaries=found.canaries,
        made=found.made,
        right=found.right,
        epsilon_lower=lower,
        claimed=claimed,
        delta=delta,
        steps=steps,
    )


def _watch(
    watched: _Watched, task: Task, examples: Examples, config: TrainingConfig, mechanism: Mechanism
) -> None:
    """Train one round, and add each step's noisy mean along the canaries to their totals.

    SGD with momentum b moves by the rate times m_t = g_t + b m_{t-1}, from which g_t follows.
    """
    before, moment = watched.at(), torch.zeros(len(watched.places), dtype=torch.float64)

    def after_step(_what: str, _step: int, _of: int) -> None:
        nonlocal before, moment
        now = watched.at()
        moved = (before - now) / config.step_size
        watched.total += moved - config.momentum * moment
        before, moment = now, moved

    dp_sgd.train_privately(
        watched.network, task, examples, config, mechanism, NoiseSource.from_system(), None,
        after_step, planted=watched.planted,
    )  # fmt: skip
