"""Gradient inversion: the image that an attacker recovers from a gradient, given network and truth.

Source: Geiping et al. 2020, Inverting Gradients - How easy is it to break privacy in federated
learning?, equation 4 and section 4, https://arxiv.org/abs/2003.14053: the image whose gradient has the
direction of the one seen, and little total variation, by Adam on signs. The attacker knows the label or
the label map, which favours the attack.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from monai.metrics.regression import PSNRMetric, SSIMMetric
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]

STEP = 0.1
VARIATION = 1e-3
"""Rate of Adam, and weight of the total variation."""
DROPS = (3 / 8, 5 / 8, 7 / 8)
"""Shares of the steps after which the rate becomes a tenth."""


def gradient_of(network: nn.Module, loss: Loss, image: Tensor, target: Tensor) -> list[Tensor]:
    """Return the gradient of one image's loss by parameter, of `(1, C, *spatial)`."""
    found = torch.autograd.grad(loss(network(image), target).sum(), list(network.parameters()))
    return [each.detach() for each in found]


def inverted(
    network: nn.Module,
    loss: Loss,
    seen: Sequence[Tensor],
    target: Tensor,
    shape: tuple[int, ...],
    steps: int,
    rng: torch.Generator,
) -> Tensor:
    """Return the image `shape` = `(1, C, *spatial)` that best explains a gradient.

    Args:
        seen: the gradient by parameter, with any noise.
        target: the true target, which the attacker knows.
    """
    image = torch.randn(shape, generator=rng).requires_grad_()
    optimizer = torch.optim.Adam([image], lr=STEP)
    drops = [round(share * steps) for share in DROPS]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, drops, gamma=0.1)
    parameters = list(network.parameters())
    length = _norm(seen)
    for _ in range(steps):
        gradient = torch.autograd.grad(loss(network(image), target).sum(), parameters, create_graph=True)
        along = sum((g * s).sum() for g, s in zip(gradient, seen, strict=True))
        cost = 1 - along / (_norm(gradient) * length + 1e-12) + VARIATION * _variation(image)
        (found,) = torch.autograd.grad(cost, image)
        image.grad = found.sign()
        optimizer.step()
        schedule.step()
    return image.detach()


def _norm(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack([part.square().sum() for part in parts]).sum().sqrt()


def _variation(image: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbours, over all spatial axes."""
    return torch.stack([image.diff(dim=axis).abs().mean() for axis in range(2, image.dim())]).sum()


@dataclass(frozen=True)
class Likeness:
    """How like the true image a recovered one is.

    Attributes:
        psnr_db: peak signal-to-noise ratio in dB; larger is more alike.
        ssim: structural similarity, at most 1 for the same image.
    """

    psnr_db: float
    ssim: float


def likeness(truth: Tensor, found: Tensor) -> Likeness:
    """Return how like `(1, C, *spatial)` images are, after the best brightness and contrast.

    An attack recovers an image up to these, where the network normalises what it sees. PSNR and SSIM are
    MONAI's, over the truth's range.
    """
    fitted = _fitted(truth, found)
    span = float(truth.max() - truth.min())
    psnr = PSNRMetric(max_val=span)(fitted, truth)
    ssim = SSIMMetric(spatial_dims=truth.dim() - 2, data_range=span, win_size=7)(fitted, truth)
    return Likeness(float(psnr.mean()), float(ssim.mean()))


def _fitted(truth: Tensor, found: Tensor) -> Tensor:
    """Return `found` under the linear change of its values that is closest to the truth."""
    flat = torch.stack([found.ravel(), torch.ones(found.numel())], 1)
    weights = torch.linalg.lstsq(flat.double(), truth.ravel()[:, None].double()).solution
    fitted: Tensor = (flat.double() @ weights).view(truth.shape).to(truth)
    return fitted
