"""Opacus' DP optimizer with a `Mechanism`'s clipping and a `NoiseSource`'s noise."""

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor
from torch.optim import Optimizer

from privacy.mechanisms import Mechanism
from privacy.noise import NoiseSource


class PatientOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus is not typed
    """A `DPOptimizer` whose samples are patients.

    Before each step, every parameter's `grad_sample` holds one gradient per patient, `(P, *shape)`.

    Guarantees:
        - a patient's summed gradient, over all parameters, enters a step with norm <= clip norm;
        - a patient with a non-finite gradient contributes zero: one NaN would unbound the sum;
        - an empty lot still adds noise and still counts as a step;
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
        self._mechanism = mechanism
        self._noise = noise

    def clip_and_accumulate(self) -> None:
        """Add the patients' clipped gradients to each parameter's `summed_grad`."""
        gradients: list[Tensor] = self.grad_samples
        per_parameter = [g.flatten(1).norm(dim=1, dtype=torch.float64) for g in gradients]
        norms = torch.stack(per_parameter).norm(dim=0)
        usable = norms.isfinite()
        factors = self._mechanism.clip_factors(norms.where(usable, 1.0)) * usable
        for p, g in zip(self.params, gradients, strict=True):
            safe = g if usable.all() else g.where(usable.view(-1, *[1] * (g.dim() - 1)), 0.0)
            clipped = torch.einsum("p,p...->...", factors, safe.double())
            p.summed_grad = clipped if p.summed_grad is None else p.summed_grad + clipped

    def add_noise(self) -> None:
        """Set each parameter's `grad` to its noisy sum over the mechanism's divisor."""
        for p in self.params:
            noise = self._noise.normal(tuple(p.shape), self._mechanism.noise_std)
            noisy = p.summed_grad + noise.to(p.summed_grad)
            p.grad = (noisy / self._mechanism.divisor).to(p)
