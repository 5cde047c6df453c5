import numpy as np
import torch

from models import params as P
from models.networks.segmentation import UNetConfig
from models.objectives import build_task
from models.pretraining import from_pool, pretrain, tube_maker
from models.settings.tasks import SegmentationConfig
from models.synthesis import SynthesisConfig, labelled_image

TASK = build_task(SegmentationConfig(kind="segmentation", dims=2, labels={1: "head", 2: "tail"}))
MAKE = tube_maker((24, 24), 2, SynthesisConfig())


def taught(seed: int, steps: int) -> torch.nn.Module:
    torch.manual_seed(0)
    network = UNetConfig(name="UNet", channels=(8, 16)).build(2, 3)
    draw, _ = from_pool(MAKE, 64, 8, seed)
    pretrain(network, TASK.loss, draw, steps, 3e-3)
    return network


def test_a_pretrained_network_segments_synthetic_images_that_it_has_not_seen() -> None:
    rng = np.random.default_rng(99)
    drawn = [labelled_image((24, 24), 2, rng) for _ in range(20)]
    images = torch.from_numpy(np.stack([image for image, _ in drawn]))
    truth = torch.from_numpy(np.stack([labels for _, labels in drawn]))
    before, after = (TASK.loss(taught(1, steps)(images), truth).mean() for steps in (1, 120))
    assert after < 0.75 * before


def test_pretraining_depends_on_the_seed_alone() -> None:
    a, b, c = (P.of(taught(seed, 3)) for seed in (1, 1, 2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_an_odd_batch_moves_the_network_no_further_than_the_longest_gradient_allows() -> None:
    torch.manual_seed(0)
    network = UNetConfig(name="UNet", channels=(4, 8)).build(2, 3)
    odd = torch.full((2, 1, 16, 16), 1e6), torch.ones(2, 16, 16).long()
    pretrain(network, lambda x, y: 1e9 * TASK.loss(x, y), lambda _: odd, 3, 1e-3)
    assert P.all_finite(P.of(network))
