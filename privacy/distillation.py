"""Distillation before export: a student learns from the teacher on images that show no patient.

The student, and the teacher's answers, cost no privacy beyond the teacher. They are a function of the
teacher's weights (paid for by DP-SGD), the global model (published) and the transfer images (public).
This is post-processing (Dwork and Roth 2014, The Algorithmic Foundations of Differential Privacy,
proposition 2.1, https://doi.org/10.1561/0400000042), and it holds because

- the transfer images are synthetic, drawn from the study's seed, or from a set that the hospital
  itself declares public;
- each image is normalised by its own intensities, never by a cohort's;
- the study fixes the number of steps; no checkpoint is chosen by its results on patients.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.settings.distillation import DistillationConfig
from models.unfinished import Unfinished, restore, state_of

Exclusive = Callable[[Tensor], Tensor]
"""From a network's answers to logits `(N, C, ...)` of classes of which exactly one is true."""


def distil(
    teacher: nn.Module,
    student: nn.Module,
    images: Tensor,
    config: DistillationConfig,
    rng: torch.Generator,
    exclusive: Exclusive = lambda logits: logits,
    unfinished: Unfinished | None = None,
) -> None:
    """Train `student`, in place, to give `teacher`'s answers on `images` `(N, 1, *spatial)`."""
    targets = answers(teacher, images, config, exclusive)
    imitate(student, images, targets, config, rng, exclusive, unfinished)


@torch.no_grad()
def answers(
    teacher: nn.Module,
    images: Tensor,
    config: DistillationConfig,
    exclusive: Exclusive = lambda logits: logits,
) -> Tensor:
    """Return `teacher`'s answers on `images`, as logits `(N, C, ...)` of which one class is true."""
    return torch.cat([exclusive(teacher(part)) for part in torch.split(images, config.batch)])


def imitate(
    student: nn.Module,
    images: Tensor,
    targets: Tensor,
    config: DistillationConfig,
    rng: torch.Generator,
    exclusive: Exclusive = lambda logits: logits,
    unfinished: Unfinished | None = None,
) -> None:
    """Train `student`, in place, to answer `targets` on `images`.

    Args:
        images: `(N, 1, *spatial)`.
        targets: logits `(N, C, ...)` of classes of which exactly one is true.
        rng: draws the images of each batch; it is not secret.
        exclusive: turns the student's answers into such logits.
        unfinished: the stored state, from which an interrupted training continues.
    """
    optimizer = torch.optim.AdamW(student.parameters(), lr=config.lr)
    kept = unfinished.read() if unfinished else None
    taken = restore(student, optimizer, kept) if kept else 0
    for step in range(config.steps):
        batch = torch.randint(len(images), (config.batch,), generator=rng)
        if step < taken:
            continue
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (1 + math.cos(math.pi * step / config.steps)) / 2
        logits = exclusive(student(images[batch]))
        loss = imitation_loss(logits, targets[batch], config.temperature)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if unfinished:
            unfinished.keep(partial(state_of, student, optimizer, step + 1))


def imitation_loss(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return the scalar loss of a student's logits against a teacher's, both `(B, C, ...)`.

    KL at the study's temperature, weighted 3, plus a soft Dice of the probabilities over all classes
    but the first (Hinton et al. 2015, Distilling the Knowledge in a Neural Network, with the T^2 of its
    section 2, https://arxiv.org/abs/1503.02531).
    """
    soft = functional.log_softmax(logits / temperature, 1)
    target = functional.log_softmax(targets / temperature, 1)
    kl = functional.kl_div(soft, target, log_target=True, reduction="none").sum(1).mean()
    mine, theirs = (x.softmax(1)[:, 1:].unsqueeze(-1).flatten(2) for x in (logits, targets))
    overlap = 2 * (mine * theirs).sum(2) / (mine.square() + theirs.square()).sum(2).clamp(min=1e-6)
    return 3 * temperature**2 * kl + 1 - overlap.mean()
