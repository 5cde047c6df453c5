"""What an attacker recovers of a made-up patient from what leaves a hospital: gradients, inverted.

The attacker knows everything but the image: the network, the truth, and all other patients. Without the
mechanism the patient's gradient itself is seen; with it the clipped gradient and the noise of a whole
run, put together in one step.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.config import Config
from models.objectives import build_task
from privacy.accounting import PrivacyEvent, most_found
from privacy.audit.inversion import Likeness, gradient_of, inverted, likeness
from privacy.noise.source import NoiseSource
from sites.audit.made_up import Bench, made_up_patient
from sites.imaging.preprocessing import fixed_pair
from sites.local_models import CPU, network_for
from sites.study import Study

GUESS = 1e-3
"""The chance with which the patient is guessed without the run, for the mechanism's own bound."""


class Recovered(Config):
    """How like the true image the recovered one is: PSNR in dB and SSIM."""

    psnr_db: float
    ssim: float


class Reconstruction(Config):
    """What an inversion recovers of one made-up patient.

    Attributes:
        plain: from the patient's gradient itself.
        private: from what leaves under the mechanism; None without privacy.
        blind: from noise alone: what the attack draws where there is nothing to see.
        bound: the largest chance with which anybody can tell the patient apart from 1 / `GUESS` equally
            likely others, by what the run costs (Hayes, Mahloujifar and Balle 2023, Bounding Training
            Data Reconstruction in DP-SGD, https://arxiv.org/abs/2302.07225); None without privacy.
    """

    plain: Recovered
    private: Recovered | None
    blind: Recovered
    bound: float | None
    steps: int


@dataclass(frozen=True)
class Pictures:
    """The images behind the figures, `(C, *spatial)`: true, and recovered."""

    truth: Tensor
    plain: Tensor
    private: Tensor | None
    blind: Tensor


def reconstructed(study: Study, steps: int, seed: int) -> tuple[Reconstruction, Pictures]:
    """Return what gradient inversion recovers of a made-up patient of a study.

    Args:
        steps: steps of each inversion.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = network_for(study.network, study, CPU, None)
    task = build_task(study.task)
    patient = made_up_patient(study, "made up", rng)
    pair = fixed_pair(patient.scans[0].load(), study.preprocessing)
    truth, target = pair[0][None].float(), pair[1][None]
    gradient = gradient_of(network, task.loss, truth, target)

    def attack(seen: list[Tensor]) -> Tensor:
        start = torch.Generator().manual_seed(seed)
        return inverted(network, task.loss, seen, target, tuple(truth.shape), steps, start)

    noise = [torch.randn(part.shape) for part in gradient]
    plain, blind = attack(gradient), attack(noise)
    private, bound = None, None
    if study.privacy.mode != "none" and study.privacy.unit == "patient":
        mechanism = Bench.of(study).in_one_step()
        private = attack(_as_it_leaves(gradient, mechanism.clip.norm, mechanism.noise_std))
        event = PrivacyEvent(mechanism.noise_multiplier, 1.0, 1)
        bound = most_found([event], study.privacy.delta, GUESS)
    result = Reconstruction(
        plain=_recovered(likeness(truth, plain)),
        private=None if private is None else _recovered(likeness(truth, private)),
        blind=_recovered(likeness(truth, blind)),
        bound=bound,
        steps=steps,
    )
    return result, Pictures(
        truth=truth[0], plain=plain[0], private=None if private is None else private[0], blind=blind[0]
    )


def _recovered(found: Likeness) -> Recovered:
    return Recovered(psnr_db=found.psnr_db, ssim=found.ssim)


def _as_it_leaves(gradient: list[Tensor], norm: float, noise_std: float) -> list[Tensor]:
    """Return a gradient at the clip norm, with the noise of the mechanism."""
    length = torch.stack([part.square().sum() for part in gradient]).sum().sqrt()
    source = torch.Generator().manual_seed(int(NoiseSource.from_system().words(1)[0] >> np.uint64(1)))
    return [
        part * norm / length + noise_std * torch.randn(part.shape, generator=source) for part in gradient
    ]
