"""A hospital's share of the noise on a sum over all hospitals, in whole units of a grid.

The sum over patients and hospitals is released with a discrete Gaussian of which each member adds a
share. Among the members who are counted on, the shares reach the noise that the event states; what
others add is beside it. The bound on a patient is C / grid for the gradient, and sqrt(d) for rounding d
numbers; the grid is fine enough that rounding costs at most one per cent.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privacy.accounting import PrivacyEvent
from privacy.mechanisms import Mechanism
from privacy.noise.discrete_gaussian import SMOOTHING, discrete_gaussian
from privacy.noise.source import NoiseSource

FINEST = 0.01
"""The largest grid, as a share of C / sqrt(d)."""
LEAST_SHARE = 18
"""The smallest variance of a share, in units^2.

A sum of discrete Gaussians of at least this variance is one, up to a factor of 1 +- 1e-75 for each
(docs/decisions/0017).
"""


@dataclass(frozen=True)
class SharedGaussian:
    """The Gaussian mechanism of a round, of which every member adds a share.

    Guarantees: with the shares of `honest` members the sum costs `mechanism.event`.

    Attributes:
        mechanism: clipping, noise and cost of the sum.
        numel: length of the vector (d).
        honest: members whose shares are counted on.
    """

    mechanism: Mechanism
    numel: int
    honest: int

    @property
    def grid(self) -> float:
        """The unit of the vector, a power of two."""
        return 2.0 ** math.floor(math.log2(FINEST * self.mechanism.clip.norm / math.sqrt(self.numel)))

    @property
    def sensitivity(self) -> float:
        """How far zeroing a patient moves a hospital's rounded sum, in units and L2."""
        return self.mechanism.clip.norm / self.grid + math.sqrt(self.numel)

    @property
    def share_variance(self) -> int:
        """The variance of one member's noise, in units^2."""
        whole = (self.mechanism.noise_multiplier * self.sensitivity) ** 2 + SMOOTHING
        return max(math.ceil(whole / self.honest), LEAST_SHARE)

    @property
    def own_event(self) -> PrivacyEvent:
        """The event that a round would cost if nobody else added noise."""
        alone = math.sqrt(self.share_variance - SMOOTHING) / self.sensitivity
        return PrivacyEvent(alone, 1.0, self.mechanism.steps)

    def noisy(self, clipped: NDArray[np.float64], source: NoiseSource) -> NDArray[np.int64]:
        """Return a hospital's clipped sum in units, `(d,)`, with its share of the noise."""
        units = np.rint(clipped / self.grid).astype(np.int64)
        return units + discrete_gaussian(source, len(units), self.share_variance)
