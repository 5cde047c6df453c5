"""Gradients of a batch: patients kept apart, large layers summed, unsupported layers refused."""

import gc

import pytest
import torch
from monai.networks import nets
from torch import Tensor, nn

from models.objectives import build_task
from models.settings.tasks import SegmentationConfig
from privacy.per_patient import (
    UnsupportedLayer,
    _Book,
    _go_back,
    _squared_norms,
    check_layers,
    clipped_sums,
    per_patient_gradients,
)

PATIENT_OF = torch.tensor([0, 1, 1, 2])


def unet() -> nn.Module:
    return nets.UNet(2, 1, 3, channels=(4, 8), strides=(2,)).double()


def dice_and_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    config = SegmentationConfig(kind="segmentation", dims=2, labels={1: "a", 2: "b"})
    return build_task(config).loss(logits, target)


def squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.flatten(1) ** 2).mean(1) + outputs.flatten(1).sin().sum(1) + targets


def test_another_patients_image_does_not_move_a_gradient() -> None:
    network = unet()
    images, targets = torch.randn(4, 1, 8, 8).double(), torch.randint(0, 3, (4, 8, 8))
    before = per_patient_gradients(network, dice_and_cross_entropy, images, targets, PATIENT_OF)
    images[3] += 10
    after = per_patient_gradients(network, dice_and_cross_entropy, images, targets, PATIENT_OF)
    for name in before:
        assert torch.equal(before[name][:2], after[name][:2])
    assert any(not torch.allclose(before[n][2], after[n][2]) for n in before)


def test_a_patient_with_two_equal_scans_weighs_as_one_with_one() -> None:
    network = unet()
    image, target = torch.randn(1, 1, 8, 8).double(), torch.randint(0, 3, (1, 8, 8))
    once = per_patient_gradients(network, dice_and_cross_entropy, image, target, torch.tensor([0]))
    both = torch.cat([image, image]), torch.cat([target, target])
    twice = per_patient_gradients(network, dice_and_cross_entropy, *both, torch.tensor([0, 0]))
    assert all(torch.allclose(once[n], twice[n], rtol=1e-12) for n in once)


def test_large_layers_are_summed_without_keeping_a_gradient_for_each_patient() -> None:
    network = nn.Sequential(nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3), nn.Flatten(), nn.Linear(64, 9))
    book = _Book(PATIENT_OF, may_defer=True)
    _go_back(network, squares, torch.randn(4, 1, 5, 5), torch.zeros(4), book)
    assert set(book.deferred) == {"1.weight", "3.weight"}
    assert "0.weight" in book.whole


@pytest.mark.parametrize("size", [10, 4096, 7_000_001])
def test_norms_of_many_numbers_in_float32_keep_their_digits(size: int) -> None:
    rng = torch.Generator().manual_seed(0)
    for numbers in (torch.full((2, size), 0.3), torch.randn(2, size, generator=rng)):
        exact = numbers.double().norm(dim=1).square()
        assert torch.allclose(_squared_norms(numbers), exact, rtol=1e-5)


@pytest.mark.parametrize("size", [1.0, 1e2, 1e4])
def test_scans_of_a_patient_that_cancel_leave_no_more_than_the_clip_norm(size: float) -> None:
    rng = torch.Generator().manual_seed(0)
    network = nn.Conv3d(16, 64, 3, bias=False)
    scan = torch.randn(1, 16, 4, 4, 4, generator=rng) * size
    cotangent = torch.randn(1, 64, 2, 2, 2, generator=rng) * size
    images, signs = torch.cat([scan, scan]), torch.cat([cotangent, -cotangent])
    sums = clipped_sums(
        network, lambda y, g: (y * g).flatten(1).sum(1), images, signs, torch.tensor([0, 0]),
        lambda norms: (1 / norms.clamp(min=1e-12)).clamp(max=1.0),
    )  # fmt: skip
    assert sums["weight"].norm() <= 1 + 1e-5


def test_nothing_of_a_batch_stays_in_memory_afterwards() -> None:
    network = nn.Sequential(nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3), nn.Flatten(), nn.Linear(64, 9))
    images = torch.randn(4, 1, 5, 5)

    def tensors() -> int:
        clipped_sums(network, squares, images, torch.zeros(4), PATIENT_OF, torch.ones_like)
        return sum(isinstance(each, Tensor) for each in gc.get_objects())

    gc.collect()
    gc.disable()  # what only the collector would find is memory that a training run does without
    try:
        assert tensors() == tensors()
    finally:
        gc.enable()


