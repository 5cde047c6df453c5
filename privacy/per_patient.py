"""Exact gradients of each patient's loss, for unmodified networks without batch statistics."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from models import params as P


def per_patient_gradients(
    network: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    targets: Tensor,
    patient_of: Tensor,
) -> dict[str, Tensor]:
    """Return for each parameter the gradients `(P, *shape)` of P patients' losses.

    A patient's loss is the mean over his scans, so his scans' gradients are summed *before*
    anybody clips: several scans make one unit of privacy.

    Args:
        loss: `(logits (N, ...), targets (N, ...)) -> (N,)`.
        images: `(N, 1, *spatial)`, the scans of whole patients.
        patient_of: `(N,)`, each scan's patient as 0 ... P-1, each with at least one scan.
    """
    own = P.of(network)

    def scan_loss(params: dict[str, Tensor], image: Tensor, target: Tensor) -> Tensor:
        logits = functional_call(network, params, (image[None],))
        value: Tensor = loss(logits, target[None])
        return value.squeeze(0)

    per_scan = vmap(grad(scan_loss), in_dims=(None, 0, 0))(own, images, targets)
    scans = torch.bincount(patient_of)
    share = 1 / scans[patient_of]
    return {
        name: g.new_zeros(len(scans), *own[name].shape).index_add_(
            0, patient_of, g * share.view(-1, *[1] * own[name].dim())
        )
        for name, g in per_scan.items()
    }
