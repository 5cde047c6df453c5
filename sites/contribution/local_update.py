"""The local update of a round: training, and distillation where a study distils.

Only the `Update` that `local_update` returns may leave, through `sites.export`. Teachers and local
layers stay in the hospital's state from round to round.
"""

import copy
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models import checkpoints
from models import params as P
from models.files import sha256_of
from models.objectives import build_task
from models.params import Params
from models.settings.distillation import DistillationConfig
from models.spans import span, spanned
from models.strategies import variate_after
from models.unfinished import Unfinished
from privacy import predictions
from privacy.distillation import Exclusive, answers, distil
from privacy.mechanisms import Mechanism
from privacy.shared_noise import clipped_change
from privacy.signing import canonical
from privacy.statements import Noise
from sites.admission.admission import teacher_for, training_for
from sites.code_version import code_sha256
from sites.cohort import Patient
from sites.hospital import Hospital
from sites.local_models import fits, network_for, stored_params
from sites.orders import Order
from sites.progress import Progress
from sites.training.config import TrainingConfig
from sites.training.examples import Examples
from sites.training.gradient_sum import gradient_sum
from sites.training.lot_sums import LotSums, OwnSums
from sites.training.sgd import train_plainly
from sites.transfer_set import transfer_images
from sites.update import CLIPPED, Update

KEPT = ("teacher", "local", "clip", "variate", "student")
"""Kinds of parameters that a round stores at the hospital for later rounds."""


@dataclass(frozen=True)
class LocalTraining:
    """A hospital's training in one round.

    Attributes:
        base: the global model's parameters.
        start: the same with this hospital's local layers.
        patients: the patients of `examples`, in the same order.
        mechanism: None in a study without privacy.
        rate: the run's learning rate, where the study leaves it to the run.
    """

    hospital: Hospital
    order: Order
    base: Params
    start: Params
    patients: Sequence[Patient]
    examples: Examples
    mechanism: Mechanism | None
    progress: Progress
    rate: float | None = None

    @property
    def config(self) -> TrainingConfig:
        """The training configuration of this hospital in this round."""
        study = self.order.study
        config = training_for(self.hospital.policy, study).at_rate(self.rate)
        return config.in_round(self.order.round, study.rounds)

    def unfinished(self, what: str) -> Unfinished:
        """Return the storage of the unfinished training, or of the unfinished work `what` after it.

        Its name depends on everything that the result depends on: after a change, the work starts again.
        """
        order, hospital = self.order, self.hospital
        depends_on = [
            what,
            [code_sha256(), torch.__version__],
            [order.study.sha256, order.run, order.round, order.act],
            sha256_of(checkpoints.to_bytes(self.start)),
            self.config.model_dump(mode="json"),
            repr(self.mechanism),
            str(teacher_for(hospital.policy, order.study)),
            hospital.test_noise,
            [hospital.data_sha256, *(patient.pseudonym for patient in self.patients)],
        ]
        name = sha256_of(canonical(depends_on))[:16]
        path = _unfinished_folder(hospital, order) / f"{order.round:03d}-{name}.safetensors"
        return Unfinished(path, hospital.policy.device.checkpoint_s)

    def keep(self, kind: str, params: Params) -> None:
        """Store parameters at the hospital for later rounds."""
        checkpoints.write(self.hospital.stored(kind, self.order.run, self.order.round), params)

    def stored_before(self, kind: str, *, exactly: bool = False) -> Params | None:
        """Return parameters of the newest earlier round; with `exactly`, only of the previous one."""
        return stored_params(self.hospital, kind, self.order, self.order.round - 1, exactly=exactly)


def draws_seed(hospital: Hospital, order: Order) -> int:
    """Return the public seed of the random draws from patients' scans in a round."""
    return order.study.seed_for(order.round, hospital.name, "draws")


def forget(hospital: Hospital, order: Order) -> None:
    """Delete the parameters that this round stored, before a new start or after training diverged."""
    for kind in KEPT:
        hospital.stored(kind, order.run, order.round).unlink(missing_ok=True)


