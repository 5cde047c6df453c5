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
from sites.progress import Progress
from sites.training.config import TrainingConfig
from sites.training.examples import Examples
from sites.training.lot_sums import LotSums, OwnSums
from sites.training.steps import local_loss_adder

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
    sums: LotSums | None = None,
) -> Mechanism:
    """Train `network` in place with DP-SGD whose unit is the patient.

    Source: Abadi et al. 2016, Deep Learning with Differential Privacy, algorithm 1,
    https://arxiv.org/abs/1607.00133.

    Args:
        unfinished: storage for the state of this training, from which it resumes. Only steps whose noise
            is added are stored; lost steps are repeated, so the result contains each step once.
        planted: sums of clipped gradients that an audit adds to those of the patients in each step.
        sums: what sums the patients' clipped gradients; this process alone by default.

    Returns:
        The mechanism after the last step, with its new norm if the clip norm is adaptive.

    Guarantees: anything read from the trained network and the returned mechanism, together, costs
    `mechanism.event`.

    Raises:
        RuntimeError: Opacus' accountant counted other steps than the mechanism charges.
    """
    sums = sums or OwnSums(task, examples, config)
    training = _Training.started(
        network, len(examples), sums, config, mechanism, noise, local_loss, planted
    )
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
    patients: int
    sums: LotSums
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
        patients: int,
        sums: LotSums,
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
        return cls(network, patients, sums, mechanism, noise, sgd, optimizer, accountant, planted)

    def step(self, number: int) -> None:
        """Take one step: clip each patient's gradient, sum, add noise, update."""
        mechanism = self.optimizer.mechanism
        lot = poisson_lot(self.patients, self.charged.sampling_rate, self.noise)
        found = self.sums(self.network, lot, number, mechanism)
        for sums in (found.sums, self.planted and self.planted(mechanism)):
            if sums:
                self.optimizer.accumulate(sums)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.optimizer.mechanism = mechanism.adapted(found.within, self.noise)

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


def poisson_lot(count: int, rate: float, noise: NoiseSource) -> list[int]:
    """Return the numbers below `count` that take part in a step, each with probability `rate`."""
    if rate == 1:
        return list(range(count))
    return [i for i, u in enumerate(noise.uniform(count)) if u <= rate]
