"""Opponents of a network in training, as a study names them (`models.adversarial`)."""

from typing import Annotated, Literal

from pydantic import Field

from models.config import Config


class AttackConfig(Config):
    """The attack on images: each voxel of the network's input changes by at most `radius`.

    `fgsm` is one step of size `radius` (Goodfellow et al. 2015, Explaining and Harnessing Adversarial
    Examples, section 4, https://arxiv.org/abs/1412.6572). `pgd` starts at the image and takes `steps`
    steps of 2.5 radius / steps, each projected back into the radius (Madry et al. 2018, Towards Deep
    Learning Models Resistant to Adversarial Attacks, eq. 2.1, https://arxiv.org/abs/1706.06083).

    Attributes:
        radius (prepared intensities): largest change of a voxel, in units of the prepared image.
        steps (steps): gradient steps of the attack; 1 for `fgsm`.
    """

    kind: Literal["fgsm", "pgd"]
    radius: Annotated[float, Field(gt=0, le=10)]
    steps: Annotated[int, Field(ge=1, le=100)] = 7


class MembershipConfig(Config):
    """An attacker who learns to guess the training patients, while the network learns to prevent it.

    Attributes:
        strength (no unit): the weight of the attacker's gain in the network's loss (Nasr et al. 2018,
            Machine Learning with Membership Privacy using Adversarial Regularization, equation 4,
            https://arxiv.org/abs/1807.05852).
        reference (share): the share of the training patients who are kept out of training; the attacker
            learns from them how the network answers on strangers.
    """

    strength: Annotated[float, Field(gt=0, le=100)]
    reference: Annotated[float, Field(gt=0, lt=1)] = 0.25
