"""SGD or AdamW, for studies without privacy and for personal models that never leave a hospital."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from models.adversarial import MembershipAttacker, signals
from models.objectives import Task
from models.strategies import LocalLoss
from models.unfinished import Unfinished, restore, state_of
from sites.progress import Progress
from sites.training.config import TrainingConfig
from sites.training.examples import Examples
from sites.training.steps import local_loss_adder, with_attacked


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
        unfinished: storage for the state of this training, from which it resumes. It is not used with
            `config.membership`, because the attacker's state is not stored.
    """
    optimizer = _optimizer(network, config)
    add_local_gradient = local_loss_adder(network, local_loss)
    opponent = _Opponent(network, task, examples, config, rng) if config.membership else None
    storage = None if opponent else unfinished
    count = opponent.first_stranger if opponent else len(examples)
    lots = _shuffled_lots(count, min(config.lot_size or count, count), rng)
    stored = storage.read() if storage else None
    taken = restore(network, optimizer, stored) if stored else 0
    for step in range(config.steps):
        lot = next(lots)
        if step < taken:
            continue
        optimizer.zero_grad()
        _add_gradients(network, task, examples, config, lot, step, opponent)
        add_local_gradient()
        if config.longest_gradient:
            torch.nn.utils.clip_grad_norm_(network.parameters(), config.longest_gradient)
        optimizer.step()
        if storage:
            is_last = step + 1 == config.steps
            storage.keep(partial(state_of, network, optimizer, step + 1), is_last=is_last)
        progress("train", step + 1, config.steps)


def _optimizer(network: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    if config.optimizer == "adamw":
        return torch.optim.AdamW(network.parameters(), lr=config.step_size)
    return torch.optim.SGD(network.parameters(), lr=config.step_size, momentum=config.momentum)


def _add_gradients(
    network: nn.Module,
    task: Task,
    examples: Examples,
    config: TrainingConfig,
    lot: list[int],
    step: int,
    opponent: "_Opponent | None",
) -> None:
    """Add the gradient of a lot's mean loss over patients, one microbatch at a time."""
    for start in range(0, len(lot), config.microbatch):
        batch = examples.batch(lot[start : start + config.microbatch], step)
        if batch is None:
            continue
        images, targets, patient_of = with_attacked(network, task, batch, config)
        logits = network(images)
        losses = task.loss(logits, targets)
        if opponent:
            losses = losses + opponent.penalty(losses, logits, step)
        share = 1 / torch.bincount(patient_of)[patient_of]
        torch.autograd.backward((losses * share.to(losses)).sum() / len(lot))


class _Opponent:
    """A membership attacker during training, and its reference patients, who do not train."""

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        examples: Examples,
        config: TrainingConfig,
        rng: torch.Generator,
    ) -> None:
        if config.membership is None or len(examples) < 2:
            raise ValueError("Expected a membership config and at least two patients.")
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
        """Return the attacker's gain from each scan, `(N,)`, after it learned from this step."""
        seen = self._signals(losses, logits)
        strangers = [self.first_stranger + i for i in next(self._lots)]
        batch = self._examples.batch(strangers, step)
        if batch is None:
            return torch.zeros_like(losses)
        images, targets, _ = batch
        with torch.no_grad():
            their_logits = self._network(images)
            unseen = self._signals(self._task.loss(their_logits, targets), their_logits)
        self._attacker.learn(seen, unseen)
        return self._strength * self._attacker.gain(seen).to(losses)

    def _signals(self, losses: Tensor, logits: Tensor) -> Tensor:
        return signals(losses, self._task.exclusive(logits)).cpu()


def _shuffled_lots(count: int, lot: int, rng: torch.Generator) -> Iterator[list[int]]:
    """Yield lots without end; every patient is drawn once before any is drawn again."""
    waiting: list[int] = []
    while True:
        while len(waiting) < lot:
            waiting += torch.randperm(count, generator=rng).tolist()
        yield waiting[:lot]
        waiting = waiting[lot:]
