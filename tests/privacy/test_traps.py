"""Traps that break patient-level privacy on MONAI networks, or stop them: one test for each.

Each shows the trap where it still exists in the libraries, and that nothing here falls into it.
"""

from collections.abc import Callable

import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss, GeneralizedDiceLoss
from monai.networks import nets
from opacus import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from models import params as P
from models.objectives import build_task
from models.settings.tasks import ClassificationConfig, SegmentationConfig
from privacy.accounting import Budget, PrivacyEvent, epsilon, reported_epsilon
from privacy.ledger import BudgetExceeded, Charge, Ledger
from privacy.mechanisms import AdaptiveClip, ClipConfig, Mechanism
from privacy.noise.source import NoiseSource
from privacy.per_patient import UnsupportedLayer, check_layers, clipped_sums, per_patient_gradients
from privacy.soundness import Unsound, check_soundness
from sites.training.config import TrainingConfig
from sites.training.dp_sgd import train_privately
from sites.training.examples import Examples

SEGMENTATION = build_task(SegmentationConfig(kind="segmentation", dims=3, labels={1: "a", 2: "b"}))
CLASSES = {0: "none", 1: "some"}
CLASSIFICATION = build_task(ClassificationConfig(kind="classification", dims=3, labels=CLASSES))
SCANS = torch.arange(2)


def flat(norm: float) -> Mechanism:
    return Mechanism(ClipConfig(kind="flat", norm=norm), 1.0, 1.0, 1, divisor=2)


def unet() -> nn.Module:
    torch.manual_seed(0)
    return nets.UNet(3, 1, 3, channels=(4, 8), strides=(2,))


def patients(images: Tensor, targets: Tensor) -> Examples:
    """One scan each."""
    return Examples(len(images), lambda i, step: (images[i : i + 1], targets[i : i + 1]))


def batch(count: int = 2) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return (
        torch.randn(count, 1, 8, 8, 8, generator=rng),
        torch.randint(0, 3, (count, 8, 8, 8), generator=rng),
    )


@pytest.mark.parametrize(
    "loss",
    [
        DiceCELoss(softmax=True, to_onehot_y=True),
        GeneralizedDiceLoss(softmax=True, to_onehot_y=True),
        DiceLoss(softmax=True, to_onehot_y=True, reduction="none"),
        GeneralizedDiceLoss(softmax=True, to_onehot_y=True, reduction="none"),
    ],
    ids=["DiceCE", "GeneralizedDice", "Dice unreduced", "GeneralizedDice unreduced"],
)
def test_a_loss_of_monai_that_is_no_number_a_patient_is_refused(loss: nn.Module) -> None:
    images, targets = batch()
    with pytest.raises((Unsound, RuntimeError), match="one number per scan|shape"):
        check_soundness(unet(), loss, flat(0.1), images, targets[:, None])


@pytest.mark.parametrize("norm", [0.01, 0.04, 1.0])
def test_the_clipped_sum_keeps_its_bound_with_the_tasks_own_loss(norm: float) -> None:
    images, targets = batch(4)
    everybody = torch.arange(4)

    def summed(count: int) -> dict[str, Tensor]:
        return clipped_sums(
            unet(), SEGMENTATION.loss, images[:count], targets[:count], everybody[:count],
            flat(norm).clip_factors,
        )  # fmt: skip

    assert not any(p.requires_grad for p in summed(1).values())
    for count in (1, 2, 3):
        assert P.norm(P.subtract(summed(count + 1), summed(count))) <= norm * (1 + 1e-5)
    assert P.norm(summed(1)) <= norm * (1 + 1e-5)


