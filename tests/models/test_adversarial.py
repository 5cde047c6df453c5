import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.adversarial import attacked
from models.objectives import build_task
from models.settings.opponents import AttackConfig
from models.settings.tasks import ClassificationConfig, SegmentationConfig

CLASSES = ClassificationConfig(kind="classification", dims=2, labels={0: "well", 1: "ill"})
SHAPES = SegmentationConfig(kind="segmentation", dims=2, labels={1: "a"})


def linear(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2, bias=False))


def segmenter() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1)
    )


@pytest.mark.parametrize("kind", ["fgsm", "pgd"])
def test_against_a_linear_network_the_attack_is_the_closed_form(kind: str) -> None:
    network, images = linear(), torch.randn(5, 1, 4, 4)
    targets = torch.tensor([0, 1, 0, 1, 1])
    changed = attacked(
        network, build_task(CLASSES).loss, images, targets, AttackConfig(kind=kind, radius=0.1)
    )
    w = network[1].weight
    direction = torch.where(targets[:, None] == 1, w[0] - w[1], w[1] - w[0]).sign()
    assert torch.allclose(changed, images + 0.1 * direction.reshape(5, 1, 4, 4), atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["fgsm", "pgd"]), st.floats(0.01, 2), st.integers(0, 100))
def test_no_voxel_moves_further_than_the_radius_and_each_scans_loss_grows(
    kind: str, radius: float, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    images = torch.randn(3, 1, 8, 8, generator=rng)
    targets = torch.randint(0, 2, (3, 8, 8), generator=rng)
    network, loss = segmenter(), build_task(SHAPES).loss
    changed = attacked(network, loss, images, targets, AttackConfig(kind=kind, radius=radius))
    rounding = torch.finfo(images.dtype).eps * (float(images.abs().max()) + radius)
    assert (changed - images).abs().max() <= radius + rounding
    if kind == "pgd" and radius < 0.2:
        with torch.no_grad():
            before, after = (loss(network(x), targets) for x in (images, changed))
        assert (after > before).all()


def test_the_attack_on_a_scan_depends_on_no_other_scan() -> None:
    images, targets = torch.randn(4, 1, 8, 8), torch.randint(0, 2, (4, 8, 8))
    network, loss = segmenter(), build_task(SHAPES).loss
    config = AttackConfig(kind="pgd", radius=0.3, steps=3)
    together = attacked(network, loss, images, targets, config)
    alone = torch.cat(
        [attacked(network, loss, images[i : i + 1], targets[i : i + 1], config) for i in range(4)]
    )
    assert torch.allclose(together, alone, atol=1e-6)
    assert not together.requires_grad
    assert all(p.grad is None for p in network.parameters())
