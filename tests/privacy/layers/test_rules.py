"""Layers of each kind, alone and in MONAI's networks, against a plain loop over patients, in float64."""

from collections.abc import Callable

import pytest
import torch
from monai.networks import nets
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from models.objectives import build_task
from models.settings.tasks import SegmentationConfig
from privacy.layers.rules import rule_of
from privacy.per_patient import _Back, clipped_sums, per_patient_gradients

PATIENT_OF = torch.tensor([0, 1, 1, 2])
GROUP = ("group", {"num_groups": 4})

SEGMENTERS: dict[str, Callable[[int], nn.Module]] = {
    "UNet": lambda d: nets.UNet(d, 1, 3, channels=(4, 8), strides=(2,)),
    "UNet with residual units": lambda d: nets.UNet(
        d, 1, 3, channels=(4, 8, 8), strides=(2, 2), num_res_units=2, norm="instance"
    ),
    "BasicUNet": lambda d: nets.BasicUNet(d, 1, 3, features=(4, 4, 8, 8, 8, 4)),
    "SegResNet": lambda d: nets.SegResNet(d, 8, out_channels=3, blocks_down=(1, 1), blocks_up=(1,)),
    "DynUNet": lambda d: nets.DynUNet(
        d, 1, 3, kernel_size=[3, 3, 3], strides=[1, 2, 2], upsample_kernel_size=[2, 2],
        filters=[4, 8, 8], res_block=True,
    ),
    "AttentionUnet": lambda d: ModuleValidator.fix(
        nets.AttentionUnet(d, 1, 3, channels=(4, 8), strides=(2,))
    ),
}  # fmt: skip
CLASSIFIERS: dict[str, Callable[[int], nn.Module]] = {
    "DenseNet121": lambda d: nets.DenseNet121(
        d, 1, 3, init_features=8, growth_rate=4, block_config=(2, 2), norm=GROUP
    ),
    "resnet10": lambda d: ModuleValidator.fix(
        nets.resnet10(spatial_dims=d, n_input_channels=1, num_classes=3, widen_factor=0.125)
    ),
    "resnet18": lambda d: ModuleValidator.fix(
        nets.resnet18(spatial_dims=d, n_input_channels=1, num_classes=3, widen_factor=0.125)
    ),
}  # fmt: skip


def dice_and_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    config = SegmentationConfig(kind="segmentation", dims=2, labels={1: "a", 2: "b"})
    return build_task(config).loss(logits, target)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, target, reduction="none")


def assert_equals_a_loop(
    network: nn.Module, loss, images: Tensor, targets: Tensor, tolerance: float = 1e-10
) -> None:
    ours = per_patient_gradients(network, loss, images, targets, PATIENT_OF)
    assert_clipped_sums_agree(network, loss, images, targets, ours, tolerance)
    assert ours.keys() == dict(network.named_parameters()).keys()
    for patient in range(3):
        mine = patient == PATIENT_OF
        loss_of_one = loss(network(images[mine]), targets[mine]).mean()
        plain = torch.autograd.grad(loss_of_one, list(network.parameters()))
        whole = torch.stack([g.norm() for g in plain]).norm()
        for (name, _), expected in zip(network.named_parameters(), plain, strict=True):
            # A bias before a norm has a gradient of rounding errors alone: compare with the whole.
            size = torch.maximum(expected.norm(), 1e-3 * whole)
            assert (ours[name][patient] - expected).norm() <= tolerance * size, name


def assert_clipped_sums_agree(network, loss, images, targets, gradients, tolerance: float) -> None:
    """Clip and sum `gradients` plainly; the second patient's factor is zero."""
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()]).norm(dim=0)
    factors = 0.5 / norms * torch.tensor([1.0, 0.0, 1.0])

    def clip(found: Tensor) -> Tensor:
        assert torch.allclose(found, norms.double(), rtol=1e-9)
        return factors

    sums = clipped_sums(network, loss, images, targets, PATIENT_OF, clip)
    for name, g in gradients.items():
        expected = torch.einsum("p,p...->...", factors, g)
        assert (sums[name] - expected).norm() <= tolerance * max(expected.norm(), 1e-3), name


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", SEGMENTERS)
def test_segmenters_agree_with_a_loop_over_patients(name: str, dims: int) -> None:
    torch.manual_seed(0)
    network = SEGMENTERS[name](dims).double()
    side = 32 if name == "BasicUNet" else 16
    images = torch.randn(4, 1, *[side] * dims, dtype=torch.float64)
    assert_equals_a_loop(
        network, dice_and_cross_entropy, images, torch.randint(0, 3, (4, *[side] * dims))
    )


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_agree_with_a_loop_over_patients(name: str, dims: int) -> None:
    torch.manual_seed(0)
    network = CLASSIFIERS[name](dims).double()
    images = torch.randn(4, 1, *[32] * dims, dtype=torch.float64)
    assert_equals_a_loop(network, cross_entropy, images, torch.randint(0, 3, (4,)))


CONVOLUTIONS = [
    dict(kernel_size=3, padding=1),
    dict(kernel_size=3, padding=0, stride=2),
    dict(kernel_size=1),
    dict(kernel_size=1, stride=2),
    dict(kernel_size=5, padding=4, dilation=2),
    dict(kernel_size=3, padding=1, groups=2),
    dict(kernel_size=3, padding="same", dilation=3),
    dict(kernel_size=2, padding="valid", stride=2),
    dict(kernel_size=3, padding=1, bias=False),
]
TRANSPOSED = [
    dict(kernel_size=2, stride=2),
    dict(kernel_size=3, stride=2, padding=1, output_padding=1),
    dict(kernel_size=3, stride=1, padding=1, dilation=2),
    dict(kernel_size=3, stride=2, padding=1, output_padding=1, groups=2),
    dict(kernel_size=1, bias=False),
]


def squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.flatten(1) ** 2).mean(1) + outputs.flatten(1).sin().sum(1) + targets


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_every_convolution_agrees_with_a_loop(options: dict[str, object], dims: int) -> None:
    kind = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dims - 1]
    network = nn.Sequential(kind(1, 4, 1), kind(4, 6, **options)).double()
    images = torch.randn(4, 1, *[9] * dims, dtype=torch.float64)
    assert_equals_a_loop(network, squares, images, torch.zeros(4))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("options", TRANSPOSED, ids=str)
def test_every_transposed_convolution_agrees_with_a_loop(options: dict[str, object], dims: int) -> None:
    kind = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d][dims - 1]
    before = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dims - 1]
    network = nn.Sequential(before(1, 4, 1), kind(4, 6, **options)).double()
    images = torch.randn(4, 1, *[5] * dims, dtype=torch.float64)
    assert_equals_a_loop(network, squares, images, torch.zeros(4))


class Twice(nn.Module):
    """One layer used twice, an in-place addition and an in-place activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.act = nn.InstanceNorm2d(4, affine=True), nn.LeakyReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.norm(self.shared(x))
        y += x
        return self.shared(self.act(y))


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "linear on vectors": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Linear(5, 2)),
    "linear on sequences": lambda: nn.Sequential(
        nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2, bias=False)
    ),
    "group norm": lambda: nn.Sequential(nn.Conv2d(1, 6, 3), nn.GroupNorm(2, 6), nn.Tanh()),
    "instance norm": lambda: nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.InstanceNorm2d(6, affine=True), nn.Tanh()
    ),
    "layer norm": lambda: nn.Sequential(nn.Linear(6, 5), nn.LayerNorm((6, 5)), nn.Tanh()),
    "layer norm of one axis": lambda: nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Tanh()),
    "one slope": lambda: nn.Sequential(nn.Conv2d(1, 6, 3), nn.PReLU()),
    "a slope a channel": lambda: nn.Sequential(nn.Conv2d(1, 6, 3), nn.PReLU(6)),
    "a layer used twice, in place": Twice,
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS.keys())
def test_every_other_layer_agrees_with_a_loop(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    images = 3 + torch.randn(4, 1, 6, 6, dtype=torch.float64)
    assert_equals_a_loop(make().double(), squares, images, torch.zeros(4))


def test_an_embedding_agrees_with_a_loop() -> None:
    network = nn.Sequential(nn.Embedding(7, 3, padding_idx=0), nn.Linear(3, 2)).double()
    words = torch.tensor([[1, 2, 2], [3, 0, 0], [6, 6, 6], [1, 5, 0]])
    assert_equals_a_loop(network, squares, words, torch.zeros(4))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("options", [o for o in CONVOLUTIONS if "groups" not in o], ids=str)
def test_norms_from_inner_products_are_those_of_the_gradients(
    options: dict[str, object], dims: int
) -> None:
    kind = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dims - 1]
    positions = kind(1, 1, **options)(torch.zeros(1, 1, *[7] * dims)).numel()
    assert_ghost_norms_agree(kind(4, 2 * positions, **options), torch.randn(4, 4, *[7] * dims))


@pytest.mark.parametrize("shape", [(9,), (3, 9), (2, 3, 9)])
def test_norms_of_linear_layers_from_inner_products_are_those_of_the_gradients(
    shape: tuple[int, ...],
) -> None:
    assert_ghost_norms_agree(nn.Linear(9, 12), torch.randn(4, *shape))


def assert_ghost_norms_agree(layer: nn.Module, images: Tensor) -> None:
    layer, images = layer.double(), images.double()
    cotangent = torch.randn_like(layer(images))
    rule = rule_of(layer)
    ghost = _Back(layer, rule, images, (), cotangent).ghost_norms()
    gradients = rule.backward(layer, images, (), cotangent, needs_x=False)[1]["weight"]()
    assert torch.allclose(ghost, gradients.flatten(1).norm(dim=1).square(), rtol=1e-10)


@pytest.mark.parametrize("name", ["DenseNet121", "resnet10", "BasicUNet", "UNet"])
def test_patients_with_one_scan_each_agree_with_gradients_kept_whole(name: str) -> None:
    torch.manual_seed(0)
    segments = name in SEGMENTERS
    network = (SEGMENTERS | CLASSIFIERS)[name](3)
    network = network.double()
    images = torch.randn(3, 1, 32, 32, 32, dtype=torch.float64)
    targets = torch.randint(0, 3, (3, *([32] * 3 if segments else [])))
    loss = dice_and_cross_entropy if segments else cross_entropy
    patients = torch.arange(3)
    whole = per_patient_gradients(network, loss, images, targets, patients)
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in whole.values()]).norm(dim=0)

    def clip(found: Tensor) -> Tensor:
        assert torch.allclose(found, norms, rtol=1e-10)
        return 1 / found

    for parameter, summed in clipped_sums(network, loss, images, targets, patients, clip).items():
        expected = torch.einsum("p,p...->...", 1 / norms, whole[parameter])
        assert (summed - expected).norm() <= 1e-10 * max(expected.norm(), 1e-3), parameter
