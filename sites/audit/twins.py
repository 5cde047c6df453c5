"""Twins of a hospital's training: models that it trains on drawn halves of its patients, to attack them.

A twin starts where the run started and takes the steps of all rounds at this hospital alone: private
twins with the study's own mechanism, plain ones without privacy, as a measure of what the mechanism
prevents. Twins never leave the hospital and nothing about them does; so they cost no privacy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.objectives import build_task
from models.params import Params
from privacy.audit.bounds import Scores
from privacy.mechanisms import Mechanism
from privacy.noise.source import NoiseSource
from sites.cohort import Patient
from sites.imaging.preprocessing import Pair
from sites.local_models import network_for
from sites.study import Study
from sites.training.config import TrainingConfig
from sites.training.dp_sgd import train_privately
from sites.training.examples import Examples, prepare
from sites.training.sgd import train_plainly

PLAIN = TrainingConfig(steps=1, lr=1e-3, lot=8, optimizer="adamw")
"""Training of a plain twin, but for its number of steps: as people train who need no privacy."""


LARGEST_LOSS = 1e3
"""What stands for a loss that is larger, or not finite."""


@dataclass(frozen=True)
class Twins:
    """What twins of a hospital's training are made of.

    Attributes:
        start: the parameters of the run's first model.
        rounds: the configuration of each round's training, one after the other.
        mechanism: of one round; None without privacy, and where hospitals share the noise.
        patients: those who train and those who never do; drawn halves of all of them train twins.
        plain_steps: steps of a plain twin.
    """

    study: Study
    start: Params
    rounds: Sequence[TrainingConfig]
    mechanism: Mechanism | None
    patients: Sequence[Patient]
    plain_steps: int
    device: torch.device

    def network(self, params: Params | None = None) -> nn.Module:
        """Return the study's network with these parameters, by default those of the start."""
        start = self.start if params is None else params
        return network_for(self.study.network, self.study, self.device, start)

    def losses(self, inside: NDArray[np.bool_], *, private: bool, rng: np.random.Generator) -> Scores:
        """Train a twin for each row of `inside` `(K, P)`; return each one's loss for each patient."""
        trained = prepare(self.patients, self.study.preprocessing, self.device, int(rng.integers(2**31)))
        fixed = self.seen()
        rows = []
        for row in inside:
            network = self.network()
            some = _those(trained, np.flatnonzero(row).tolist())
            if private:
                self._train_privately(network, some)
            else:
                self._train_plainly(network, some, int(rng.integers(2**31)))
            rows.append(self.losses_of(network, fixed))
        return np.stack(rows)

    def seen(self) -> Examples:
        """Return the patients' scans as a model sees them to predict: without random changes."""
        return prepare(self.patients, self.study.preprocessing.without_draws, self.device, seed=0)

    @torch.no_grad()
    def losses_of(self, network: nn.Module, seen: Examples) -> Scores:
        """Return a model's loss for each patient, `(P,)`: the mean over the patient's scans.

        At most `LARGEST_LOSS`, also where it is not finite; NaN for a patient whose scans can't be read.
        A patient's loss depends on that patient and the model alone.
        """
        task = build_task(self.study.task)
        found = np.full(len(seen), np.nan)
        for number in range(len(seen)):
            pair = seen.draw(number, 0)
            if pair is not None:
                loss = float(task.loss(network(pair[0]), pair[1]).mean())
                found[number] = min(loss, LARGEST_LOSS) if np.isfinite(loss) else LARGEST_LOSS
        return found

    def _train_privately(self, network: nn.Module, examples: Examples) -> None:
        if self.mechanism is None:
            raise ValueError("Expected a mechanism for a private twin.")
        task, mechanism = build_task(self.study.task), self.mechanism
        for config in self.rounds:
            mechanism = train_privately(
                network, task, examples, config, mechanism, NoiseSource.from_system(), None,
                lambda *_: None,
            )  # fmt: skip

    def _train_plainly(self, network: nn.Module, examples: Examples, seed: int) -> None:
        config = PLAIN.model_copy(
            update={"steps": self.plain_steps, "microbatch": self.study.training.microbatch}
        )
        rng = torch.Generator().manual_seed(seed)
        task = build_task(self.study.task)
        train_plainly(network, task, examples, config, rng, None, lambda *_: None)


def _those(examples: Examples, numbers: Sequence[int]) -> Examples:
    def draw(i: int, step: int) -> Pair | None:
        return examples.draw(numbers[i], step)

    return Examples(len(numbers), draw)
