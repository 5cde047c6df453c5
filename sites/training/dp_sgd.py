"""Private training: DP-SGD whose unit of privacy is the patient."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from opacus.accountants import RDPAccountant
from torch import Tensor, nn

from models.objectives import Task
from models.params import Params
from models.strategies import LocalLoss
from models.unfinished import Unfinished, restore, state_of
from privacy.mechanisms import Mechanism
from privacy.noise.source import NoiseSource
from privacy.optimizer import PatientOptimizer
from privacy.per_patient import clipped_sums
from sites.progress import Progress
from sites.training.config import TrainingConfig
from sites.training.examples import Examples
from sites.training.steps import local_loss_adder, with_attacked

Planted = Callable[[Mechanism], Sequence[Tensor]]
"""Function from a step's mechanism to sums of clipped gradients, one for each parameter in order."""


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
    planted: Planted | None = None,
) -> Mechanism:
    """Train `network` in place with DP-SGD whose unit is the patient.

    Source: Abadi et al. 2016, Deep Learning with Differential Privacy, algorithm 1,
    https://arxiv.org/abs/1607.00133.

    Args:
        unfinished: storage for the state of this training, from which it resumes. Only steps whose noise
            is added are stored; lost steps are repeated, so the result contains each step once.
        planted: sums of clipped gradients that an audit adds to those of the patients in each step.

    Returns:
        The mechanism after the last step, with its new norm if the clip norm is adaptive.

    Guarantees: anything read from the trained network and the returned mechanism, together, costs
    `mechanism.event`.

    Raises:
        RuntimeError: Opacus' accountant counted other steps than the mechanism charges.
    """
    training = _Training.started(network, task, examples, config, mechanism, noise, local_loss, planted)
    stored = unfinished.read() if unfinished else None
    first = training.resume(stored) if stored else 0
    for step in range(first, mechanism.steps):
        training.step(step)
        if unfinished:
            unfinished.keep(partial(training.state, step + 1), is_last=step + 1 == mechanism.steps)
        progress("train", step + 1, mechanism.steps)
    training.check_charged()
    return training.optimizer.mechanism


@dataclass(frozen=True)
class _Training:
    """A private training in progress. `charged` is the mechanism that was charged to the ledger."""

    network: nn.Module
    task: Task
    examples: Examples
    config: TrainingConfig
    charged: Mechanism
    noise: NoiseSource
    sgd: torch.optim.SGD
    optimizer: PatientOptimizer
    accountant: RDPAccountant
    planted: Planted | None

    @classmethod
    def started(
        cls,
        network: nn.Module,
        task: Task,
        examples: Examples,
        config: TrainingConfig,
        mechanism: Mechanism,
        noise: NoiseSource,
        local_loss: LocalLoss | None,
        planted: Planted | None,
    ) -> "_Training":
        sgd = torch.optim.SGD(network.parameters(), lr=config.step_size, momentum=config.momentum)
        optimizer, accountant = PatientOptimizer(sgd, mechanism, noise), RDPAccountant()
        count = accountant.get_optimizer_hook_fn(mechanism.sampling_rate)
        add_local_gradient = local_loss_adder(network, local_loss)

        def before_update(opt: PatientOptimizer) -> None:
            count(opt)
            add_local_gradient()

        optimizer.attach_step_hook(before_update)
        return cls(
            network, task, examples, config, mechanism, noise, sgd, optimizer, accountant, planted
        )

    def step(self, number: int) -> None:
        """Take one step: clip each patient's gradient, sum, add noise, update."""
        clipper = _Clipper(self.optimizer.mechanism)
        lot = poisson_lot(len(self.examples), self.charged.sampling_rate, self.noise)
        for start in range(0, len(lot), self.config.microbatch):
            self._accumulate(lot[start : start + self.config.microbatch], number, clipper)
        if self.planted:
            self.optimizer.accumulate(self.planted(self.optimizer.mechanism))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.optimizer.mechanism = self.optimizer.mechanism.adapted(clipper.within, self.noise)

    def _accumulate(self, patients: list[int], number: int, clipper: "_Clipper") -> None:
        batch = self.examples.batch(patients, number)
        if batch is None:
            return
        images, targets, patient_of = with_attacked(self.network, self.task, batch, self.config)
        of_scan = patient_of.to(images.device)
        sums = clipped_sums(self.network, self.task.loss, images, targets, of_scan, clipper)
        self.optimizer.accumulate([sums[name] for name, _ in self.network.named_parameters()])

    def state(self, step: int) -> dict[str, Tensor]:
        """Return the state from which a later process continues after `step` steps."""
        return {
            **state_of(self.network, self.sgd, step),
            "clip": torch.tensor(self.optimizer.mechanism.clip.norm, dtype=torch.float64),
            "noise": torch.tensor(self.noise.drawn),
            "accountant": torch.tensor(self.accountant.history, dtype=torch.float64),
        }

    def resume(self, stored: Params) -> int:
        """Restore a state; return the number of steps that it contains."""
        taken = restore(self.network, self.sgd, stored)
        if (norm := float(stored["clip"])) != self.charged.clip.norm:
            self.optimizer.mechanism = self.charged.starting_at(norm)
        self.noise.skip_to(int(stored["noise"]))
        history = stored["accountant"].tolist()
        self.accountant.history = [(sigma, rate, int(steps)) for sigma, rate, steps in history]
        return taken

    def check_charged(self) -> None:
        """Raise RuntimeError if Opacus counted other steps than the mechanism charges."""
        event = self.charged.event
        charged = [(event.noise_multiplier, event.sampling_rate, event.steps)]
        if self.accountant.history != charged:
            raise RuntimeError(
                f"Expected the steps {charged}, Opacus counted {self.accountant.history}."
            )


class _Clipper:
    """Clip factors of a step, and the number of its patients within the norm, over all microbatches."""

    def __init__(self, mechanism: Mechanism) -> None:
        self._mechanism = mechanism
        self.within = 0.0

    def __call__(self, norms: Tensor) -> Tensor:
        self.within += self._mechanism.count_within(norms)
        return self._mechanism.clip_factors(norms)


def poisson_lot(count: int, rate: float, noise: NoiseSource) -> list[int]:
    """Return the numbers below `count` that take part in a step, each with probability `rate`."""
    if rate == 1:
        return list(range(count))
    return [i for i, u in enumerate(noise.uniform(count)) if u <= rate]
