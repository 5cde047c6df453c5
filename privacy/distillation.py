"""Distillation before export: a student learns from the teacher on images that show no patient.

Why the student costs nothing beyond its teacher: it is a function of the teacher's weights (paid
for by DP-SGD), the global model (published) and the transfer images (public). That is
post-processing (Dwork and Roth 2014, proposition 2.1), and it holds because

- the transfer images are synthetic, drawn from the study's seed;
- each image is normalised by its own intensities, never by a cohort's;
- the number of steps is the study's; no checkpoint is chosen by looking at a patient.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from models import synthesis
from models.config import Config
from models.networks import NetworkConfig


class DistillationConfig(Config):
    """How the teacher is distilled. The student is the study's network.

    `teacher` is the network that learns at the hospital, by default the study's own; another one
    stays at the hospital from round to round and first learns from the global model.
    """

    transfer: Literal["synthetic"]
    steps: PositiveInt
    images: Annotated[int, Field(ge=8, le=10_000)] = 256
    batch: Annotated[int, Field(ge=1, le=256)] = 8
    temperature: Annotated[float, Field(gt=0)] = 2.0
    lr: Annotated[float, Field(gt=0)] = 3e-3
    teacher: NetworkConfig | None = None


@lru_cache(maxsize=2)
def transfer_images(
    config: DistillationConfig, shape: tuple[int, ...], num_labels: int, seed: int
) -> Tensor:
    """Return the study's transfer images, `(N, 1, *shape)`: the same at every hospital."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(synthesis.images(config.images, shape, num_labels, rng))


def distil(
    teacher: nn.Module,
    student: nn.Module,
    images: Tensor,
    config: DistillationConfig,
    rng: torch.Generator,
    exclusive: Callable[[Tensor], Tensor] = lambda logits: logits,
) -> None:
    """Train `student`, in place, to answer on `images` as `teacher` does.

    The loss is KL at the study's temperature, weighted 3, plus a soft Dice of the probabilities
    over all classes but the first (Hinton et al. 2015, with the T^2 of its section 2).

    Args:
        images: `(N, 1, *spatial)`.
        rng: decides which images make a batch; nothing secret.
        exclusive: makes of both networks' answers logits of classes of which one holds.
    """
    answers = exclusive(_answers(teacher, images, config.batch))
    optimizer = torch.optim.AdamW(student.parameters(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    for _ in range(config.steps):
        batch = torch.randint(len(images), (config.batch,), generator=rng)
        said = exclusive(student(images[batch]))
        loss = imitation_loss(said, answers[batch], config.temperature)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()


def imitation_loss(logits: Tensor, answers: Tensor, temperature: float) -> Tensor:
    """Return the scalar loss of a student's logits against a teacher's, both `(B, C, ...)`."""
    soft = functional.log_softmax(logits / temperature, 1)
    target = functional.log_softmax(answers / temperature, 1)
    kl = functional.kl_div(soft, target, log_target=True, reduction="none").sum(1).mean()
    mine, theirs = (x.softmax(1)[:, 1:].unsqueeze(-1).flatten(2) for x in (logits, answers))
    overlap = 2 * (mine * theirs).sum(2) / (mine.square() + theirs.square()).sum(2).clamp(min=1e-6)
    return 3 * temperature**2 * kl + 1 - overlap.mean()


@torch.no_grad()
def _answers(teacher: nn.Module, images: Tensor, batch: int) -> Tensor:
    return torch.cat([teacher(part) for part in torch.split(images, batch)])
