"""The mechanism of a private training: clip, noise, divisor and the event that it costs, as one.

Each number that must agree is stored here once: clipping, noise and the charge in the ledger all use
the same `Mechanism`.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from models.config import Config
from privacy.accounting import Accountant, Budget, PrivacyEvent, noise_for
from privacy.noise.discrete_gaussian import grid_noise
from privacy.noise.source import NoiseSource
from privacy.secure_aggregation.terms import SumConfig

if TYPE_CHECKING:
    from torch import Tensor

STABILITY = 0.01
"""The gamma of normalised clipping: C g / (|g| + gamma).

(Bu et al. 2022, Automatic Clipping, AUTO-S, https://arxiv.org/abs/2206.07136.)
"""
SLACK = 2.0**-18
"""Share by which gradients are clipped shorter than the norm: room for the rounding of float32 gradients
and for the grid of their sums."""
SMALLEST_NORM, LARGEST_NORM = 1e-6, 1e6
"""Bounds of clip norms, beyond which float32 gradients lose their meaning."""


COUNT_GRID = 2.0**-20
"""Grid of the noise on a count of patients; counts are multiples of 1/2."""


Unit = Literal["patient", "hospital"]
"""Whose contribution one epsilon covers."""


class ClipConfig(Config):
    """The bound on a patient's gradient: `flat` min(1, C/|g|) g, or `normalised` C g/(|g|+.01).

    Attributes:
        norm (no unit): largest L2 norm C of a patient's gradient after clipping.
    """

    kind: Literal["flat", "normalised"]
    norm: Annotated[float, Field(ge=SMALLEST_NORM, le=LARGEST_NORM)]


class AdaptiveClip(Config):
    """Flat clipping at a norm that follows a quantile of the patients' norms.

    Each step also releases, with noise, the number of patients whose gradients were within the norm, and
    multiplies the norm of the next step by `exp(-rate (share within - quantile))`. That release is paid
    for: the gradients get so much more noise that both together cost as much as the gradients alone.
    (Andrew et al. 2021, DP Learning with Adaptive Clipping, https://arxiv.org/abs/1905.03871.)

    Attributes:
        norm (no unit): the norm of the first step.
        quantile (share): the share of patients who should not be clipped.
        rate (no unit): the speed at which the norm follows.
        count_share (share): the part of a step's cost, in 1/sigma^2, that pays for the count.
    """

    kind: Literal["adaptive"]
    norm: Annotated[float, Field(ge=SMALLEST_NORM, le=LARGEST_NORM)]
    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    rate: Annotated[float, Field(gt=0, le=1)] = 0.2
    count_share: Annotated[float, Field(ge=0.001, le=0.5)] = 0.05


class NoPrivacy(Config):
    """A study without differential privacy, which hospitals have to allow in their policy."""

    mode: Literal["none"]


class PrivacyBudget(Config):
    """A budget for all rounds together, and the clipping.

    `accountants` are those whose epsilon is reported beside the enforced one.

    Attributes:
        epsilon (no unit): the most that all rounds together cost any patient.
        delta (probability): the delta at which epsilon holds; below one over the declared training
            patients.
        clip: bound on a patient's gradient.
        accountants: accountants whose epsilon is reported beside the enforced one: `prv`, `pld`,
            `rdp`.
    """

    epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    clip: Annotated[ClipConfig | AdaptiveClip, Field(discriminator="kind")]
    accountants: Annotated[tuple[Accountant, ...], Field(min_length=1)] = ("prv", "pld")

    @property
    def spare(self) -> int:
        """Rounds that are paid for and may fail."""
        return 0


class LocalPrivacy(PrivacyBudget):
    """Patient-level DP-SGD with the full noise at each hospital.

    Attributes:
        unit: whose contribution one epsilon covers: `patient`.
    """

    mode: Literal["local"]
    unit: Literal["patient"]


class _Summed(PrivacyBudget):
    """Privacy with a secure sum: nobody reads one hospital's vector.

    Attributes:
        sum: terms of the secure sum: hospitals that may drop out or collude, and spare attempts.
    """

    sum: SumConfig = SumConfig()

    @property
    def spare(self) -> int:
        """Attempts that are paid for and may fail."""
        return self.sum.spare


class MaskedPrivacy(_Summed):
    """Patient-level DP-SGD with the full noise at each hospital, whose release is masked as well.

    Attributes:
        unit: whose contribution one epsilon covers: `patient`.
    """

    mode: Literal["masked"]
    unit: Literal["patient"]


class SharedNoise(_Summed):
    """A clipped sum in each round, to which each hospital adds a share of the noise.

    Only the sum of all hospitals is protected as the study says, and only it can be read. By unit:

    - `patient`: the sum of all patients' clipped gradients;
    - `hospital`: the sum of the hospitals' changes, each clipped as a whole. The promise covers whatever
      one hospital sends, and so each of its patients. It takes many hospitals (McMahan et al. 2018,
      Learning Differentially Private Recurrent Language Models, https://arxiv.org/abs/1710.06963).

    Attributes:
        unit: whose contribution one epsilon covers: `patient`, or a whole `hospital`.
    """

    mode: Literal["shared_noise"]
    unit: Unit
    clip: ClipConfig


Privacy = LocalPrivacy | MaskedPrivacy | SharedNoise
PrivacyConfig = Annotated[NoPrivacy | Privacy, Field(discriminator="mode")]


@dataclass(frozen=True)
class Mechanism:
    """A round's Gaussian mechanism on the sum of the patients' clipped gradients.

    With the unit `hospital` it is the sum of the hospitals' clipped changes.

    Guarantees:
        - zeroing one patient moves the clipped sum of a step by at most `sensitivity` in L2, and the
          count of an adaptive norm by at most 1/2;
        - each step adds N(0, noise_std^2) to each coordinate of that sum and N(0, count_std^2) to
          that count; the two are one Gaussian mechanism of `noise_multiplier`, because the squares of
          sensitivity over noise add up to its own;
        - `divisor` comes from the declared number of patients, never from the true one.

    Attributes:
        noise_multiplier: the noise multiplier of all releases of a step together.
        sampling_rate: the probability that a patient takes part in a step; 1 for all patients.
        steps: the number of steps in this round.
        divisor: the number that divides the noisy sum.
        unit: whose contributions are clipped.
    """

    clip: ClipConfig | AdaptiveClip
    noise_multiplier: float
    sampling_rate: float
    steps: int
    divisor: float
    unit: Unit = "patient"

    @property
    def sensitivity(self) -> float:
        """How far one patient can move the sum in L2.

        A patient's gradient becomes zero; a hospital's change becomes another one of the same bound,
        whatever of its training differs, and so may move by twice the norm.
        """
        return self.clip.norm * (2 if self.unit == "hospital" else 1)

    def grid(self, numel: int) -> float:
        """Return the public grid of a step's sums over `numel` coordinates: a power of two.

        Rounding to it moves a sum by at most half of `SLACK` times the norm in L2.
        """
        return 2.0 ** math.floor(math.log2(SLACK * self.clip.norm / (2 * math.sqrt(numel))))

    @property
    def event(self) -> PrivacyEvent:
        """The event that one round of this mechanism costs."""
        return PrivacyEvent(self.noise_multiplier, self.sampling_rate, self.steps)

    @property
    def noise_std(self) -> float:
        """The standard deviation of the noise on the sum."""
        share = self.clip.count_share if isinstance(self.clip, AdaptiveClip) else 0
        return self.noise_multiplier * self.sensitivity / math.sqrt(1 - share)

    def longest_step(self, numel: int) -> float:
        """Return the largest L2 norm of a step's noisy mean gradient over `numel` coordinates.

        It holds for up to twice the declared patients, and for noise with probability 1 - exp(-50): the
        norm of standard normals exceeds sqrt(numel) + t with probability exp(-t^2 / 2) at most
        (Boucheron, Lugosi and Massart 2013, Concentration Inequalities, theorem 5.6,
        https://doi.org/10.1093/acprof:oso/9780199535255.001.0001).
        """
        patients = 2 * self.divisor / self.sampling_rate
        noise = self.noise_std * (math.sqrt(numel) + 10)
        return (self.clip.norm * patients + noise) / self.divisor

    def clip_factors(self, norms: "Tensor") -> "Tensor":
        """Return the factor of each patient's gradient, given its norm, `(P,)` -> `(P,)`.

        A norm that is not finite gives zero: with one NaN the sum would have no bound.
        """
        if self.clip.kind != "normalised":
            factors = (self.clip.norm / norms.clamp(min=1e-12)).clamp(max=1.0)
        else:
            factors = self.clip.norm / (norms + STABILITY)
        return factors.where(norms.isfinite(), 0.0) * (1 - SLACK)

    def count_within(self, norms: "Tensor") -> float:
        """Return the sum over patients of 1/2 if a norm is within the clip norm, else -1/2."""
        return float((norms <= self.clip.norm).double().sum()) - len(norms) / 2

    def adapted(self, count: float, noise: NoiseSource) -> "Mechanism":
        """Return the mechanism of the next step; `count` is `count_within` of all patients of this step.

        Only an adaptive norm changes; this method adds the count's noise. (Andrew et al. 2021, DP
        Learning with Adaptive Clipping, algorithm 1, https://arxiv.org/abs/1905.03871.)
        """
        if not isinstance(self.clip, AdaptiveClip):
            return self
        clip = self.clip
        count_std = self.noise_multiplier / (2 * math.sqrt(clip.count_share))
        noisy = count + float(grid_noise(noise, 1, count_std, COUNT_GRID)[0])
        within = min(max(0.5 + noisy / self.divisor, 0.0), 1.0)
        norm = clip.norm * math.exp(-clip.rate * (within - clip.quantile))
        return self.starting_at(norm)

    def starting_at(self, norm: float) -> "Mechanism":
        """Return this mechanism with clip norm `norm`, such as that of an earlier round's end."""
        bounded = min(max(norm, SMALLEST_NORM), LARGEST_NORM)
        return replace(self, clip=self.clip.model_copy(update={"norm": bounded}))


def mechanism_for(
    privacy: Privacy, *, rounds: int, steps: int, lot: int | None, declared: int
) -> Mechanism:
    """Return the mechanism with which all rounds of a study, spare ones included, spend its budget.

    A hospital's change is one release a round, however many steps led to it.

    Args:
        lot: the expected patients in a step (Poisson sampling); None for all patients in each step.
        declared: the hospital's public number of training patients.

    Raises:
        ValueError: the lot exceeds `declared`, or delta is not below 1 / declared.
    """
    if privacy.unit == "hospital":
        steps, lot = 1, None
    if privacy.delta >= 1 / declared:
        raise ValueError(
            f"Expected delta < 1/{declared} (one over the declared training patients), "
            f"got {privacy.delta}."
        )
    if lot is not None and lot > declared:
        raise ValueError(f"Expected a lot of at most {declared} declared patients, got {lot}.")
    rate = 1.0 if lot is None else lot / declared
    budget = Budget(epsilon=privacy.epsilon, delta=privacy.delta)
    noise = noise_for(budget, sampling_rate=rate, steps=(rounds + privacy.spare) * steps)
    return Mechanism(privacy.clip, noise, rate, steps, rate * declared, privacy.unit)
