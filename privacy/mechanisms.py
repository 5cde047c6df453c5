"""The mechanism of a private training: clip, noise, divisor and the event that it costs, as one.

Every number that must agree stands here once: who clips, who adds noise and who charges the
ledger all ask the same `Mechanism`.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from models.config import Config
from privacy.accounting import Accountant, Budget, PrivacyEvent, noise_for

STABILITY = 0.01
"""The gamma of normalised clipping: C g / (|g| + gamma) (Bu et al. 2022, AUTO-S)."""


class ClipConfig(Config):
    """How a patient's gradient is bounded: `flat` min(1, C/|g|) g, or `normalised` C g/(|g|+.01)."""

    kind: Literal["flat", "normalised"]
    norm: Annotated[float, Field(ge=1e-6, le=1e6)]


class NoPrivacy(Config):
    """A study without differential privacy; hospitals have to allow it in their policy."""

    mode: Literal["none"]


class LocalPrivacy(Config):
    """Patient-level DP-SGD with the full noise at each hospital.

    `accountants` are those whose epsilon is reported beside the enforced one.
    """

    mode: Literal["local"]
    unit: Literal["patient"]
    epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    clip: ClipConfig
    accountants: Annotated[tuple[Accountant, ...], Field(min_length=1)] = ("prv", "pld")


PrivacyConfig = Annotated[NoPrivacy | LocalPrivacy, Field(discriminator="mode")]


@dataclass(frozen=True)
class Mechanism:
    """A round's Gaussian mechanism on the sum of the patients' clipped gradients.

    Guarantees:
        - zeroing one patient moves the clipped sum of a step by at most `clip.norm` in L2;
        - each step adds N(0, (noise_multiplier * clip.norm)^2) to each coordinate of that sum;
        - `divisor` comes from the declared number of patients, never from the true one.

    Attributes:
        sampling_rate: the probability that a patient takes part in a step; 1 for every patient.
        steps: steps in this round.
        divisor: what the noisy sum is divided by.
    """

    clip: ClipConfig
    noise_multiplier: float
    sampling_rate: float
    steps: int
    divisor: float

    @property
    def event(self) -> PrivacyEvent:
        """What one round of this mechanism costs."""
        return PrivacyEvent(self.noise_multiplier, self.sampling_rate, self.steps)

    @property
    def noise_std(self) -> float:
        """The standard deviation of the noise on the sum."""
        return self.noise_multiplier * self.clip.norm

    def clip_factors(self, norms: Tensor) -> Tensor:
        """Return what to multiply each patient's gradient by, given its norm, `(P,)` -> `(P,)`.

        A norm that is not finite gives zero: one NaN would unbound the sum.
        """
        if self.clip.kind == "flat":
            factors = (self.clip.norm / norms.clamp(min=1e-12)).clamp(max=1.0)
        else:
            factors = self.clip.norm / (norms + STABILITY)
        return factors.where(norms.isfinite(), 0.0)


def mechanism_for(
    privacy: LocalPrivacy, *, rounds: int, steps: int, lot: int | None, declared: int
) -> Mechanism:
    """Return the mechanism that spends a study's budget over all its rounds and not more.

    Args:
        lot: expected patients in a step (Poisson sampling); None for every patient in each step.
        declared: the hospital's public number of training patients.

    Raises:
        ValueError: the lot exceeds `declared`, or delta is not below 1 / declared.
    """
    if privacy.delta >= 1 / declared:
        raise ValueError(
            f"Expected delta < 1/{declared} (one over the declared training patients), "
            f"got {privacy.delta}."
        )
    if lot is not None and lot > declared:
        raise ValueError(f"Expected a lot of at most {declared} declared patients, got {lot}.")
    rate = 1.0 if lot is None else lot / declared
    budget = Budget(epsilon=privacy.epsilon, delta=privacy.delta)
    noise = noise_for(budget, sampling_rate=rate, steps=rounds * steps)
    return Mechanism(privacy.clip, noise, rate, steps, divisor=rate * declared)