def end(hospital: Hospital, order: Order) -> None:
    """Delete the unfinished trainings of a run after a round has ended."""
    shutil.rmtree(_unfinished_folder(hospital, order), ignore_errors=True)


def _unfinished_folder(hospital: Hospital, order: Order) -> Path:
    return hospital.state / "unfinished" / order.run


def local_update(training: LocalTraining) -> Update:
    """Train on the hospital's patients, distil if the study does, and return the update.

    If training diverged, the update has values that are not finite.
    """
    study, hospital = training.order.study, training.hospital
    forget(hospital, training.order)
    network = network_for(study.network, study, hospital.device, training.start)
    if study.shares_noise:
        return Update({CLIPPED: torch.from_numpy(_clipped(training, network))}, "none")
    correction = _correction(training)
    if study.distillation is None or study.content_of(training.order.round) == "weights":
        noise = _train(training, network, correction)
        if study.distillation:
            training.keep("teacher", P.of(network))
        return Update(_change(training, network, correction), noise)
    transfer = _Transfer.of(training, study.distillation)
    teacher = _teacher(training, network, transfer)
    noise = _train(training, teacher, correction)
    training.keep("teacher", P.of(teacher))
    if study.export == "predictions":
        return Update(_answers(teacher, transfer), noise)
    _distil(training, teacher, network, transfer)
    return Update(_change(training, network, correction), noise)


def _clipped(training: LocalTraining, network: nn.Module) -> NDArray[np.float64]:
    """Return what a secure sum adds up, clipped and without noise yet: gradients, or the change."""
    mechanism = training.mechanism
    if mechanism is None:
        raise ValueError("Expected a mechanism for a sum with shared noise.")
    if mechanism.unit == "hospital":
        _train(training, network, None)
        return clipped_change(_change(training, network, None), mechanism)
    with span("train"), _sums(training, network) as sums:
        return gradient_sum(network, sums, len(training.patients), mechanism, training.progress)


@contextmanager
def _sums(training: LocalTraining, network: nn.Module) -> Iterator[LotSums]:
    """Yield what sums the patients' clipped gradients: this process, or the hospital's own cluster."""
    hospital, order = training.hospital, training.order
    study, device = order.study, hospital.policy.device
    own = OwnSums(build_task(study.task), training.examples, training.config)
    if device.cluster is None:
        yield own
        return
    from sites.training.cluster import TrainingOnWorkers, spread  # noqa: PLC0415  # needs an extra

    seed = draws_seed(hospital, order)
    network = copy.deepcopy(network).cpu()
    told = TrainingOnWorkers(
        network, own.task, own.config, study.preprocessing, seed, device.kind, device.threads
    )
    with spread(device.cluster.within(hospital.folder), told, training.patients, own) as sums:
        yield sums


@dataclass(frozen=True)
class _Transfer:
    """A round's distillation: transfer images, configuration, random order, and the task's classes."""

    images: torch.Tensor
    config: DistillationConfig
    rng: torch.Generator
    exclusive: Exclusive

    @classmethod
    def of(cls, training: LocalTraining, config: DistillationConfig) -> "_Transfer":
        hospital, order = training.hospital, training.order
        study = order.study
        return cls(
            images=transfer_images(study, config, hospital.public).to(hospital.device),
            config=config,
            rng=torch.Generator().manual_seed(study.seed_for(order.round, hospital.name, "distil")),
            exclusive=build_task(study.task).exclusive,
        )

    def distil(self, teacher: nn.Module, student: nn.Module, unfinished: Unfinished | None) -> None:
        """Train a student in place to imitate a teacher."""
        distil(teacher, student, self.images, self.config, self.rng, self.exclusive, unfinished)


def _teacher(training: LocalTraining, student: nn.Module, transfer: _Transfer) -> nn.Module:
    """Return the teacher before its training: a copy of the student, or another network.

    Another network starts from the newest stored teacher that fits, and first imitates the student.
    """
    hospital, study = training.hospital, training.order.study
    own = teacher_for(hospital.policy, study)
    if own is None:
        return copy.deepcopy(student)
    stored = training.stored_before("teacher")
    known = stored if stored is not None and fits(stored, own, study) else None
    teacher = network_for(own, study, hospital.device, known)
    transfer.distil(student, teacher, None)
    return teacher


