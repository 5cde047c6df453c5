"""Local training: DP-SGD over patients, or plain SGD where a study has no privacy."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Annotated, Literal

import torch
from opacus.accountants import RDPAccountant
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from models import params as P
from models.adversarial import (
    AttackConfig,
    MembershipAttacker,
    MembershipConfig,
    attacked,
    signals,
)
from models.config import Config
from models.objectives import Task
from models.strategies import LocalLoss
from models.unfinished import Unfinished, restore, state_of
from privacy.mechanisms import Mechanism
from privacy.noise import NoiseSource
from privacy.optimizer import PatientOptimizer
from privacy.per_patient import clipped_sums
from sites.cohort import Patient
from sites.imaging.preprocessing import Pair, PreprocessingConfig, drawn_pairs, fixed_pair

Progress = Callable[[str, int, int], None]
"""Told `(what, step, of)`, all of them constants of the study."""


def unheard(_what: str, _step: int, _of: int) -> None:
    """Tell nobody of any progress."""


class TrainingConfig(Config):
    """What a hospital does in a round.

    Attributes:
        steps: steps a round.
        lot: patients a step: `all`, or a number. Under privacy each patient enters such a step
            with probability lot / declared patients, all independently (Poisson sampling).
        microbatch: patients whose gradients are held in memory at a time.
        schedule: whether `lr` falls over the study's rounds, along half a cosine.
        adversarial: an attack whose images each patient's gradient sees beside the true ones (Zizzo et
            al. 2020).
        membership: an attacker against whom training without privacy hides who took part.
        fewest_steps: how few steps a hospital with slow machines may take instead. How it then counts
            is the strategy's: `fed_nova` makes up for them, the others do not.
    """

    steps: Annotated[int, Field(ge=1, le=100_000)]
    lr: Annotated[float, Field(gt=0)]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    lot: Literal["all"] | PositiveInt
    microbatch: PositiveInt = 8
    schedule: Literal["constant", "cosine"] = "constant"
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
        """Return what holds in one round, from 1, of so many: a constant rate.

        >>> whole = TrainingConfig(steps=1, lr=0.4, lot="all", schedule="cosine")
        >>> [round(whole.in_round(r, 4).lr, 3) for r in (1, 2, 3, 4)]
        [0.4, 0.341, 0.2, 0.059]
        """
        if self.schedule == "constant":
            return self
        lr = self.lr * (1 + math.cos(math.pi * (round - 1) / rounds)) / 2
        return self.model_copy(update={"lr": lr, "schedule": "constant"})

    def length(self, round: int, rounds: int) -> float:
        """Return how far a constant gradient would move a parameter in a round, per unit of it.

        With momentum b, step k moves by 1 + b + ... + b^(k-1) (Wang et al. 2020, section 4.1).

        >>> TrainingConfig(steps=2, lr=0.1, momentum=0.5, lot="all").length(1, 1)
        0.25
        """
        step = whole = 0.0
        for _ in range(self.steps):
            step = 1 + self.momentum * step
            whole += step
        return self.in_round(round, rounds).lr * whole

    @property
    def lot_size(self) -> int | None:
        """The expected number of patients in a step; None for all of them."""
        return None if self.lot == "all" else self.lot


@dataclass(frozen=True)
class Examples:
    """Patients ready for a network.

    `draw(i, step)` gives patient i's images `(S, 1, *shape)` and targets `(S, ...)` at a step, where S
    is the number of what his scans give.
    """

    count: int
    draw: Callable[[int, int], Pair]

    def batch(self, patients: Sequence[int], step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return these patients' images and targets, and each image's position in `patients`."""
        drawn = [self.draw(i, step) for i in patients]
        images = torch.tensor([len(images) for images, _ in drawn])
        return (
            torch.cat([images for images, _ in drawn]),
            torch.cat([targets for _, targets in drawn]),
            torch.arange(len(patients)).repeat_interleave(images),
        )

    def __len__(self) -> int:
        return self.count


def prepare(
    patients: Sequence[Patient], config: PreprocessingConfig, device: torch.device, seed: int
) -> Examples:
    """Return the patients' scans as the network sees them at each step.

    Where nothing is random they are held in memory, at the training shape; else a step loads the
    scans that it needs.

    Args:
        seed: of what is drawn at random, which for each patient depends on himself and the step alone.
    """
    if config.is_random:
        return Examples(len(patients), lambda i, step: _drawn(patients[i], config, seed, step, device))
    fixed = [
        _stacked([fixed_pair(scan.load(), config) for scan in patient.scans], device)
        for patient in patients
    ]
    return Examples(len(fixed), lambda i, step: fixed[i])


