"""Lower bounds on epsilon from what attacks found, each with its confidence.

A claimed epsilon is an upper bound. An attack that finds more than the claim allows proves the claim
wrong; one that finds less proves nothing but this bound.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, norm

from privacy.accounting import gaussian_epsilon

LARGEST_EPSILON = 100.0
"""The end of the search for a bound; no audit of affordable size comes near it."""

DELTAS = (1e-5, 1e-6, 1e-7, 1e-8, 1e-10)
PARTS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
"""Deltas, and shares of canaries that are guessed about, among which an attack on one run chooses."""

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A measured value with both ends of its interval."""

    value: float
    low: float
    high: float


def share(found: int, of: int, confidence: float = 0.95) -> Interval:
    """Return a share with its exact interval (Clopper and Pearson 1934,
    https://doi.org/10.1093/biomet/26.4.404).

    >>> share(0, 10).low, round(share(0, 10).high, 3)
    (0.0, 0.308)

    Raises:
        ValueError: there are no trials, or more successes than trials.
    """
    if not 0 <= found <= of or of == 0:
        raise ValueError(f"Expected at most {of} successes of at least one trial, got {found}.")
    ends = binomtest(found, of).proportion_ci(confidence, method="exact")
    return Interval(found / of, float(ends.low), float(ends.high))


def epsilon_of_repeated(
    inside: Scores, outside: Scores, threshold: float, delta: float, *, confidence: float, gaussian: bool
) -> float:
    """Return the epsilon, at delta, that repeated trainings with and without a patient prove.

    An attack calls a training one with the patient if its score exceeds the threshold. Both of its error
    rates are bounded from above, each with half of what is missing to the confidence.

    Args:
        threshold: chosen before any score was seen.
        gaussian: whether the mechanism claims to be a Gaussian one, so that one pair of error rates
            bounds its mu (Nasr et al. 2023, Tight Auditing of Differentially Private Machine Learning,
            section 4, https://arxiv.org/abs/2302.07956). Otherwise only the claim (epsilon, delta)
            itself is used (Kairouz et al. 2015, theorem 2.1, https://arxiv.org/abs/1311.0776).
    """
    false_alarms = share(int((outside > threshold).sum()), len(outside), confidence).high
    misses = share(int((inside <= threshold).sum()), len(inside), confidence).high
    if false_alarms >= 1 or misses >= 1:
        return 0.0
    if gaussian:
        mu = float(norm.ppf(1 - false_alarms) - norm.ppf(misses))
        return gaussian_epsilon(mu, delta) if mu > 0 else 0.0
    pairs = ((false_alarms, misses), (misses, false_alarms))
    ratios = [(1 - other - delta) / one for one, other in pairs]
    return max(0.0, *(math.log(ratio) for ratio in ratios if ratio > 0))


@dataclass(frozen=True)
class Guesses:
    """Guesses about canaries in one training.

    Attributes:
        canaries: canaries with an independent fair coin each, which decided whether it took part.
        made: guesses that the attack made; it may abstain from the others.
        right: guesses that were right.
    """

    canaries: int
    made: int
    right: int


def guesses(scores: Scores, inside: NDArray[np.bool_], made: int) -> Guesses:
    """Return how many guesses about the most extreme scores are right.

    Args:
        scores: `(M,)`, larger for a canary that took part.
        inside: `(M,)`, the coins.
        made: number of guesses, even: the highest half is called inside, the lowest outside.
    """
    order = np.argsort(scores, kind="stable")
    low, high = order[: made // 2], order[len(order) - made // 2 :]
    return Guesses(len(scores), 2 * (made // 2), int(inside[high].sum() + (~inside[low]).sum()))


def epsilon_of_one_run(found: Guesses, delta: float, *, confidence: float) -> float:
    """Return the epsilon, at delta, that guesses about many canaries in one training prove.

    Source: Steinke, Nasr and Jagielski 2023, Privacy Auditing with One (1) Training Run, theorem 5.2,
    https://arxiv.org/abs/2305.08846: under (epsilon, delta) the number of right guesses exceeds v with
    at most the probability P[B >= v] + 2 M delta max_i P[v - i <= B < v] / i, where B is binomial over
    the guesses with the success probability e^epsilon / (1 + e^epsilon).

    >>> round(epsilon_of_one_run(Guesses(1000, 1000, 950), 0.0, confidence=0.95), 2)
    2.7
    """
    if found.right <= found.made / 2 or _chance(found, 0.0, delta) >= 1 - confidence:
        return 0.0
    low, high = 0.0, LARGEST_EPSILON
    while high - low > 1e-6:
        middle = (low + high) / 2
        if _chance(found, middle, delta) < 1 - confidence:
            low = middle
        else:
            high = middle
    return low


def _chance(found: Guesses, epsilon: float, delta: float) -> float:
    """Return the bound on the chance of so many right guesses under (epsilon, delta)."""
    made, right = found.made, found.right
    success = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(right - 1, made, success))
    if delta == 0:
        return tail
    below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), made, success))
    steepest = float((below / np.arange(1, right + 1)).max()) if right else 0.0
    return min(1.0, tail + 2 * found.canaries * delta * steepest)


def mu_of(epsilon: float, delta: float) -> float:
    """Return the mu of the Gaussian mechanism that has this epsilon at delta; 0 for epsilon 0.

    >>> round(gaussian_epsilon(mu_of(4.0, 1e-5), 1e-5), 6)
    4.0
    """
    if epsilon == 0:
        return 0.0
    return float(brentq(lambda mu: gaussian_epsilon(mu, delta) - epsilon, 1e-6, LARGEST_EPSILON))


class Attempt(NamedTuple):
    """How an attack on one run guesses: the number of its guesses, and the delta of its bound."""

    made: int
    delta: float


def best_attempt(canaries: int, mu: float, *, confidence: float) -> Attempt:
    """Return the attempt whose expected bound on mu is largest if the claim is exact.

    It depends on the claim alone, never on scores, so the choice costs no confidence. A bound at a small
    delta is a bound on mu too: a Gaussian mechanism has an epsilon at each delta.

    Args:
        mu: shift of a canary's score by taking part, in standard deviations of its noise.
    """
    best, most = Attempt(2, DELTAS[-1]), -1.0
    for part in PARTS:
        made = max(2, 2 * round(canaries * part / 2))
        found = Guesses(canaries, made, round(made * _expected_right(made / canaries, mu)))
        for delta in DELTAS:
            bound = mu_of(epsilon_of_one_run(found, delta, confidence=confidence), delta)
            if bound > most:
                best, most = Attempt(made, delta), bound
    return best


def _expected_right(part: float, mu: float) -> float:
    """Return the expected share of right guesses among the part of the most extreme scores.

    Scores are an even mixture of N(0, 1) and N(mu, 1), which is symmetric about mu / 2.
    """
    grid = np.linspace(mu / 2, mu + 12, 4001)
    above = (norm.sf(grid) + norm.sf(grid - mu)) / 2
    threshold = float(grid[np.searchsorted(-above, -part / 2)]) if part < 1 else mu / 2
    return float(norm.sf(threshold - mu) / (norm.sf(threshold) + norm.sf(threshold - mu)))
