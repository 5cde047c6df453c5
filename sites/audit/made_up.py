"""Made-up patients on whom a study's training is audited, and its reduced setting."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from models import params as P
from models.errors import FixYourInput
from models.objectives import Task, build_task
from privacy.mechanisms import AdaptiveClip, Mechanism, mechanism_for
from privacy.noise.source import NoiseSource
from privacy.shared_noise import SharedGaussian
from sites.audit.one_run import OneRun, one_run
from sites.cohort import Patient
from sites.datasets.made_up import made_up_scan
from sites.imaging.intake import Scan
from sites.imaging.preprocessing import Prepared
from sites.imaging.profile import profile_of
from sites.imaging.reading import Reading
from sites.local_models import CPU, network_for
from sites.study import Study
from sites.training.config import TrainingConfig
from sites.training.dp_sgd import train_privately
from sites.training.examples import prepare
from sites.training.gradient_sum import gradient_sum
from sites.training.lot_sums import OwnSums

LARGEST_LOT = 3
"""Patients in a step of a study that samples them, in the reduced setting."""
DECLARED = 12
"""Declared training patients of the made-up hospital; half of them exist."""
MICROBATCH = 2
"""Patients whose gradients are in memory at a time: a step of the made-up patients takes several."""
LARGEST_DELTA = 0.01
"""The largest delta of the reduced setting, so that it is below one over `DECLARED`."""
HONEST = 2
"""Hospitals whose shares of the noise are counted on, where a study shares it."""
FAR = 100.0
"""Learning rate, times the clip norm, of the one step by which parameters show a sum: so large that
rounding the parameters hides nothing of it."""


class NothingToAudit(FixYourInput):
    """The study has no mechanism whose unit is the patient."""


def made_up_patient(
    study: Study, name: str, rng: np.random.Generator, scans: int = 1, scale: float = 1.0
) -> Patient:
    """Return a patient with different scans, whose intensities are multiplied by `scale`."""
    return Patient(name, tuple(_reading(study, rng, scale) for _ in range(scans)))


def _reading(study: Study, rng: np.random.Generator, scale: float) -> Reading:
    image, target = made_up_scan(study, rng)
    spacing = (1.0,) * len(study.preprocessing.shape)
    scan = Scan(image * np.float32(scale), target, spacing)
    truth = torch.from_numpy(np.asarray(target))
    affine = np.eye(len(spacing) + 1)
    prepared = Prepared(torch.from_numpy(scan.image), truth, affine, truth, spacing)
    return Reading(profile_of(scan), (), lambda: prepared)


def absent(patient: Patient) -> Patient:
    """Return a patient who contributes nothing, as one whose scans can't be read."""
    return Patient(patient.pseudonym, ())