def _drawn(
    patient: Patient, config: PreprocessingConfig, seed: int, step: int, device: torch.device
) -> Pair:
    pairs = []
    for number, scan in enumerate(patient.scans):
        text = f"{seed} {patient.pseudonym} {step} {number}"
        own = int.from_bytes(sha256(text.encode()).digest()[:4])
        pairs += drawn_pairs(scan.load(), config, own)
    return _stacked(pairs, device)


def _stacked(pairs: Sequence[Pair], device: torch.device) -> Pair:
    images, targets = zip(*pairs, strict=True)
    return torch.stack(images).to(device), torch.stack(targets).to(device)


def train_privately(
    network: nn.Module,
    task: Task,
    examples: Examples,
    config: TrainingConfig,
    mechanism: Mechanism,
    noise: NoiseSource,
    local_loss: LocalLoss | None,
    progress: Progress,
    unfinished: Unfinished | None = None,
) -> Mechanism:
    """Train `network` in place with DP-SGD whose unit is the patient (Abadi et al. 2016).

    Args:
        unfinished: where it is kept how far this has come, and where it goes on from. Only what has its
            noise already is kept, and steps that were lost are taken again: what is left in the end
            has had each step once.

    Returns:
        The mechanism as the last step left it: an adaptive clip norm has moved.

    Guarantees: whatever is read off the network and the mechanism afterwards has cost
    `mechanism.event`.

    Raises:
        RuntimeError: Opacus' accountant saw other steps than the mechanism charges for.
    """
    sgd = torch.optim.SGD(network.parameters(), lr=config.lr, momentum=config.momentum)
    optimizer = PatientOptimizer(sgd, mechanism, noise)
    accountant = RDPAccountant()
    count = accountant.get_optimizer_hook_fn(mechanism.sampling_rate)
    drift = _drift(network, local_loss)

    def before_update(opt: PatientOptimizer) -> None:
        count(opt)
        drift()

    def state(step: int) -> dict[str, Tensor]:
        return {
            **state_of(network, sgd, step),
            "clip": torch.tensor(optimizer.mechanism.clip.norm, dtype=torch.float64),
            "noise": torch.tensor(noise.drawn),
            "accountant": torch.tensor(accountant.history, dtype=torch.float64),
        }

    optimizer.attach_step_hook(before_update)
    taken, kept = 0, unfinished.read() if unfinished else None
    if kept:
        taken = restore(network, sgd, kept)
        if (norm := float(kept["clip"])) != mechanism.clip.norm:
            optimizer.mechanism = mechanism.starting_at(norm)
        noise.skip_to(int(kept["noise"]))
        accountant.history = [(sigma, rate, int(n)) for sigma, rate, n in kept["accountant"].tolist()]
    for step in range(taken, mechanism.steps):
        lot = _poisson_lot(len(examples), mechanism.sampling_rate, noise)
        clipper = _Clipper(optimizer.mechanism)
        for start in range(0, len(lot), config.microbatch):
            some = lot[start : start + config.microbatch]
            images, targets, patient_of = _seen(network, task, examples.batch(some, step), config)
            of_scan = patient_of.to(images.device)
            sums = clipped_sums(network, task.loss, images, targets, of_scan, clipper)
            optimizer.accumulate([sums[name] for name, _ in network.named_parameters()])
        optimizer.step()
        optimizer.zero_grad()
        optimizer.mechanism = optimizer.mechanism.adapted(clipper.within, noise)
        if unfinished:
            unfinished.keep(partial(state, step + 1), is_last=step + 1 == mechanism.steps)
        progress("train", step + 1, mechanism.steps)
    event = mechanism.event
    charged = [(event.noise_multiplier, event.sampling_rate, event.steps)]
    if accountant.history != charged:
        raise RuntimeError(f"Expected the steps {charged}, Opacus counted {accountant.history}.")
    return optimizer.mechanism


class _Clipper:
    """A step's clip factors, and its count of patients within the norm, over all microbatches."""

    def __init__(self, mechanism: Mechanism) -> None:
        self._mechanism = mechanism
        self.within = 0.0

    def __call__(self, norms: Tensor) -> Tensor:
        self.within += self._mechanism.count_within(norms)
        return self._mechanism.clip_factors(norms)


