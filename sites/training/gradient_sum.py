"""The sum over a hospital's patients of their clipped gradients at one model, without any noise yet."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from privacy.mechanisms import Mechanism
from sites.progress import Progress
from sites.training.lot_sums import LotSums


def gradient_sum(
    network: nn.Module, sums: LotSums, patients: int, mechanism: Mechanism, progress: Progress
) -> NDArray[np.float64]:
    """Return the clipped sum over all patients, `(d,)`, its parameters one after the other by name.

    Zeroing one patient moves it by at most the mechanism's clip norm in L2. It is raw: it leaves only
    with noise, and masked.

    Args:
        sums: what sums the gradients of the patients, numbered from 0 to `patients`.
    """
    progress("train", 0, 1)
    found = sums(network, range(patients), 0, mechanism)
    progress("train", 1, 1)
    parameters = dict(network.named_parameters())
    total = found.sums or [torch.zeros(p.shape, dtype=torch.float64) for p in parameters.values()]
    by_name = dict(zip(parameters, total, strict=True))
    return np.concatenate([by_name[name].cpu().numpy().ravel() for name in sorted(by_name)])
