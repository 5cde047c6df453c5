"""The check before the first private step: the conditions of the guarantee, tested on synthetic images.

The names of a network and a loss do not show that they keep patients apart. So before a hospital spends
anything, the same functions that would train are tested on images that show no patient. On real patients
a refusal would itself reveal something.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from privacy.mechanisms import Mechanism
from privacy.per_patient import UnsupportedLayer, clipped_sums, per_patient_gradients

TOLERANCE = 1e-4
"""Relative tolerance: rounding changes a gradient by less, another patient's image by far more."""


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

    Guarantees, once it returns: the loss is one number per scan; no layer has statistics of the batch;
    every parameter receives a gradient; the gradients of the first and of the last patient do not depend
    on the other patients in the batch; without either patient the clipped sum changes by at most the
    clip norm, with one scan per patient and with two, at a norm that is small enough to clip.

    Args:
        images: `(N, 1, *spatial)` with N >= 3, synthetic.
        targets: `(N, ...)`, the targets of the loss.
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