def train_plainly(
    network: nn.Module,
    task: Task,
    examples: Examples,
    config: TrainingConfig,
    rng: torch.Generator,
    local_loss: LocalLoss | None,
    progress: Progress,
    unfinished: Unfinished | None = None,
) -> None:
    """Train `network` in place on the mean loss over patients, without privacy.

    Args:
        unfinished: where it is kept how far this has come, and where it goes on from; not with
            `config.membership`, whose attacker begins anew.
    """
    optimizer = torch.optim.SGD(network.parameters(), lr=config.lr, momentum=config.momentum)
    drift = _drift(network, local_loss)
    opponent = _Opponent(network, task, examples, config, rng) if config.membership else None
    count = opponent.first_stranger if opponent else len(examples)
    lots = _shuffled_lots(count, min(config.lot_size or count, count), rng)
    kept = unfinished.read() if unfinished and not opponent else None
    taken = restore(network, optimizer, kept) if kept else 0
    for step in range(config.steps):
        lot = next(lots)
        if step < taken:
            continue
        optimizer.zero_grad()
        for start in range(0, len(lot), config.microbatch):
            some = lot[start : start + config.microbatch]
            images, targets, patient_of = _seen(network, task, examples.batch(some, step), config)
            logits = network(images)
            losses = task.loss(logits, targets)
            if opponent:
                losses = losses + opponent.penalty(losses, logits, step)
            share = 1 / torch.bincount(patient_of)[patient_of]
            torch.autograd.backward((losses * share.to(losses)).sum() / len(lot))
        drift()
        optimizer.step()
        if unfinished and not opponent:
            is_last = step + 1 == config.steps
            unfinished.keep(partial(state_of, network, optimizer, step + 1), is_last=is_last)
        progress("train", step + 1, config.steps)


class _Opponent:
    """A membership attacker beside training, and the patients who do not train for his sake."""

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        examples: Examples,
        config: TrainingConfig,
        rng: torch.Generator,
    ) -> None:
        if config.membership is None or len(examples) < 2:
            raise ValueError("Expected membership to be set, and two patients or more.")
        self._network, self._task, self._examples = network, task, examples
        self._strength = config.membership.strength
        apart = round(config.membership.reference * len(examples))
        self.first_stranger = len(examples) - min(max(1, apart), len(examples) - 1)
        self._lots = _shuffled_lots(
            len(examples) - self.first_stranger,
            min(config.microbatch, len(examples) - self.first_stranger),
            rng,
        )
        self._attacker = MembershipAttacker(rng)

    def penalty(self, losses: Tensor, logits: Tensor, step: int) -> Tensor:
        """Return what the attacker gains from each scan, `(N,)`, after he has learned from this step."""
        seen = self._signals(losses, logits)
        strangers = [self.first_stranger + i for i in next(self._lots)]
        images, targets, _ = self._examples.batch(strangers, step)
        with torch.no_grad():
            said = self._network(images)
            unseen = self._signals(self._task.loss(said, targets), said)
        self._attacker.learn(seen, unseen)
        return self._strength * self._attacker.gain(seen).to(losses)

    def _signals(self, losses: Tensor, logits: Tensor) -> Tensor:
        return signals(losses, self._task.exclusive(logits)).cpu()


Batch = tuple[Tensor, Tensor, Tensor]


def _seen(network: nn.Module, task: Task, batch: Batch, config: TrainingConfig) -> Batch:
    """Return a batch with, where the study says so, each image's attacked version beside it."""
    if config.adversarial is None:
        return batch
    images, targets, patient_of = batch
    changed = attacked(network, task.loss, images, targets, config.adversarial)
    return torch.cat([images, changed]), torch.cat([targets, targets]), torch.cat([patient_of] * 2)


def _drift(network: nn.Module, local_loss: LocalLoss | None) -> Callable[[], None]:
    """Return what adds the gradient of a strategy's data-free loss to the gradients."""
    if local_loss is None:
        return lambda: None
    loss, start = local_loss, P.of(network)

    def add_gradient() -> None:
        own = dict(network.named_parameters())
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss(own, start), list(own.values()))
        for p, g in zip(own.values(), gradients, strict=True):
            p.grad = g if p.grad is None else p.grad + g

    return add_gradient


def _poisson_lot(count: int, rate: float, noise: NoiseSource) -> list[int]:
    if rate == 1:
        return list(range(count))
    return [i for i, u in enumerate(noise.uniform(count)) if u <= rate]


def _shuffled_lots(count: int, lot: int, rng: torch.Generator) -> Iterator[list[int]]:
    """Yield lots that go through all patients before any comes again."""
    waiting: list[int] = []
    while True:
        while len(waiting) < lot:
            waiting += torch.randperm(count, generator=rng).tolist()
        yield waiting[:lot]
        waiting = waiting[lot:]
