"""Training section of a study: steps, learning rate, lot, schedule."""

import math
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from models.config import Config
from models.settings.opponents import AttackConfig, MembershipConfig


class TrainingConfig(Config):
    """Local training in a round.

    Attributes:
        steps (steps): optimizer steps in a round.
        lr (no unit): learning rate; with privacy also `auto`: the largest rate whose noise the start
            bears, as measured on public or drawn cases (`privacy/signal.py`).
        momentum (share): momentum of SGD; 0.9 by default.
        lot (patients): patients in a step: `all`, or a number. Where patients' gradients are clipped,
            each patient enters a step of a number of patients with probability lot / declared training
            patients, independently of the others (Poisson sampling).
        microbatch (patients): number of patients whose gradients are in memory at a time; 8 by default.
        schedule: `constant` (default), or `cosine`: `lr` falls over the rounds along half a cosine.
        warm_up (share): share of the rounds in which the rate of a `cosine` rises first; 0 by default.
        optimizer: `sgd` (default), or in plain training `adamw`. Training is plain without privacy, and
            with `privacy.unit: hospital`.
        longest_gradient (no unit): largest L2 norm of a step's gradient in plain training; a longer one
            is cut to it. None by default.
        adversarial: an attack on the training images; each patient's gradient uses the attacked images
            and the true ones (Zizzo et al. 2020, FAT: Federated Adversarial Training,
            https://arxiv.org/abs/2012.01791). None by default.
        membership: an attacker that guesses which patients trained; training without privacy learns to
            hide it. None by default.
        fewest_steps (steps): smallest number of steps that a hospital with slow machines may take
            instead; by default all `steps`. The strategy `fed_nova` corrects for fewer steps, the others
            do not.
    """

    steps: Annotated[int, Field(ge=1, le=100_000)]
    lr: Annotated[float, Field(gt=0)] | Literal["auto"]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    lot: Literal["all"] | PositiveInt
    microbatch: PositiveInt = 8
    schedule: Literal["constant", "cosine"] = "constant"
    warm_up: Annotated[float, Field(ge=0, lt=1)] = 0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    longest_gradient: Annotated[float, Field(gt=0)] | None = None
    adversarial: AttackConfig | None = None
    membership: MembershipConfig | None = None
    fewest_steps: PositiveInt | None = None

    @model_validator(mode="after")
    def _no_fewer_steps_than_all(self) -> "TrainingConfig":
        if self.fewest_steps is not None and self.fewest_steps > self.steps:
            raise ValueError(
                f"fewest_steps: expected at most the {self.steps} steps, got {self.fewest_steps}"
            )
        return self

    def in_round(self, round: int, rounds: int) -> "TrainingConfig":
        """Return the configuration of one round, 1 to `rounds`, with the constant rate of that round.

        >>> whole = TrainingConfig(steps=1, lr=0.4, lot="all", schedule="cosine")
        >>> [round(whole.in_round(r, 4).lr, 3) for r in (1, 2, 3, 4)]
        [0.4, 0.341, 0.2, 0.059]
        """
        lr = self.step_size * self.share_in(round, rounds)
        return self.model_copy(update={"lr": lr, "schedule": "constant"})

    def share_in(self, round: int, rounds: int) -> float:
        """Return the rate of a round, 1 to `rounds`, as a share of the highest."""
        if self.schedule == "constant":
            return 1.0
        reached = (round - 0.5) / rounds
        if reached < self.warm_up:
            return reached / self.warm_up
        if self.warm_up:
            return (1 + math.cos(math.pi * (reached - self.warm_up) / (1 - self.warm_up))) / 2
        return (1 + math.cos(math.pi * (round - 1) / rounds)) / 2

    @property
    def step_size(self) -> float:
        """The learning rate as a number.

        Raises:
            ValueError: it is `auto`, and the run's rate has not been filled in.
        """
        if self.lr == "auto":
            raise ValueError("Expected a learning rate, got auto, which a run decides at its start.")
        return self.lr

    def at_rate(self, rate: float | None) -> "TrainingConfig":
        """Return the configuration with the run's rate in place of `auto`."""
        return self if self.lr != "auto" or rate is None else self.model_copy(update={"lr": rate})

    def length(self, round: int, rounds: int) -> float:
        """Return the distance that a constant gradient of 1 moves a parameter in one round.

        With momentum b, step k moves by 1 + b + ... + b^(k-1) (Wang et al. 2020, section 4.1, FedNova,
        https://arxiv.org/abs/2007.07481).

        >>> TrainingConfig(steps=2, lr=0.1, momentum=0.5, lot="all").length(1, 1)
        0.25
        """
        step = whole = 0.0
        for _ in range(self.steps):
            step = 1 + self.momentum * step
            whole += step
        return self.step_size * self.share_in(round, rounds) * whole

    @property
    def lot_size(self) -> int | None:
        """The expected number of patients in a step; None for all patients."""
        return None if self.lot == "all" else self.lot
