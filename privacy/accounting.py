"""The total cost of private trainings, in epsilon at a given delta.

Adjacency is zero-out at the patient: one patient's contribution becomes zero, while declared
counts, rates and divisors stay unchanged. The enforced epsilon stays valid when later studies are
chosen after earlier results were seen (a privacy filter):

- `gaussian`: steps over all patients are Gaussian mechanisms; 1/sigma^2 adds up (Smith and Thakurta
  2022, Fully Adaptive Composition for Gaussian DP, https://arxiv.org/abs/2210.17520) and the sum
  converts exactly (Balle and Wang 2018, Analytical Gaussian Mechanism,
  https://arxiv.org/abs/1805.06530);
- `renyi`: Renyi DP adds up, sampled steps included (Feldman and Zrnic 2021, Individual Privacy
  Accounting via a Renyi Filter, https://arxiv.org/abs/2008.11193; for several orders Lecuyer 2021,
  Practical Privacy Filters and Odometers, https://arxiv.org/abs/2103.01379). Opacus computes a step's
  divergences, Google's dp-accounting converts their sum.

The rule is fixed for a ledger in advance, in the ledger itself. To change it later, or to count exactly
until the first sampled step, would let an outcome choose the rule, and then neither guarantee holds
(docs/decisions/0015).

Tighter figures (privacy loss distributions, by Google's dp-accounting; PRV, by Opacus) hold for a
schedule that was fixed in advance. They are reported beside the enforced epsilon and decide nothing.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr, ndtri

from models.config import Config

LEAST_NOISE, MOST_NOISE = 1e-3, 1e4
"""Bounds of noise multipliers: smaller ones protect nobody, larger ones leave nothing to learn.

`LEAST_NOISE` bounds the statements that are accepted, `MOST_NOISE` the search of `noise_for`.
"""
TOLERANCE = 1e-9
"""Relative tolerance for rounding in sums of floats."""

Accountant = Literal["prv", "pld", "rdp"]
Filter = Literal["gaussian", "renyi"]


class Budget(Config):
    """The most that may be spent on any patient: (epsilon, delta).

    Attributes:
        epsilon (no unit): the most that may be spent on any patient.
        delta (probability): the delta at which it holds.
    """

    epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]

    def covers(self, epsilon: float) -> bool:
        """Return whether `epsilon`, at this budget's delta, is within the budget."""
        return epsilon <= self.epsilon * (1 + TOLERANCE)


@dataclass(frozen=True)
class PrivacyEvent:
    """`steps` Gaussian mechanisms, each on a fresh sample; a patient is in it with `sampling_rate`.

    Raises:
        ValueError: a noise multiplier that is not positive and finite, a rate outside (0, 1], no steps.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        if not (self.noise_multiplier > 0 and math.isfinite(self.noise_multiplier)):
            raise ValueError(f"Expected a finite noise multiplier > 0, got {self.noise_multiplier}.")
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(f"Expected 0 < sampling rate <= 1, got {self.sampling_rate}.")
        if self.steps < 1:
            raise ValueError(f"Expected at least one step, got {self.steps}.")


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the exact epsilon of a Gaussian mechanism of sensitivity mu and noise 1.

    Solves delta = Phi(-eps/mu + mu/2) - e^eps Phi(-eps/mu - mu/2) (Balle and Wang 2018, Analytical
    Gaussian Mechanism, theorem 8, https://arxiv.org/abs/1805.06530).

    >>> round(gaussian_epsilon(mu=40**0.5 / 2.7535, delta=0.0044), 1)
    8.0
    """
    if mu == 0 or _gaussian_delta(0.0, mu) <= delta:
        return 0.0
    upper = 1.0
    while _gaussian_delta(upper, mu) > delta:
        upper *= 2
    return float(brentq(lambda eps: _gaussian_delta(eps, mu) - delta, 0.0, upper, xtol=1e-12))


def _gaussian_delta(epsilon: float, mu: float) -> float:
    tail = math.exp(epsilon + float(log_ndtr(-epsilon / mu - mu / 2)))
    return float(ndtr(-epsilon / mu + mu / 2)) - tail


def epsilon(events: Iterable[PrivacyEvent], delta: float, rule: Filter | None = None) -> float:
    """Return the epsilon of `events` together, an upper bound on the true cost.

    Args:
        rule: the filter that enforces it. None for events of one schedule that is fixed in advance: then
            the exact rule applies unless a step is sampled.

    Raises:
        ValueError: a sampled step under the rule for Gaussian mechanisms.
    """
    events = list(events)
    is_sampled = any(event.sampling_rate < 1 for event in events)
    if is_sampled and rule == "gaussian":
        raise ValueError("Expected steps over all patients, got a sampled one.")
    if is_sampled or rule == "renyi":
        return reported_epsilon(events, delta, "rdp")
    mu_squared = sum(event.steps / event.noise_multiplier**2 for event in events)
    return gaussian_epsilon(math.sqrt(mu_squared), delta)


