import pytest
import torch
from monai.networks.nets import SegResNet, UNet

from models.objectives import SegmentationConfig, build_task
from privacy.per_patient import per_patient_gradients

TASK = build_task(SegmentationConfig(kind="segmentation", dims=3, labels={1: "a", 2: "b"}))
NETWORKS = {
    "UNet": lambda: UNet(3, 1, 3, channels=(4, 8), strides=(2,)),
    "UNet with residual units": lambda: UNet(3, 1, 3, channels=(4, 8), strides=(2,), num_res_units=1),
    "SegResNet": lambda: SegResNet(3, 8, out_channels=3, blocks_down=(1, 1), blocks_up=(1,)),
}
PATIENT_OF = torch.tensor([0, 1, 1, 2])


def scans() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(4, 1, 8, 8, 8, generator=rng, dtype=torch.float64)
    return images, torch.randint(0, 3, (4, 8, 8, 8), generator=rng)


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
def test_gradients_equal_a_loop_over_patients(make) -> None:
    network = make().double()
    images, targets = scans()
    ours = per_patient_gradients(network, TASK.loss, images, targets, PATIENT_OF)
    for patient in range(3):
        mine = patient == PATIENT_OF
        loss = TASK.loss(network(images[mine]), targets[mine]).mean()
        plain = torch.autograd.grad(loss, list(network.parameters()))
        for (name, _), expected in zip(network.named_parameters(), plain, strict=True):
            error = (ours[name][patient] - expected).norm()
            assert error <= 1e-10 * max(expected.norm(), 1e-8), name


def test_another_patients_image_does_not_move_a_gradient() -> None:
    network = NETWORKS["UNet"]().double()
    images, targets = scans()
    before = per_patient_gradients(network, TASK.loss, images, targets, PATIENT_OF)
    images[3] += 10
    after = per_patient_gradients(network, TASK.loss, images, targets, PATIENT_OF)
    for name in before:
        assert torch.allclose(before[name][:2], after[name][:2], rtol=1e-12, atol=1e-14)
    assert any(not torch.allclose(before[n][2], after[n][2]) for n in before)


def test_a_patient_with_two_equal_scans_weighs_as_one_with_one() -> None:
    network = NETWORKS["UNet"]().double()
    images, targets = scans()
    single = per_patient_gradients(network, TASK.loss, images[:1], targets[:1], torch.tensor([0]))
    twice = per_patient_gradients(
        network, TASK.loss, images[[0, 0]], targets[[0, 0]], torch.tensor([0, 0])
    )
    assert all(torch.allclose(single[n], twice[n], rtol=1e-12) for n in single)