def test_a_patient_without_a_finite_gradient_adds_nothing_to_large_layers_either() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 64), nn.Linear(64, 9)).double()
    images = torch.randn(4, 1, 3, 3).double()

    def clip(norms: Tensor) -> Tensor:
        return norms.isfinite().double()

    plain = clipped_sums(network, squares, images[[0, 1, 2]], torch.zeros(3), PATIENT_OF[:3], clip)
    images[3] = float("nan")
    sums = clipped_sums(network, squares, images, torch.zeros(4), PATIENT_OF, clip)
    assert all(torch.allclose(sums[name], plain[name]) for name in plain)


def test_the_network_is_as_it_was_afterwards_and_after_an_error() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.GroupNorm(1, 2)).double()
    images = torch.randn(4, 1, 4, 4).double()
    before = network(images)
    per_patient_gradients(network, squares, images, torch.zeros(4), PATIENT_OF)
    with pytest.raises(ValueError, match="one number per scan"):
        per_patient_gradients(network, lambda y, t: y.mean(), images, torch.zeros(4), PATIENT_OF)
    assert torch.equal(network(images), before)
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert not any("forward" in vars(layer) for layer in network.modules())


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)), r"1 \(BatchNorm2d\) has statistics"),
        (nn.Sequential(nn.InstanceNorm2d(1, track_running_stats=True)), "0 .InstanceNorm2d. has stat"),
        (nn.Sequential(nn.Bilinear(2, 2, 2)), r"0 \(Bilinear\) is of an unsupported kind"),
        (nn.Sequential(nn.Conv2d(1, 2, 3, padding_mode="reflect")), "unsupported kind"),
        (nn.Sequential(nn.Conv2d(1, 2, 2, padding="same")), "unsupported kind"),
        (nn.Sequential(nn.Embedding(3, 2, max_norm=1.0)), "unsupported kind"),
    ],
)
def test_a_layer_that_cannot_be_done_exactly_is_refused_by_name(
    network: nn.Module, message: str
) -> None:
    with pytest.raises(UnsupportedLayer, match=message):
        check_layers(network)


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class Doubled(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, 2 * weight, bias)


def tied() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1))
    network[1].weight = network[0].weight
    return network


def frozen() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1))
    return network.requires_grad_(False)


def replaced() -> nn.Module:
    layer = nn.Conv2d(1, 1, 1)
    layer.forward = lambda x: x * 3
    return nn.Sequential(layer)


class UsedBeside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.layer.weight.norm()


class Folded(nn.Module):
    """Patches as rows: a row is not a scan, and no patient either."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.reshape(-1, 1, 2, 2)).reshape(len(x), -1)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(input=x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(Standardised(1, 1, 1)), r"0 \(Standardised\) is of an unsupported kind"),
        (lambda: nn.Sequential(Doubled(1, 1, 1)), r"0 \(Doubled\) is of an unsupported kind"),
        (replaced, r"0 \(Conv2d\) is of an unsupported kind"),
        (tied, "1 shares a parameter with 0"),
        (frozen, r"0 \(Conv2d\) is frozen"),
        (UsedBeside, "layer.weight is used outside its own layer"),
        (Folded, r"layer \(Conv2d\) sees 16 rows of 4 scans"),
        (Named, r"layer \(Conv2d\) takes more than one input"),
        (
            lambda: nn.ConvTranspose2d(1, 1, 2, stride=1, output_padding=1, dilation=2),
            "is of an unsupported kind",
        ),
    ],
)
def test_what_would_be_silently_wrong_is_refused_by_name(make, message: str) -> None:
    network, before = make(), None
    if isinstance(network, nn.Sequential):
        before = [vars(layer).get("forward") for layer in network]
    with pytest.raises(UnsupportedLayer, match=message):
        per_patient_gradients(network, squares, torch.randn(4, 1, 4, 4), torch.zeros(4), PATIENT_OF)
    if before is not None:
        assert before == [vars(layer).get("forward") for layer in network]


def test_a_parameter_without_a_gradient_is_an_error_that_names_it() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    with pytest.raises(UnsupportedLayer, match="idle.weight received no gradient"):
        per_patient_gradients(Idle(), squares, torch.randn(4, 1, 4, 4), torch.zeros(4), PATIENT_OF)