def group_epsilon(events: Iterable[PrivacyEvent], delta: float, people: int) -> float | None:
    """Return the epsilon of several people together, such as twins or a mother and her child.

    For steps over all patients it is exact: their gradients together are `people` times as large. It is
    not `people` times epsilon. None for sampled steps.

    >>> event = PrivacyEvent(noise_multiplier=2.7535, sampling_rate=1, steps=40)
    >>> [round(group_epsilon([event], 0.0044, people), 1) for people in (1, 2)]
    [8.0, 21.8]
    """
    events = list(events)
    if any(event.sampling_rate < 1 for event in events):
        return None
    mu = math.sqrt(sum(event.steps / event.noise_multiplier**2 for event in events))
    return gaussian_epsilon(people * mu, delta)


def most_found(events: Iterable[PrivacyEvent], delta: float, false_alarms: float = 0.05) -> float:
    """Return the largest share of participating patients that any test can identify as participants.

    The test may know everything else, and wrongly name a share of `false_alarms` of the others. For
    steps over all patients the result is exact (Dong, Roth and Su 2022, Gaussian Differential Privacy,
    equation 6, https://arxiv.org/abs/1905.02383). Else it is the bound from epsilon at `delta` (Kairouz
    et al. 2015, The Composition Theorem for Differential Privacy, theorem 2.1,
    https://arxiv.org/abs/1311.0776).

    >>> round(most_found([PrivacyEvent(noise_multiplier=2.0, sampling_rate=1, steps=4)], 1e-5), 2)
    0.26
    """
    events = list(events)
    if all(event.sampling_rate == 1 for event in events):
        mu = math.sqrt(sum(event.steps / event.noise_multiplier**2 for event in events))
        return float(ndtr(ndtri(false_alarms) + mu))
    spent = epsilon(events, delta)
    grown = math.exp(min(spent, 700.0)) * false_alarms + delta
    return min(grown, 1 - math.exp(-spent) * (1 - false_alarms - delta), 1.0)


def reported_epsilon(events: Iterable[PrivacyEvent], delta: float, accountant: Accountant) -> float:
    """Return the epsilon of a library's accountant for `events` together, as one schedule.

    `prv` is Opacus', `pld` is Google's with zero-out adjacency (`REPLACE_SPECIAL`), `rdp` has Opacus'
    divergences and Google's conversion. Infinite where an accountant can prove nothing.

    >>> event = PrivacyEvent(noise_multiplier=1.5, sampling_rate=0.04, steps=2250)
    >>> [round(reported_epsilon([event], 1e-5, name), 2) for name in ("prv", "pld", "rdp")]
    [6.78, 6.77, 7.33]
    """
    steps: dict[tuple[float, float], int] = {}
    for event in events:
        key = (event.noise_multiplier, event.sampling_rate)
        steps[key] = steps.get(key, 0) + event.steps
    history = tuple(sorted((noise, rate, count) for (noise, rate), count in steps.items()))
    if not history:
        return 0.0
    from privacy.accountants import ACCOUNTANTS  # noqa: PLC0415  # importing the libraries takes a second

    return max(ACCOUNTANTS[accountant](history, delta), 0.0)


def noise_for(budget: Budget, *, sampling_rate: float, steps: int) -> float:
    """Return the smallest noise multiplier that keeps `steps` steps within `budget`.

    Raises:
        ValueError: no noise is enough: for sampled steps Renyi DP has a smallest epsilon to prove.

    >>> round(noise_for(Budget(epsilon=8, delta=0.0044), sampling_rate=1, steps=40), 2)
    2.75
    """

    def excess(noise: float) -> float:
        event = PrivacyEvent(noise, sampling_rate, steps)
        return epsilon([event], budget.delta) - budget.epsilon

    lower, upper = 0.05, 1.0
    while excess(upper) > 0:
        upper *= 2
        if upper > MOST_NOISE:
            raise ValueError(
                f"Expected a budget that some noise can meet, got epsilon {budget.epsilon:g} at delta "
                f"{budget.delta:g} for {steps} steps at rate {sampling_rate:g}. Take a larger epsilon, "
                f"fewer steps or every patient in each step."
            )
    if excess(lower) <= 0:
        return lower
    noise = float(brentq(excess, lower, upper, rtol=1e-9))
    while excess(noise) > 0:
        noise *= 1 + 1e-9
    return noise
