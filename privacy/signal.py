"""Signal and noise of a private training, and the learning rate that follows from them.

Everything here is a function of public numbers: the study, the hospitals' declared patients, and how
much noise the start bears, which is measured on public cases.

Noise enters a parameter at each step of each hospital; its sum over the run has a standard deviation
that is proportional to the rate, whatever the number of steps. A rate that moves the parameters by more
than they bear destroys a good start; so the rate is the largest one whose noise the start bears. Where
the signal is weak against the noise in all directions together, the best rate is smaller in proportion:
the gain is linear in the rate, the harm quadratic.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from privacy.mechanisms import Mechanism

FULL = 0.075
"""Strength of the signal from which on the rate uses all noise that the start bears.

Measured on hippocampus scans, with 29 k and 114 k parameters, epsilon 0.5 to 20, 28 to 84 patients
(docs/public-scans-and-epsilon.md).
"""
NEEDED = 0.015
"""Strength of the signal below which training gained nothing, or less than a point of Dice, there."""
LONGEST_STEP = 0.6
"""Length of a step by a gradient of the clip norm, with its momentum, that no rate exceeds.

With little noise it is the step and not the noise that destroys a start: at epsilon 20 steps of 1.6
ended eleven points of Dice lower than steps of 0.6.
"""


@dataclass(frozen=True)
class Share:
    """One hospital's part of a private run.

    Attributes:
        weight: its share in the average, 0 to 1.
        mechanism: its mechanism in one round.
    """

    weight: float
    mechanism: Mechanism


@dataclass(frozen=True)
class Reach:
    """How far a run moves each parameter, for a highest learning rate of 1.

    Attributes:
        signal: by a gradient of length 1, shared by all steps and all patients.
        noise: the standard deviation of the noise.
        step: the length of the longest step, by a gradient of the clip norm.
    """

    signal: float
    noise: float
    step: float = 0.0

    def strength(self, numel: int) -> float:
        """Return the strength of the signal against the noise in `numel` directions together.

        >>> Reach(signal=30, noise=1).strength(900)
        1.0
        """
        return self.signal / (self.noise * math.sqrt(numel))


def reach(shares: Sequence[Share], rates: Sequence[float], momentum: float) -> Reach:
    """Return the reach of a run of federated averaging.

    Args:
        rates: the rate in each round, as a share of the highest.
        momentum: momentum of SGD, which begins anew in each round.
    """
    signal = variance = step = 0.0
    for share in shares:
        moved = _moved(share.mechanism.steps, momentum)
        std = share.mechanism.noise_std / share.mechanism.divisor
        step = max(step, moved[0] * share.mechanism.clip.norm)  # the last one, with all its momentum
        signal += share.weight * share.mechanism.clip.norm * sum(moved)
        variance += share.weight**2 * std**2 * sum(each**2 for each in moved)
    noise = math.sqrt(variance * sum(rate**2 for rate in rates))
    return Reach(signal * sum(rates), noise, step * max(rates))


def reach_of_sum(
    mechanism: Mechanism, honest: float, patients: int, rates: Sequence[float], momentum: float
) -> Reach:
    """Return the reach of a run whose rounds are single steps along a secure sum of all gradients.

    Args:
        mechanism: of the sum, in one round.
        honest: the variance of the noise that is really added, as a multiple of the charged one: the
            hospitals that take part, over those that are counted on.
        patients: the declared training patients of all hospitals together.
        momentum: of the rounds, which goes on from round to round.
    """
    later = len(rates)
    moved = [rate * sum(momentum**k for k in range(later - number)) for number, rate in enumerate(rates)]
    std = mechanism.noise_std * math.sqrt(honest) / patients
    signal = mechanism.clip.norm * sum(moved)
    step = mechanism.clip.norm * max(rates) / (1 - momentum)
    return Reach(signal, std * math.sqrt(sum(each**2 for each in moved)), step)


def _moved(steps: int, momentum: float) -> list[float]:
    """Return how far a gradient of each step has moved a parameter by the end of a round.

    >>> _moved(2, 0.5)
    [1.5, 1.0]
    """
    return [sum(momentum**later for later in range(steps - step)) for step in range(steps)]


def learning_rate(found: Reach, numel: int, tolerance: float) -> float:
    """Return the highest learning rate of a run, rounded to three digits.

    Args:
        numel: number of trained parameters.
        tolerance: standard deviation of noise on each parameter that the start bears.

    >>> learning_rate(Reach(signal=3000, noise=2.0), 10_000, tolerance=0.03)
    0.015
    """
    rate = tolerance * min(1.0, found.strength(numel) / FULL) / found.noise
    return float(f"{min(rate, LONGEST_STEP / found.step) if found.step else rate:.3g}")
