import numpy as np
import torch

from models import params as P
from models.networks import UNetConfig
from models.objectives import SegmentationConfig, build_task
from models.prior import PriorConfig, learn_prior
from models.synthesis import SynthesisConfig, labelled_image

CONFIG = PriorConfig(steps=120, images=64)
TASK = build_task(SegmentationConfig(kind="segmentation", dims=2, labels={1: "head", 2: "tail"}))


def taught(seed: int, steps: int) -> torch.nn.Module:
    torch.manual_seed(0)
    network = UNetConfig(name="UNet", channels=(8, 16)).build(2, 3)
    config = CONFIG.model_copy(update={"steps": steps})
    learn_prior(network, TASK.loss, (24, 24), 2, config, SynthesisConfig(), seed)
    return network


def test_a_prior_segments_synthetic_images_that_it_has_not_seen() -> None:
    rng = np.random.default_rng(99)
    drawn = [labelled_image((24, 24), 2, rng) for _ in range(20)]
    images = torch.from_numpy(np.stack([image[None] for image, _ in drawn]))
    truth = torch.from_numpy(np.stack([labels for _, labels in drawn]))
    before, after = (TASK.loss(taught(1, steps)(images), truth).mean() for steps in (1, 120))
    assert after < 0.75 * before


def test_a_prior_comes_from_the_seed_alone() -> None:
    a, b, c = (P.of(taught(seed, 3)) for seed in (1, 1, 2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)
