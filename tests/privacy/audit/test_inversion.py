"""Gradient inversion: it recovers what a bare gradient shows, and nothing where there is nothing."""

import torch
from torch import nn
from torch.nn import functional

from privacy.audit.inversion import gradient_of, inverted, likeness


def _linear_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Sigmoid(), nn.Linear(20, 4))


def _loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits, target, reduction="none")


def test_a_bare_gradient_shows_the_image_and_noise_hides_it() -> None:
    network, rng = _linear_network(), torch.Generator().manual_seed(1)
    truth = torch.zeros(1, 1, 8, 8)
    truth[..., 2:6, 3:7] = 1.0
    target = torch.tensor([2])
    seen = gradient_of(network, _loss, truth, target)
    found = inverted(network, _loss, seen, target, truth.shape, 400, rng)
    noise = [10 * torch.randn(part.shape, generator=rng) for part in seen]
    hidden = inverted(network, _loss, noise, target, truth.shape, 400, rng)
    assert likeness(truth, found).ssim > 0.8
    assert likeness(truth, hidden).ssim < 0.4


def test_the_gradient_is_that_of_autograd() -> None:
    network = _linear_network()
    image, target = torch.randn(1, 1, 8, 8), torch.tensor([1])
    _loss(network(image), target).sum().backward()
    for due, found in zip(network.parameters(), gradient_of(network, _loss, image, target), strict=True):
        assert torch.equal(due.grad, found)


def test_likeness_forgives_brightness_and_contrast_alone() -> None:
    truth = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    same = likeness(truth, 3 * truth - 2)
    assert same.ssim > 0.999 and same.psnr_db > 60
    assert likeness(truth, truth.flip(-1)).ssim < 0.5
