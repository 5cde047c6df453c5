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
    every parameter receives a gradient; the first and the last patient's gradients are the same
    whoever else is in the batch; leaving either out moves the clipped sum by the clip norm at most,
    with one scan a patient and with two, at a norm that surely clips.

    Args:
        images: `(N, 1, *spatial)` with N >= 3, synthetic.
        targets: `(N, ...)`, what the loss takes.
    """
    if images.is_cuda and torch.backends.cudnn.allow_tf32:
        raise Unsound("precision: convolutions may run in TF32, too coarse for the clip's bound")
    alone = torch.arange(len(images), device=images.device)
    before = _gradients(network, loss, images, targets, alone)
    for patient in (0, len(images) - 1):
        others = images.flip(-1) * 3 + 1
        others[patient] = images[patient]
        _check_apart(before, _gradients(network, loss, others, targets, alone), patient)
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in before.values()]).norm(dim=0)
    clipping = mechanism.starting_at(min(mechanism.clip.norm, float(norms.min()) / 2))
    for patient_of in (alone, (alone - 1).clamp(min=0)):
        for left_out in (0, int(patient_of.max())):
            _check_bounded(network, loss, clipping, images, targets, patient_of, left_out)


def _gradients(
    network: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    targets: Tensor,
    patients: Tensor,
) -> dict[str, Tensor]:
    try:
        return per_patient_gradients(network, loss, images, targets, patients)
    except UnsupportedLayer as error:
        raise Unsound(f"layers: {error}") from error
    except ValueError as error:
        raise Unsound(f"loss: {error}") from error


def _check_apart(before: dict[str, Tensor], after: dict[str, Tensor], patient: int) -> None:
    whole = torch.stack([g[patient].norm() for g in before.values()]).norm()
    for name, gradient in before.items():
        moved = (gradient[patient] - after[name][patient]).norm()
        if not moved <= TOLERANCE * whole:
            raise Unsound(
                f"patients apart: the gradient of {name} for one patient moved by {moved:.2e} when "
                f"other patients' images changed."
            )


def _check_bounded(
    network: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    mechanism: Mechanism,
    images: Tensor,
    targets: Tensor,
    patient_of: Tensor,
    left_out: int,
) -> None:
    def summed(kept: Tensor) -> dict[str, Tensor]:
        numbers = torch.unique(patient_of[kept], return_inverse=True)[1]
        return clipped_sums(network, loss, images[kept], targets[kept], numbers, mechanism.clip_factors)

    whole, rest = summed(patient_of >= 0), summed(patient_of != left_out)
    moved = torch.stack([(whole[name] - rest[name]).norm() for name in whole]).norm()
    bound = mechanism.clip.norm
    if not moved <= bound * (1 + TOLERANCE):
        raise Unsound(
            f"bound: leaving one patient out moves the clipped sum by {moved:.4g}, expected at most "
            f"{bound:.4g}."
        )
