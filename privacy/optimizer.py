"""Opacus' DP optimizer over clipped sums of patients, with a `NoiseSource`'s noise."""

from collections.abc import Callable, Sequence

from opacus.optimizers import DPOptimizer
from torch import Tensor
from torch.optim import Optimizer

from privacy.mechanisms import Mechanism
from privacy.noise import NoiseSource


class PatientOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus is not typed
    """A `DPOptimizer` that is handed clipped sums over patients, microbatch by microbatch.

    `accumulate` takes the sums, `step` adds the noise and moves the parameters. Clipping happens
    where the gradients are (`privacy.per_patient.clipped_sums`), with the mechanism's own factors.
    `mechanism` may be replaced between steps by its `adapted` one.

    Guarantees:
        - each step adds the mechanism's noise once, however many microbatches it had, none included;
        - sum and noise meet in float64 and are rounded to the parameters' type together, so the
          gaps of float32 say nothing of the sum alone (Mironov 2012).
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
        """How many lots a step has had: always one, whatever its microbatches (for accountants)."""
        return 1

    def accumulate(self, sums: Sequence[Tensor]) -> None:
        """Add a microbatch's clipped sums, one for each parameter in order."""
        for p, clipped in zip(self.params, sums, strict=True):
            p.summed_grad = clipped if p.summed_grad is None else p.summed_grad + clipped

    def add_noise(self) -> None:
        """Set each parameter's `grad` to its noisy sum over the mechanism's divisor."""
        for p in self.params:
            noise = self._noise.normal(tuple(p.shape), self.mechanism.noise_std).to(p.device)
            noisy = noise if p.summed_grad is None else p.summed_grad.double() + noise
            p.grad = (noisy / self.mechanism.divisor).to(p)

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool:  # noqa: ARG002  # Opacus'
        """Add the noise and let the accountant count; Opacus calls this before each step."""
        self.add_noise()
        if self.step_hook:
            self.step_hook(self)
        return True
