"""Small networks, patients and progresses that the tests of training share."""

import numpy as np
import torch

from models.objectives import build_task
from models.settings.images import PreprocessingConfig
from models.settings.tasks import SegmentationConfig
from sites.cohort import Patient
from sites.imaging.intake import Scan
from sites.imaging.preprocessing import prepare as preprocess
from sites.imaging.profile import profile_of
from sites.imaging.reading import Reading
from sites.training.examples import Examples

TASK = build_task(SegmentationConfig(kind="segmentation", dims=2, labels={1: "a"}))


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.PReLU(), torch.nn.Conv2d(4, 2, 1)
    )


def examples(patients: int) -> Examples:
    rng = torch.Generator().manual_seed(1)
    images, targets = [], []
    for i in range(patients):
        target = torch.randint(0, 2, (1 + i % 2, 8, 8), generator=rng)
        images.append(
            target[:, None] * 2.0 - 1 + 0.1 * torch.randn(target[:, None].shape, generator=rng)
        )
        targets.append(target)
    return Examples(patients, lambda i, step: (images[i], targets[i]))


def everybody(data: Examples) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return data.batch(range(len(data)), 0)


def loss_of(net: torch.nn.Module) -> float:
    images, targets, _ = everybody(examples(6))
    with torch.no_grad():
        return float(TASK.loss(net(images), targets).mean())


class Killed(Exception):
    pass


def killed_at(last: int):
    """Return a progress that kills the training after a step."""

    def progress(what: str, step: int, of: int) -> None:
        if step == last:
            raise Killed

    return progress


RANDOM = PreprocessingConfig(
    shape=(8, 8), fit={"kind": "patches"}, augmentation={"copies": 2, "flip": (0, 1), "noise": 0.1}
)


def patient(name: str, scans: int = 1) -> Patient:
    rng = np.random.default_rng(len(name))
    made = [
        Scan(rng.normal(size=(1, 20, 20)).astype(np.float32), rng.integers(0, 2, (20, 20)), (1.0, 1.0))
        for _ in range(scans)
    ]
    readings = (Reading(profile_of(s), (), lambda s=s: preprocess(s, RANDOM)) for s in made)
    return Patient(name, tuple(readings))