@spanned("distil")
def _distil(
    training: LocalTraining, teacher: nn.Module, student: nn.Module, transfer: _Transfer
) -> None:
    """Train the student to imitate the teacher, and store the student."""
    steps = transfer.config.steps
    training.progress("distil", 0, steps)
    # another attempt at the training may end in another teacher, which needs another student
    purpose = f"student of {sha256_of(checkpoints.to_bytes(P.of(teacher)))}"
    transfer.distil(teacher, student, training.unfinished(purpose))
    training.progress("distil", steps, steps)
    training.keep("student", P.of(student))


@spanned("train")
def _train(training: LocalTraining, network: nn.Module, correction: Params | None) -> Noise:
    hospital, order, mechanism = training.hospital, training.order, training.mechanism
    study, config, progress = order.study, training.config, training.progress
    task, local_loss = build_task(study.task), study.strategy.build().local_loss
    if correction is not None:
        local_loss = partial(_along, correction)
    progress("train", 0, config.steps)
    if mechanism is None or mechanism.unit == "hospital":
        rng = torch.Generator().manual_seed(study.seed_for(order.round, hospital.name, "lots"))
        unfinished = training.unfinished("training")
        train_plainly(network, task, training.examples, config, rng, local_loss, progress, unfinished)
        return "none"
    from sites.training.dp_sgd import train_privately  # noqa: PLC0415  # Opacus takes long to import

    source, noise = hospital.noise(order.noise_purpose)
    if before := training.stored_before("clip"):
        mechanism = mechanism.starting_at(float(before["norm"]))
    with _sums(training, network) as sums:
        left = train_privately(
            network, task, training.examples, config, mechanism, source, local_loss, progress,
            training.unfinished("training"), sums=sums,
        )  # fmt: skip
    if left is not mechanism:
        training.keep("clip", {"norm": torch.tensor(left.clip.norm)})
    return noise


def _along(correction: Params, own: Params, _: Params) -> torch.Tensor:
    """Return a loss whose gradient is the correction for any parameters."""
    return torch.stack([(correction[name].to(own[name]) * own[name]).sum() for name in own]).sum()


def _change(
    training: LocalTraining, network: nn.Module, correction: Params | None
) -> dict[str, torch.Tensor]:
    """Return the change of the shared layers, and store the local layers."""
    strategy, trained = training.order.study.bound_strategy(), P.of(network.cpu())
    local = {name: trained[name] for name in trained if strategy.is_local(name)}
    if local:
        training.keep("local", local)
    change = strategy.shared(P.subtract(trained, training.start))
    if strategy.corrects and P.all_finite(change):
        before = {name: -correction[name] for name in correction} if correction else None
        training.keep("variate", variate_after(change, _length(training, training.order.round), before))
    return change


def _answers(teacher: nn.Module, transfer: _Transfer) -> dict[str, torch.Tensor]:
    """Return a teacher's answers on the transfer images, packed; unpacked if a value is not finite."""
    found = answers(teacher, transfer.images, transfer.config, transfer.exclusive)
    if not found.isfinite().all():
        return {predictions.NAME: found}
    return predictions.to_tensors(found, transfer.config.temperature)


def _correction(training: LocalTraining) -> Params | None:
    """Return c - c_k, the correction that SCAFFOLD adds to each local step; None for plain steps.

    A hospital that took no part in the previous round has no variate of its own and takes plain steps
    (Karimireddy et al. 2020, SCAFFOLD, https://arxiv.org/abs/1910.06378).
    """
    round = training.order.round - 1
    own = training.stored_before("variate", exactly=True) if round else None
    path = training.hospital.stored("global", training.order.run, round - 1)
    if not training.order.study.strategy.build().corrects or own is None or not path.exists():
        return None
    moved = P.subtract(training.base, checkpoints.StoredParams(path))
    return P.subtract(variate_after(moved, _length(training, round)), own)


def _length(training: LocalTraining, round: int) -> float:
    study = training.order.study
    return study.training.length(round, study.rounds)
