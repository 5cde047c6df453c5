"""Opacus' DP optimizer for clipped sums over patients, with the noise of a `NoiseSource`."""

from collections.abc import Callable, Sequence

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor
from torch.optim import Optimizer

from privacy.mechanisms import Mechanism
from privacy.noise.discrete_gaussian import grid_noise
from privacy.noise.grid import on_grid
from privacy.noise.source import NoiseSource


class PatientOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus is not typed
    """A `DPOptimizer` that receives clipped sums over patients, microbatch by microbatch.

    `accumulate` adds up the sums, `step` adds the noise and changes the parameters. Clipping happens
    with the gradients (`privacy.per_patient.clipped_sums`), by the mechanism's own factors. `mechanism`
    may be replaced between steps by its `adapted` one.

    Guarantees:
        - each step adds the mechanism's noise once, for any number of microbatches, zero included;
        - the sum is rounded to a public grid, on which the noise is an exact discrete Gaussian, and both
          are added exactly, so the last bits reveal nothing about the sum alone (Mironov 2012, On
          Significance of the Least Significant Bits for DP, https://doi.org/10.1145/2382196.2382264).
          Whatever follows depends on that number alone.
    """

    def __init__(self, optimizer: Optimizer, mechanism: Mechanism, noise: NoiseSource) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=mechanism.noise_multiplier,
            max_grad_norm=mechanism.clip.norm,
            expected_batch_size=None,
            loss_reduction="sum",
        )
        self.mechanism = mechanism
        self._noise = noise

    @property
    def accumulated_iterations(self) -> int:
        """The number of lots in a step, for accountants: always one, for any number of microbatches."""
        return 1

    def accumulate(self, sums: Sequence[Tensor]) -> None:
        """Add a microbatch's clipped sums, one for each parameter in order, in float64."""
        for p, clipped in zip(self.params, sums, strict=True):
            p.summed_grad = clipped.double() if p.summed_grad is None else p.summed_grad + clipped

    def add_noise(self) -> None:
        """Set each parameter's `grad` to its noisy sum over the mechanism's divisor."""
        mechanism = self.mechanism
        grid = mechanism.grid(sum(p.numel() for p in self.params))
        for p in self.params:
            drawn = grid_noise(self._noise, p.numel(), mechanism.noise_std, grid)
            noisy = torch.from_numpy(drawn).reshape(p.shape).to(p.device)
            if p.summed_grad is not None:
                noisy += on_grid(p.summed_grad, grid)
            p.grad = (noisy / mechanism.divisor).to(p)

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool:  # noqa: ARG002  # Opacus'
        """Add the noise and run the accountant's hook; Opacus calls this before each step."""
        self.add_noise()
        if self.step_hook:
            self.step_hook(self)
        return True