def test_a_norm_above_the_gradients_wastes_the_noise_unless_it_is_normalised_or_adapts() -> None:
    images, targets = batch()
    gradients = per_patient_gradients(unet(), SEGMENTATION.loss, images, targets, SCANS)
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()]).norm(dim=0).double()
    high = 20 * float(norms.max())

    def signal_to_noise(mechanism: Mechanism) -> float:
        return float((norms * mechanism.clip_factors(norms)).mean()) / mechanism.noise_std

    normalised = Mechanism(ClipConfig(kind="normalised", norm=high), 1.0, 1.0, 1, divisor=2)
    adaptive = Mechanism(AdaptiveClip(kind="adaptive", norm=high, rate=1.0), 1e-6, 1.0, 1, divisor=2)
    for _ in range(40):
        count = adaptive.count_within(norms)
        adaptive = adaptive.adapted(count, NoiseSource.for_test(0, ""))
    assert signal_to_noise(flat(high)) < 0.06
    assert signal_to_noise(normalised) > 0.8
    assert signal_to_noise(adaptive) * 1e-6 > 0.4


@pytest.mark.parametrize("inplace", [False, True])
def test_a_norm_before_an_activation_in_place_loses_no_parameter(inplace: bool) -> None:
    network = nn.Sequential(
        nn.Conv3d(1, 4, 3), nn.InstanceNorm3d(4, affine=True), nn.LeakyReLU(inplace=inplace),
        nn.Conv3d(4, 3, 1), nn.Upsample(8),
    )  # fmt: skip
    images, targets = batch()
    gradients = per_patient_gradients(network, SEGMENTATION.loss, images, targets, SCANS)
    assert gradients.keys() == dict(network.named_parameters()).keys()
    assert all(g.abs().sum() > 0 for g in gradients.values())


def test_nothing_after_clipping_depends_on_how_many_patients_there_are() -> None:
    images, targets = batch(3)
    moved = []
    for count in (2, 3):
        network, mechanism = (
            unet(),
            Mechanism(ClipConfig(kind="flat", norm=1), 1e-12, 1.0, 1, divisor=10),
        )
        before = P.of(network)
        train_privately(
            network, SEGMENTATION, patients(images[:count], targets[:count]),
            TrainingConfig(steps=1, lr=1.0, lot="all", momentum=0), mechanism,
            NoiseSource.for_test(0, ""), None, lambda *_: None,
        )  # fmt: skip
        moved.append(P.subtract(P.of(network), before))
    assert P.norm(P.subtract(moved[1], moved[0])) <= 1 / 10 * (1 + 1e-4)


def test_rounds_and_studies_compose_and_no_run_begins_again_at_zero(tmp_path) -> None:
    event = PrivacyEvent(noise_multiplier=2.7535, sampling_rate=1.0, steps=10)
    ledger = Ledger(tmp_path / "ledger.sqlite", Budget(epsilon=8.0, delta=0.0044), "owner")
    for number in range(4):
        ledger.reserve(Charge(f"study {number}", f"run-{number}", 1, "contribute", event), {"a"})
    assert ledger.spent(0.0044) == pytest.approx(8.0, abs=0.01)
    with pytest.raises(BudgetExceeded):
        ledger.reserve(Charge("another", "run-9", 1, "contribute", event), {"a"})


def test_renyi_overstates_what_full_batches_cost_and_does_not_decide_them() -> None:
    event = PrivacyEvent(noise_multiplier=2.7535, sampling_rate=1.0, steps=40)
    assert reported_epsilon([event], 0.0044, "rdp") == pytest.approx(9.04, abs=0.05)
    assert reported_epsilon([event], 0.0044, "prv") == pytest.approx(8.01, abs=0.01)
    assert epsilon([event], 0.0044) == pytest.approx(8.0, abs=0.01)


def test_two_scans_of_a_patient_move_the_sum_no_further_than_one() -> None:
    images, targets = batch(3)
    for numbers in ([0, 1, 2], [0, 1, 1]):
        patient_of = torch.tensor(numbers)
        mechanism = flat(0.05)
        whole = clipped_sums(
            unet(), SEGMENTATION.loss, images, targets, patient_of, mechanism.clip_factors
        )
        others = patient_of != numbers[-1]
        rest = clipped_sums(
            unet(), SEGMENTATION.loss, images[others], targets[others], patient_of[others],
            mechanism.clip_factors,
        )  # fmt: skip
        assert P.norm(P.subtract(whole, rest)) <= 0.05 * (1 + 1e-5)


