"""What private trainings cost together, in epsilon at a given delta.

Adjacency is zero-out at the patient: one patient's contribution becomes zero, while declared
counts, rates and divisors stay as they are. Whatever is enforced stays valid when later studies
are chosen after earlier results were seen (a privacy filter):

- steps over all patients are Gaussian mechanisms; 1/sigma^2 adds up (Smith and Thakurta 2022) and
  the sum converts exactly (Balle and Wang 2018);
- as soon as a sampled step is among them, Renyi DP adds up (Feldman and Zrnic 2021), computed by
  Opacus.

Tighter figures (privacy loss distributions, by Google's dp-accounting; PRV, by Opacus) hold for a
schedule that was fixed in advance, and are reported beside it; they decide nothing.
"""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from opacus.accountants import PRVAccountant, RDPAccountant
from pydantic import Field
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from models.config import Config

TOLERANCE = 1e-9
"""Relative slack for sums of floats, far below anything that matters."""

Accountant = Literal["prv", "pld", "rdp"]
History = tuple[tuple[float, float, int], ...]
"""Events as accountants take them, in no order that matters: (noise multiplier, rate, steps)."""


class Budget(Config):
    """The most that may be spent on any patient: (epsilon, delta)."""

    epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]

    def covers(self, epsilon: float) -> bool:
        """Return whether `epsilon`, at this budget's delta, is within the budget."""
        return epsilon <= self.epsilon * (1 + TOLERANCE)


@dataclass(frozen=True)
class PrivacyEvent:
    """`steps` Gaussian mechanisms, each on a fresh sample that a patient enters with `sampling_rate`.

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

    Solves delta = Phi(-eps/mu + mu/2) - e^eps Phi(-eps/mu - mu/2) (Balle and Wang 2018, theorem 8).

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


def epsilon(events: Iterable[PrivacyEvent], delta: float) -> float:
    """Return the enforced epsilon of `events` together: never less than what was spent."""
    events = list(events)
    if any(event.sampling_rate < 1 for event in events):
        return reported_epsilon(events, delta, "rdp")
    mu_squared = sum(event.steps / event.noise_multiplier**2 for event in events)
    return gaussian_epsilon(math.sqrt(mu_squared), delta)


def reported_epsilon(events: Iterable[PrivacyEvent], delta: float, accountant: Accountant) -> float:
    """Return the epsilon that a library's accountant gives for `events` together, as one schedule.

    `prv` and `rdp` are Opacus', `pld` is Google's with zero-out adjacency (`REPLACE_SPECIAL`).

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
    return _pld(history, delta) if accountant == "pld" else _by_opacus(history, delta, accountant)


@lru_cache(maxsize=1024)
def _pld(history: History, delta: float) -> float:
    # A grid as fine as the library's own up to epsilon 10, and as many points beyond: at its
    # own step an epsilon of some hundreds takes gigabytes.
    interval = 1e-4 * max(1.0, _by_opacus(history, delta, "rdp") / 10)
    accountant = PLDAccountant(NeighboringRelation.REPLACE_SPECIAL, interval)
    for noise, rate, steps in history:
        step = GaussianDpEvent(noise)
        accountant.compose(step if rate == 1 else PoissonSampledDpEvent(rate, step), steps)
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=1024)
def _by_opacus(history: History, delta: float, accountant: Literal["prv", "rdp"]) -> float:
    opacus = {"prv": PRVAccountant, "rdp": RDPAccountant}[accountant]()
    opacus.history = list(history)
    with warnings.catch_warnings():
        # Opacus warns of the log(0) that it handles itself, and of orders at the edge of its grid,
        # where the bound is looser but still a bound.
        warnings.simplefilter("ignore")
        return float(opacus.get_epsilon(delta))


def noise_for(budget: Budget, *, sampling_rate: float, steps: int) -> float:
    """Return the least noise multiplier with which `steps` steps stay within `budget`.

    >>> round(noise_for(Budget(epsilon=8, delta=0.0044), sampling_rate=1, steps=40), 2)
    2.75
    """

    def excess(noise: float) -> float:
        event = PrivacyEvent(noise, sampling_rate, steps)
        return epsilon([event], budget.delta) - budget.epsilon

    lower, upper = 0.05, 1.0
    while excess(upper) > 0:
        upper *= 2
    if excess(lower) <= 0:
        return lower
    noise = float(brentq(excess, lower, upper, rtol=1e-9))
    while excess(noise) > 0:
        noise *= 1 + 1e-9
    return noise
