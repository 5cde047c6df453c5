import pytest
import torch
from monai.networks.nets import UNet
from torch import Tensor, nn

from models.objectives import build_task
from models.settings.tasks import SegmentationConfig
from privacy.mechanisms import ClipConfig, Mechanism
from privacy.soundness import Unsound, check_soundness

TASK = build_task(SegmentationConfig(kind="segmentation", dims=2, labels={1: "a", 2: "b"}))


def check(network: nn.Module, loss=TASK.loss, kind: str = "flat") -> None:
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(3, 1, 8, 8, generator=rng)
    targets = torch.randint(0, 3, (3, 8, 8), generator=rng)
    check_soundness(
        network, loss, Mechanism(ClipConfig(kind=kind, norm=0.1), 1, 1, 1, 3), images, targets
    )


def unet() -> nn.Module:
    torch.manual_seed(0)
    return UNet(2, 1, 3, channels=(4, 8), strides=(2,))


class SeesThoseBefore(nn.Module):
    """Mixes patients one way only: each scan sees those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = unet()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x - x.cumsum(0) / 2)


class LessTheMean(nn.Module):
    """Mixes patients without any statistics that its type would show."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = unet()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x - x.mean())


def batch_dice(logits: Tensor, target: Tensor) -> Tensor:
    """One number a scan by its shape, and the same for everybody by its value."""
    foreground = logits.softmax(1)[:, 1]
    overlap = (foreground * (target == 1)).sum() / foreground.sum()
    return (1 - overlap).expand(len(logits))


@pytest.mark.parametrize("kind", ["flat", "normalised"])
def test_a_sound_network_passes(kind: str) -> None:
    assert check(unet(), kind=kind) is None


@pytest.mark.parametrize(
    ("network", "loss", "message"),
    [
        (unet, lambda y, t: TASK.loss(y, t).mean(), "loss: Expected a loss of shape"),
        (unet, lambda y, t: TASK.loss(y, t).view(-1, 1, 1), "loss: Expected a loss of shape"),
        (unet, batch_dice, "patients apart: the gradient of"),
        (LessTheMean, TASK.loss, "patients apart: the gradient of inner"),
        (SeesThoseBefore, TASK.loss, "patients apart: the gradient of inner"),
        (
            lambda: nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3)),
            TASK.loss,
            "layers: 1 .BatchNorm2d",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(1, 3, 1, padding_mode="circular")),
            TASK.loss,
            "layers: 0 .Conv2d",
        ),
    ],
)
def test_what_would_break_the_guarantee_is_refused_by_check_and_layer(
    network, loss, message: str
) -> None:
    with pytest.raises(Unsound, match=message):
        check(network(), loss)


def test_a_parameter_without_a_gradient_is_refused_by_name() -> None:
    network = unet()
    network.register_module("idle", nn.Conv2d(1, 1, 1))
    with pytest.raises(Unsound, match=r"layers: idle\.weight received no gradient"):
        check(network)


def test_a_clip_that_does_not_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mechanism, "clip_factors", lambda self, norms: torch.ones_like(norms))
    with pytest.raises(Unsound, match=r"bound: leaving one patient out moves .* expected at most 0\.1"):
        check(unet())
