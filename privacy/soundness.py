"""The gate before the first private step: what the guarantee rests on, tried on synthetic images.

Whether a network and a loss keep patients apart cannot be read off their names. So before a hospital
spends anything, the very functions that would train are tried on images that show nobody: on real
patients a refusal would itself tell something.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from privacy.mechanisms import Mechanism
from privacy.per_patient import UnsupportedLayer, clipped_sums, per_patient_gradients

TOLERANCE = 1e-4
"""Relative; rounding moves a gradient by less, another patient's image by far more."""


class Unsound(ValueError):
    """Patient-level privacy would not hold; the message names the check and the layer."""


def check_soundness(
    network: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    mechanism: Mechanism,
    images: Tensor,
    targets: Tensor,
) -> None:
    """Raise `Unsound` unless patients are kept apart and bounded.

    Guarantees, once it returns: the loss is one number a scan; no layer has statistics of the batch;
    every parameter receives a gradient; a patient's gradient is the same whoever else is in the
    batch; leaving a patient out moves the clipped sum by the clip norm at most.

    Args:
        images: `(N, 1, *spatial)` with N >= 2, synthetic, one scan for each of N patients.
        targets: `(N, ...)`, what the loss takes.
    """
    patients = torch.arange(len(images), device=images.device)

    def gradients(batch: Tensor) -> dict[str, Tensor]:
        try:
            return per_patient_gradients(network, loss, batch, targets, patients)
        except UnsupportedLayer as error:
            raise Unsound(f"layers: {error}") from error
        except ValueError as error:
            raise Unsound(f"loss: {error}") from error

    def sums(count: int) -> dict[str, Tensor]:
        return clipped_sums(
            network, loss, images[:count], targets[:count], patients[:count], mechanism.clip_factors
        )

    before = gradients(images)
    others = images.clone()
    others[1:] = others[1:].flip(-1) * 3 + 1
    _check_apart(before, gradients(others))
    _check_bounded(sums(len(images)), sums(len(images) - 1), mechanism.clip.norm)


def _check_apart(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    whole = torch.stack([g[0].norm() for g in before.values()]).norm()
    for name, gradient in before.items():
        moved = (gradient[0] - after[name][0]).norm()
        if not moved <= TOLERANCE * whole:
            raise Unsound(
                f"patients apart: the gradient of {name} for one patient moved by {moved:.2e} when "
                f"another patient's image changed."
            )


def _check_bounded(whole: dict[str, Tensor], without: dict[str, Tensor], bound: float) -> None:
    moved = torch.stack([(whole[name] - without[name]).norm() for name in whole]).norm()
    if not moved <= bound * (1 + TOLERANCE):
        raise Unsound(
            f"bound: leaving one patient out moves the clipped sum by {moved:.4g}, expected at most "
            f"{bound:g}."
        )