@dataclass(frozen=True)
class Bench:
    """A study's training, of which the sum of one step can be seen.

    The setting is reduced: of a step that samples patients the lot is at most `LARGEST_LOT`, half of the
    `DECLARED` patients exist, microbatches are small, and delta is at most `LARGEST_DELTA`. Network,
    loss, clipping, noise and the functions that train are the study's and the product's own.

    Attributes:
        study: the reduced study.
        mechanism: of one round of the study, for `DECLARED` patients.
        original: the study as it stands.
    """

    study: Study
    mechanism: Mechanism
    original: Study

    @classmethod
    def of(cls, study: Study) -> "Bench":
        """Return the bench of a study.

        Raises:
            NothingToAudit: the study has no privacy, or its unit is the hospital.
        """
        privacy = study.privacy
        if privacy.mode == "none":
            raise NothingToAudit(
                f"Expected a study with privacy, got {study.name}, which promises none."
            )
        if privacy.unit != "patient":
            raise NothingToAudit(
                f"Expected the patient as the unit of privacy, got {study.name} with the "
                f"{privacy.unit}: its one clipped change a round is tested in tests/privacy."
            )
        lot = study.training.lot_size
        training = study.training.model_copy(
            update={"lot": "all" if lot is None else min(lot, LARGEST_LOT), "momentum": 0.0,
                    "schedule": "constant", "microbatch": MICROBATCH}
        )  # fmt: skip
        smaller = privacy.model_copy(update={"delta": min(privacy.delta, LARGEST_DELTA)})
        reduced = study.model_copy(update={"training": training, "privacy": smaller})
        return cls(reduced, _mechanism(reduced, reduced.rounds, training.steps), study)

    def in_one_step(self) -> Mechanism:
        """Return the mechanism that spends the study's whole budget in one step."""
        return _mechanism(self.study, 1, 1)

    @property
    def task(self) -> Task:
        """The functions of the study's task."""
        return build_task(self.study.task)

    @property
    def patients(self) -> int:
        """The number of made-up patients."""
        return DECLARED // 2

    @property
    def divisor(self) -> float:
        """What divides a noisy sum, by the study's lot and the declared patients alone."""
        lot = self.study.training.lot_size
        return float(DECLARED if lot is None else lot)

    def network(self) -> nn.Module:
        """Return the study's network as it starts."""
        return network_for(self.study.network, self.study, CPU, None)

    def config(self, mechanism: Mechanism) -> TrainingConfig:
        """Return the configuration of a training by which parameters show sums."""
        rate = FAR / mechanism.clip.norm
        return self.study.training.model_copy(update={"steps": mechanism.steps, "lr": rate})

    def step_sum(self, patients: Sequence[Patient], mechanism: Mechanism, source: NoiseSource) -> Tensor:
        """Return the noisy sum of one step over patients, `(d,)` in float64.

        It is what the trained parameters show: where they began less where they ended, over the rate,
        times the divisor that the study states.
        """
        one = replace(mechanism, steps=1)
        if self.study.shares_noise:
            return self._sum_of_all(patients, one, source)
        network = self.network()
        before = flat(network)
        examples = prepare(patients, self.study.preprocessing, CPU, seed=0)
        config = self.config(one)
        train_privately(network, self.task, examples, config, one, source, None, lambda *_: None)
        divisor = DECLARED if one.sampling_rate == 1 else self.divisor
        return (before - flat(network)) / config.step_size * divisor

    def _sum_of_all(
        self, patients: Sequence[Patient], mechanism: Mechanism, source: NoiseSource
    ) -> Tensor:
        """Return the sum over hospitals, each with its share of the noise; one has all patients."""
        examples = prepare(patients, self.study.preprocessing, CPU, seed=0)
        sums = OwnSums(self.task, examples, self.config(mechanism))
        clipped = gradient_sum(self.network(), sums, len(examples), mechanism, lambda *_: None)
        shared = SharedGaussian(mechanism, len(clipped), HONEST)
        units = [shared.noisy(each, source) for each in (clipped, np.zeros_like(clipped))]
        return torch.from_numpy((units[0] + units[1]) * shared.grid)

    def one_run(self, rate: float | None, canaries: int, rng: np.random.Generator) -> OneRun:
        """Train all rounds on made-up patients with canaries beside them, and return what they prove.

        Args:
            rate: the run's rate, where the study leaves it to the run.
        """
        study = self.original
        training = study.training.model_copy(update={"lot": self.study.training.lot})
        training = training.at_rate(rate)
        rounds = [training.in_round(k, study.rounds) for k in range(1, study.rounds + 1)]
        patients = [made_up_patient(study, f"patient-{k}", rng) for k in range(self.patients)]
        examples = prepare(patients, study.preprocessing, CPU, seed=0)
        if study.privacy.mode == "none":
            raise NothingToAudit("Expected a study with privacy.")
        return one_run(
            self.network(), self.task, examples, rounds, self.mechanism, study.privacy.delta,
            canaries, rng,
        )  # fmt: skip

    def trained_alone(self, mechanism: Mechanism) -> Mechanism:
        """Train without patients; return the mechanism that the training leaves."""
        examples = prepare([], self.study.preprocessing, CPU, seed=0)
        source, config = NoiseSource.from_system(), self.config(mechanism)
        return train_privately(
            self.network(), self.task, examples, config, mechanism, source, None, lambda *_: None
        )

    def noise_by_step(self, steps: int, source: NoiseSource) -> list[Tensor]:
        """Return the noise of each step of one training without patients, `(d,)` each.

        An adaptive clip norm, and the noise with it, all but stays.
        """
        mechanism, clip = replace(self.mechanism, steps=steps), self.mechanism.clip
        if isinstance(clip, AdaptiveClip):
            mechanism = replace(mechanism, clip=clip.model_copy(update={"rate": 1e-9}))
        network, config, seen = self.network(), self.config(mechanism), list[Tensor]()
        before = flat(network)
        examples = prepare([], self.study.preprocessing, CPU, seed=0)
        train_privately(
            network, self.task, examples, config, mechanism, source, None,
            lambda *_: seen.append(flat(network)),
        )  # fmt: skip
        places = [before, *seen]
        divisor = DECLARED if mechanism.sampling_rate == 1 else self.divisor
        return [(a - b) / config.step_size * divisor for a, b in pairwise(places)]

    def contribution(
        self, patients: Sequence[Patient], number: int, mechanism: Mechanism | None = None
    ) -> Tensor:
        """Return what a patient adds to a step's sum, `(d,)`: the same noise is in both sums.

        Every patient takes part, and the noise is small: it cancels, and rounding with it.
        """
        everybody = replace(
            mechanism or self.mechanism,
            sampling_rate=1.0,
            divisor=float(DECLARED),
            noise_multiplier=0.01,
        )
        without = [absent(each) if k == number else each for k, each in enumerate(patients)]
        both = (
            self.step_sum(some, everybody, NoiseSource.for_test(0, "the same noise"))
            for some in (patients, without)
        )
        whole, rest = both
        return whole - rest

    def with_fixed_scans(self) -> "Bench":
        """Return the bench of the study without random crops and changes of its scans."""
        study = self.study.model_copy(update={"preprocessing": self.study.preprocessing.without_draws})
        return replace(self, study=study)


def flat(network: nn.Module) -> Tensor:
    """Return a network's parameters one after the other by name, `(d,)` in float64."""
    found = P.of(network)
    return torch.cat([found[name].detach().double().ravel() for name in sorted(found)])


def _mechanism(study: Study, rounds: int, steps: int) -> Mechanism:
    if study.privacy.mode == "none":
        raise NothingToAudit("Expected a study with privacy.")
    lot = study.training.lot_size
    return mechanism_for(study.privacy, rounds=rounds, steps=steps, lot=lot, declared=DECLARED)
