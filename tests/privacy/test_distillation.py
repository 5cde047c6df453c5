from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import UNet

from models import params as P
from models.settings.distillation import DistillationConfig
from models.synthesis import labelled_image
from models.unfinished import Unfinished
from privacy.distillation import distil, imitation_loss

CONFIG = DistillationConfig(transfer="synthetic", steps=120, images=32)


def some_images() -> torch.Tensor:
    rng = np.random.default_rng(0)
    drawn = [labelled_image((16, 16), 2, rng)[0] for _ in range(CONFIG.images)]
    return torch.from_numpy(np.stack(drawn))


def network(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return UNet(2, 1, 3, channels=(4, 8), strides=(2,))


def test_the_student_learns_to_answer_as_its_teacher() -> None:
    images = some_images()
    teacher, student = network(1), network(2)

    def distance() -> float:
        with torch.no_grad():
            return imitation_loss(student(images), teacher(images), 2.0).item()

    before = distance()
    distil(teacher, student, images, CONFIG, torch.Generator().manual_seed(0))
    assert distance() < 0.25 * before


def test_the_teacher_is_left_as_it_was() -> None:
    teacher = network(1)
    before = [p.detach().clone() for p in teacher.parameters()]
    images = some_images()
    distil(teacher, network(2), images, CONFIG, torch.Generator().manual_seed(0))
    assert all(torch.equal(p, b) for p, b in zip(teacher.parameters(), before, strict=True))


def test_equal_answers_cost_nothing() -> None:
    confident = 50 * torch.nn.functional.one_hot(torch.randint(0, 3, (2, 5, 5)), 3).movedim(-1, 1)
    assert imitation_loss(confident.float(), confident.float(), 2.0).item() == pytest.approx(0, abs=1e-4)


class Killed(Exception):
    pass


class Fragile(torch.nn.Module):
    """A network whose process dies at its `last` call."""

    def __init__(self, inner: torch.nn.Module, last: int) -> None:
        super().__init__()
        self.inner, self.left = inner, last

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            raise Killed
        return self.inner(images)


def test_a_distillation_that_was_killed_goes_on_bit_for_bit_where_it_stood(tmp_path: Path) -> None:
    teacher, images = network(0), torch.randn(12, 1, 8, 8)
    whole, unfinished = Fragile(network(1), 10**6), Unfinished(tmp_path / "student", 0)
    distil(teacher, whole, images, CONFIG, torch.Generator().manual_seed(0))
    with pytest.raises(Killed):
        distil(teacher, Fragile(network(1), 7), images, CONFIG, torch.Generator().manual_seed(0),
               unfinished=unfinished)  # fmt: skip
    resumed = Fragile(network(1), CONFIG.steps - 7)
    distil(teacher, resumed, images, CONFIG, torch.Generator().manual_seed(0), unfinished=unfinished)
    for name, p in P.of(whole).items():
        assert torch.equal(P.of(resumed)[name], p)