IN_PLACE: dict[str, Callable[[], nn.Module]] = {
    "SegResNet": lambda: nets.SegResNet(3, 8, out_channels=3, blocks_down=(1, 1), blocks_up=(1,)),
    "resnet10": lambda: ModuleValidator.fix(
        nets.resnet10(spatial_dims=3, n_input_channels=1, num_classes=2, widen_factor=0.125)
    ),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_additions_in_place_raise_in_opacus_hooks_and_work_here(name: str) -> None:
    segments = name == "SegResNet"
    images, targets = batch()
    loss = (SEGMENTATION if segments else CLASSIFICATION).loss
    targets = targets if segments else torch.tensor([0, 1])
    with pytest.raises(RuntimeError, match="modified inplace"):
        GradSampleModule(IN_PLACE[name]())(images)
    gradients = per_patient_gradients(IN_PLACE[name](), loss, images, targets, SCANS)
    assert all(g.isfinite().all() for g in gradients.values())


@pytest.mark.parametrize(
    "make",
    [
        lambda: nets.AttentionUnet(3, 1, 3, channels=(4, 8), strides=(2,)),
        lambda: nets.resnet10(spatial_dims=3, n_input_channels=1, num_classes=2),
        lambda: nets.DenseNet121(3, 1, 2),
        lambda: nets.VNet(3, 1, 3),
    ],
    ids=["AttentionUnet", "resnet10", "DenseNet121", "VNet"],
)
def test_batch_norm_is_refused_and_the_fixed_network_is_not(make: Callable[[], nn.Module]) -> None:
    network = make()
    with pytest.raises(UnsupportedLayer, match="statistics of the batch"):
        check_layers(network)
    check_layers(ModuleValidator.fix(network))


def test_empty_lots_with_a_transposed_convolution_add_noise_and_count_as_steps() -> None:
    images, targets = batch()
    network = unet()
    assert any(isinstance(layer, nn.ConvTranspose3d) for layer in network.modules())
    mechanism = Mechanism(ClipConfig(kind="flat", norm=1), 1.0, 1e-9, 3, divisor=2)
    before, steps = P.of(network), []
    train_privately(
        network, SEGMENTATION, patients(images, targets),
        TrainingConfig(steps=3, lr=1.0, lot=1), mechanism, NoiseSource.for_test(0, ""), None,
        lambda what, step, of: steps.append(step),
    )  # fmt: skip
    assert steps == [1, 2, 3]
    assert all((p != before[name]).all() for name, p in P.of(network).items())


@pytest.mark.parametrize("task", [SEGMENTATION, CLASSIFICATION], ids=["segments", "classifies"])
def test_losses_can_be_mapped_over_patients_as_one_hot_could_not(task) -> None:
    images, targets = batch()
    network = unet()
    if task is CLASSIFICATION:
        network = nn.Sequential(network, nn.Flatten(), nn.Linear(3 * 512, 2))
        targets = torch.tensor([0, 1])

    def loss(params: dict[str, Tensor], image: Tensor, target: Tensor) -> Tensor:
        return task.loss(functional_call(network, params, (image[None],)), target[None])[0]

    mapped = vmap(grad(loss), in_dims=(None, 0, 0))(P.of(network), images, targets)
    ours = per_patient_gradients(network, task.loss, images, targets, SCANS)
    assert all(torch.allclose(mapped[name], ours[name], atol=1e-5) for name in ours)


def test_parameters_keep_their_names_through_private_training() -> None:
    images, targets = batch()
    network, names = unet(), set(P.of(unet()))
    train_privately(
        network, SEGMENTATION, patients(images, targets),
        TrainingConfig(steps=1, lr=1.0, lot="all"), flat(1.0), NoiseSource.for_test(0, ""), None,
        lambda *_: None,
    )  # fmt: skip
    assert set(network.state_dict()) == names
    assert not any(name.startswith("_module.") for name in names)
