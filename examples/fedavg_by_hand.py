"""DP-FedAvg by hand: the algorithm's box as plain loops, on made-up scans. Slow, and meant to be read.

Rounds are algorithm 1 of McMahan et al. 2017 (FedAvg, https://arxiv.org/abs/1602.05629). A hospital's
steps are algorithm 1 of Abadi et al. 2016 (DP-SGD, https://arxiv.org/abs/1607.00133), with patients in
place of examples. McMahan et al. 2018 (DP-FedAvg, https://arxiv.org/abs/1710.06963) also protect
persons, but clip each one's change of the model. The product is faster and gives the same model, as a
test checks: `clipped` mirrors `privacy.mechanisms` and `privacy.per_patient`, `local_change` mirrors
`privacy.optimizer`, `sites.training`; `federated_round` mirrors `models.strategies` and `flows.rounds`.
"""

import copy
from typing import NamedTuple

import numpy as np
import torch
from monai.losses.dice import DiceCELoss
from monai.networks.nets import UNet
from torch import Tensor, nn

from privacy.accounting import Budget, PrivacyEvent, epsilon, noise_for
from privacy.noise.discrete_gaussian import grid_noise
from privacy.noise.source import NoiseSource

Patient = list[tuple[Tensor, Tensor]]
"""One person's scans: image `(1, D, H, W)` and each voxel's label `(1, D, H, W)`, 0 is background."""
scan_loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)


class Plan(NamedTuple):
    """The study's public numbers; `lot` is the expected patients in a step, None for all of them."""

    budget: Budget
    rounds: int
    steps: int
    lr: float
    momentum: float
    clip_norm: float
    clip: str = "flat"
    lot: int | None = None


class Hospital(NamedTuple):
    """Patients, their declared (public) number, and the hospital's own source of noise."""

    patients: list[Patient]
    declared: int
    noise: NoiseSource


def clipped(gradient: list[Tensor], plan: Plan) -> list[Tensor]:
    """Return one patient's gradient with an L2 norm of at most C over all parameters together.

    `flat` is g min(1, C / |g|), Abadi's; `normalised` is C g / (|g| + 0.01) (Bu et al. 2022, AUTO-S).
    """
    norm = sum(float(g.double().square().sum()) for g in gradient) ** 0.5
    factor = plan.clip_norm / (max(norm, plan.clip_norm) if plan.clip == "flat" else norm + 0.01)
    return [g * factor for g in gradient]


def local_change(network: nn.Module, hospital: Hospital, plan: Plan) -> list[Tensor]:
    """Return how one hospital's private training changes the weights, one tensor for each parameter."""
    local = copy.deepcopy(network)
    weights = list(local.parameters())
    velocity = [torch.zeros_like(w) for w in weights]
    rate = 1.0 if plan.lot is None else plan.lot / hospital.declared
    sigma = noise_for(plan.budget, sampling_rate=rate, steps=plan.rounds * plan.steps)
    grid = np.exp2(np.floor(np.log2(2.0**-19 * plan.clip_norm / sum(map(torch.numel, weights)) ** 0.5)))
    for _ in range(plan.steps):
        lot = [p for p in hospital.patients if rate == 1 or hospital.noise.uniform(1)[0] <= rate]
        total = [torch.zeros_like(w) for w in weights]
        for patient in lot:
            losses = [scan_loss(local(image[None]), labels[None]) for image, labels in patient]
            gradient = torch.autograd.grad(torch.stack(losses).mean(), weights)
            total = [t + g for t, g in zip(total, clipped(list(gradient), plan), strict=True)]
        for w, v, t in zip(weights, velocity, total, strict=True):
            noise = torch.tensor(grid_noise(hospital.noise, w.numel(), sigma * plan.clip_norm, grid))
            v.copy_(plan.momentum * v + (t.double() + noise.view_as(t)) / (rate * hospital.declared))
            w.data.sub_(plan.lr * v)
    return [w.data - before.data for w, before in zip(weights, network.parameters(), strict=True)]


def federated_round(network: nn.Module, hospitals: list[Hospital], plan: Plan) -> nn.Module:
    """Return the next global network: w + sum_k (n_k / n) change_k, by declared patients n_k."""
    moved, n = copy.deepcopy(network), sum(hospital.declared for hospital in hospitals)
    for hospital in hospitals:
        for w, d in zip(moved.parameters(), local_change(network, hospital, plan), strict=True):
            w.data.add_(hospital.declared / n * d)
    return moved


def phantom(rng: np.random.Generator, contrast: float) -> tuple[Tensor, Tensor]:
    """Return a made-up scan and its labels, both `(1, 12, 12, 12)`: a bright ellipsoid in noise."""
    offsets = np.indices((12, 12, 12)) - rng.uniform(4, 7, (3, 1, 1, 1))
    ball = np.square(offsets / rng.uniform(2, 4, (3, 1, 1, 1))).sum(0, keepdims=True) < 1
    image = contrast * ball + rng.normal(0, 1, ball.shape)
    return torch.from_numpy(image).float(), torch.from_numpy(ball).long()


def main() -> None:
    """Train the model of three made-up hospitals; print its Dice on other scans, and epsilon."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    plan = Plan(Budget(epsilon=8, delta=1e-3), rounds=4, steps=4, lr=0.3, momentum=0.9, clip_norm=1.0)
    sigma = noise_for(plan.budget, sampling_rate=1.0, steps=plan.rounds * plan.steps)
    hospitals = []
    for n, contrast in ((30, 3.0), (40, 4.0), (50, 5.0)):  # every third patient has two scans
        patients = [[phantom(rng, contrast) for _ in range(2 if i % 3 == 0 else 1)] for i in range(n)]
        hospitals.append(Hospital(patients, n, NoiseSource.for_test(n, "by hand")))
    others = [phantom(rng, contrast=4.0) for _ in range(30)]
    network: nn.Module = UNet(3, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,))
    for round in range(plan.rounds + 1):
        network = federated_round(network, hospitals, plan) if round else network
        found = [(network(image[None])[0].argmax(0), labels[0]) for image, labels in others]
        dice = np.mean([2 * float((f * t).sum()) / float((f + t).sum()) for f, t in found])
        spent = epsilon([PrivacyEvent(sigma, 1.0, plan.steps)] * round, plan.budget.delta)
        print(f"round {round}   Dice {dice:.3f}   epsilon {spent:4.2f}")


if __name__ == "__main__":
    main()
