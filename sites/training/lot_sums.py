"""The sum over a step's patients of their clipped gradients, whoever computes which part of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor, nn

from models.objectives import Task
from privacy.mechanisms import Mechanism
from privacy.noise.grid import on_grid
from privacy.per_patient import clipped_sums
from sites.training.config import TrainingConfig
from sites.training.examples import Examples
from sites.training.steps import with_attacked

FINER = 2.0**-10
"""Share of the noise's grid to which the sum of a microbatch is rounded. Sums of such numbers below 2^53
of them are exact, so they are the same in any order, and on any number of machines."""


@dataclass(frozen=True)
class LotSum:
    """A sum of clipped gradients; it is raw and leaves only with noise.

    Attributes:
        sums: one for each parameter of the network, in order, in float64; None if no patient's scans
            could be read.
        within: the patients' `Mechanism.count_within`.
    """

    sums: tuple[Tensor, ...] | None = None
    within: float = 0.0

    def __add__(self, other: "LotSum") -> "LotSum":
        if self.sums is None or other.sums is None:
            sums = self.sums or other.sums
        else:
            sums = tuple(a + b for a, b in zip(self.sums, other.sums, strict=True))
        return LotSum(sums, self.within + other.within)

    def to(self, device: torch.device) -> "LotSum":
        """Return the same on a device."""
        return LotSum(self.sums and tuple(each.to(device) for each in self.sums), self.within)


class LotSums(Protocol):
    """Whatever sums the clipped gradients of a hospital's patients."""

    def __call__(
        self, network: nn.Module, patients: Sequence[int], step: int, mechanism: Mechanism
    ) -> LotSum:
        """Return the sum over `patients`, numbers of the training's examples, at a step.

        Zeroing one patient moves it by at most the mechanism's clip norm in L2, and `within` by at most
        1/2.
        """


@dataclass(frozen=True)
class OwnSums:
    """Sums by this process, one microbatch of patients after the other."""

    task: Task
    examples: Examples
    config: TrainingConfig

    def __call__(
        self, network: nn.Module, patients: Sequence[int], step: int, mechanism: Mechanism
    ) -> LotSum:
        """Return the sum over `patients`; see `LotSums`."""
        torch.backends.cudnn.allow_tf32 = False  # too coarse for the clip norm's bound
        found, size = LotSum(), self.config.microbatch
        for start in range(0, len(patients), size):
            found += self._of(network, patients[start : start + size], step, mechanism)
        return found

    def _of(
        self, network: nn.Module, patients: Sequence[int], step: int, mechanism: Mechanism
    ) -> LotSum:
        batch = self.examples.batch(patients, step)
        if batch is None:
            return LotSum()
        images, targets, patient_of = with_attacked(network, self.task, batch, self.config)
        within = []

        def factors(norms: Tensor) -> Tensor:
            within.append(mechanism.count_within(norms))
            return mechanism.clip_factors(norms)

        of_scan = patient_of.to(images.device)
        sums = clipped_sums(network, self.task.loss, images, targets, of_scan, factors)
        grid = FINER * mechanism.grid(sum(p.numel() for p in network.parameters()))
        rounded = tuple(on_grid(sums[name], grid) for name, _ in network.named_parameters())
        return LotSum(rounded, sum(within))


def added(parts: Sequence[LotSum]) -> LotSum:
    """Return the sum of several sums.

    >>> import torch
    >>> added([LotSum(None, 0.5), LotSum((torch.ones(2),), -0.5)])
    LotSum(sums=(tensor([1., 1.]),), within=0.0)
    """
    return reduce(LotSum.__add__, parts, LotSum())
