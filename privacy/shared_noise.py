"""A hospital's share of the noise on a sum over all hospitals, in whole units of a grid.

The sum over hospitals is released with a discrete Gaussian of which each member adds a share. Among the
members who are counted on, the shares reach the noise that the event states; what others add is beside
it. The bound on a patient is that of the mechanism, and sqrt(d) units for rounding d numbers; the grid
is fine enough that rounding costs at most one per cent.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.params import Params
from privacy.accounting import PrivacyEvent
from privacy.mechanisms import Mechanism
from privacy.noise.discrete_gaussian import counted_deviation, discrete_gaussian, share_of
from privacy.noise.source import NoiseSource

FINEST = 0.01
"""The largest grid, as a share of the sensitivity over sqrt(d)."""


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
        return 2.0 ** math.floor(math.log2(FINEST * self.mechanism.sensitivity / math.sqrt(self.numel)))

    @property
    def sensitivity(self) -> float:
        """How far zeroing a patient moves a hospital's rounded vector, in units and L2."""
        return self.mechanism.sensitivity / self.grid + math.sqrt(self.numel)

    @property
    def share_variance(self) -> int:
        """The variance of one member's noise, in units^2."""
        return share_of(self.mechanism.noise_multiplier * self.sensitivity, self.honest)

    @property
    def own_event(self) -> PrivacyEvent:
        """The event that a round would cost if nobody else added noise."""
        alone = counted_deviation(self.share_variance) / self.sensitivity
        return PrivacyEvent(alone, 1.0, self.mechanism.steps)

    def noisy(self, clipped: NDArray[np.float64], source: NoiseSource) -> NDArray[np.int64]:
        """Return a hospital's clipped vector in units, `(d,)`, with its share of the noise."""
        units = np.rint(clipped / self.grid).astype(np.int64)
        return units + discrete_gaussian(source, len(units), self.share_variance)


def clipped_change(change: Params, mechanism: Mechanism) -> NDArray[np.float64]:
    """Return a hospital's change clipped as a whole, `(d,)`, its parameters ordered by name.

    A change with a value that is not finite becomes zero, so that whether training diverged is covered
    by the noise as well (McMahan et al. 2018, algorithm 1, FlatClip, https://arxiv.org/abs/1710.06963).
    """
    flat = torch.cat([change[name].double().ravel() for name in sorted(change)])
    if not flat.isfinite().all():
        return np.zeros(len(flat))
    clipped: NDArray[np.float64] = (flat * mechanism.clip_factors(flat.norm())).numpy()
    return clipped
