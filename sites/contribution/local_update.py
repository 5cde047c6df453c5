"""How a hospital learns in a round: by itself, or through a teacher.

What leaves is what `learn` returns. The teacher and layers of the hospital's own stay in its state, from
round to round.
"""

import copy
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from models import checkpoints
from models import params as P
from models.files import sha256_of
from models.objectives import build_task
from models.params import Params
from models.strategies import variate_after
from models.unfinished import Unfinished
from privacy import predictions
from privacy.distillation import DistillationConfig, answers, distil
from privacy.mechanisms import Mechanism
from privacy.release import Noise
from privacy.signing import canonical
from sites.admission.admission import teacher_for, training_for
from sites.code_version import code_sha256
from sites.cohort import Patient
from sites.contribution.transfer_set import transfer_images
from sites.hospital import Hospital
from sites.orders import Order, fits, left_by, network_for
from sites.progress import Progress
from sites.training.config import TrainingConfig
from sites.training.dp_sgd import train_privately
from sites.training.examples import Examples
from sites.training.sgd import train_plainly

KEPT = ("teacher", "local", "clip", "variate", "student")
"""What learning leaves in a hospital for later rounds."""


@dataclass(frozen=True)
class Lesson:
    """A hospital's round of learning.

    Attributes:
        base: the global model's parameters.
        start: the same with the layers that this hospital keeps to itself.
        patients: whose `examples` these are.
        mechanism: None in a study without privacy.
    """

    hospital: Hospital
    order: Order
    base: Params
    start: Params
    patients: Sequence[Patient]
    examples: Examples
    mechanism: Mechanism | None
    progress: Progress

    @property
    def config(self) -> TrainingConfig:
        """How this hospital trains in this round."""
        study = self.order.study
        return training_for(self.hospital.policy, study).in_round(self.order.round, study.rounds)

    def unfinished(self, what: str) -> Unfinished:
        """Return where this round's training, or `what` else follows it, is kept while it lasts.

        It is bound to everything on which that depends: what changes meanwhile begins anew.
        """
        order, hospital = self.order, self.hospital
        depends_on = [
            what,
            [code_sha256(), torch.__version__],
            [order.study.sha256, order.run, order.round],
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
        """Keep parameters at the hospital for later rounds."""
        checkpoints.write(self.hospital.stored(kind, self.order.run, self.order.round), params)

    def left_before(self, kind: str, *, exactly: bool = False) -> Params | None:
        """Return what the newest round before this one kept; with `exactly`, the one just before."""
        return left_by(self.hospital, kind, self.order, self.order.round - 1, exactly=exactly)


def forget(hospital: Hospital, order: Order) -> None:
    """Delete what learning left in this round: it is to begin anew, or came to nothing."""
    for kind in KEPT:
        hospital.stored(kind, order.run, order.round).unlink(missing_ok=True)


def end(hospital: Hospital, order: Order) -> None:
    """Delete what was kept of a round's training while it lasted, and of earlier ones of its run."""
    shutil.rmtree(_unfinished_folder(hospital, order), ignore_errors=True)


def _unfinished_folder(hospital: Hospital, order: Order) -> Path:
    return hospital.state / "unfinished" / order.run


def learn(lesson: Lesson) -> tuple[dict[str, torch.Tensor], Noise]:
    """Learn from the patients; return the tensors that leave, and what noise is in them.

    Training that diverged returns values that are not finite.
    """
    order, hospital = lesson.order, lesson.hospital
    study, distillation = order.study, order.study.distillation
    forget(hospital, order)
    network = network_for(study.network, study, hospital.device, lesson.start)
    correction = _correction(lesson)
    if distillation is None:
        noise = _train(lesson, network, correction)
        return _change(lesson, network, correction), noise
    images = transfer_images(study, distillation, hospital.public).to(hospital.device)
    rng = torch.Generator().manual_seed(study.seed_for(order.round, hospital.name, "distil"))
    exclusive = build_task(study.task).exclusive
    teacher = copy.deepcopy(network)
    if own := teacher_for(hospital.policy, study):
        left = lesson.left_before("teacher")
        known = left if left is not None and fits(left, own, study) else None
        teacher = network_for(own, study, hospital.device, known)
        distil(network, teacher, images, distillation, rng, exclusive)
    noise = _train(lesson, teacher, correction)
    lesson.keep("teacher", P.of(teacher))
    if study.export == "predictions":
        return _answers(lesson, teacher, images, distillation), noise
    lesson.progress("distil", 0, distillation.steps)
    # another try at the training may have ended in another teacher, whose student is another
    taught = lesson.unfinished(f"student of {sha256_of(checkpoints.to_bytes(P.of(teacher)))}")
    distil(teacher, network, images, distillation, rng, exclusive, taught)
    lesson.progress("distil", distillation.steps, distillation.steps)
    lesson.keep("student", P.of(network))
    return _change(lesson, network, correction), noise


def _train(lesson: Lesson, network: nn.Module, correction: Params | None) -> Noise:
    hospital, order, mechanism = lesson.hospital, lesson.order, lesson.mechanism
    study, config, progress = order.study, lesson.config, lesson.progress
    task, local_loss = build_task(study.task), study.strategy.build().local_loss
    if correction is not None:
        local_loss = partial(_along, correction)
    progress("train", 0, config.steps)
    if mechanism is None:
        rng = torch.Generator().manual_seed(study.seed_for(order.round, hospital.name, "lots"))
        unfinished = lesson.unfinished("training")
        train_plainly(network, task, lesson.examples, config, rng, local_loss, progress, unfinished)
        return "none"
    source, noise = hospital.noise(f"{study.sha256} {order.round}")
    if before := lesson.left_before("clip"):
        mechanism = mechanism.starting_at(float(before["norm"]))
    left = train_privately(
        network, task, lesson.examples, config, mechanism, source, local_loss, progress,
        lesson.unfinished("training"),
    )  # fmt: skip
    if left is not mechanism:
        lesson.keep("clip", {"norm": torch.tensor(left.clip.norm)})
    return noise


def _along(correction: Params, own: Params, _: Params) -> torch.Tensor:
    """Return the loss whose gradient is the correction, whatever the parameters are."""
    return torch.stack([(correction[name].to(own[name]) * own[name]).sum() for name in own]).sum()


def _change(lesson: Lesson, network: nn.Module, correction: Params | None) -> dict[str, torch.Tensor]:
    """Return how the shared layers changed, and keep those that the hospital has to itself."""
    strategy, trained = lesson.order.study.bound_strategy(), P.of(network.cpu())
    local = {name: trained[name] for name in trained if strategy.is_local(name)}
    if local:
        lesson.keep("local", local)
    change = strategy.shared(P.subtract(trained, lesson.start))
    if strategy.corrects and P.all_finite(change):
        before = {name: -correction[name] for name in correction} if correction else None
        lesson.keep("variate", variate_after(change, _length(lesson, lesson.order.round), before))
    return change


def _answers(
    lesson: Lesson, teacher: nn.Module, images: torch.Tensor, distillation: DistillationConfig
) -> dict[str, torch.Tensor]:
    """Return a teacher's answers on the transfer images, packed; as they are where one is not finite."""
    found = answers(teacher, images, distillation, build_task(lesson.order.study.task).exclusive)
    if not found.isfinite().all():
        return {predictions.NAME: found}
    return predictions.to_tensors(found, distillation.temperature)


def _correction(lesson: Lesson) -> Params | None:
    """Return c - c_k, which a strategy adds to each local step; None where it does not, or not yet.

    A hospital that was not there in the round before has no variate of its own, and takes plain steps.
    """
    round = lesson.order.round - 1
    own = lesson.left_before("variate", exactly=True) if round else None
    path = lesson.hospital.stored("global", lesson.order.run, round - 1)
    if not lesson.order.study.strategy.build().corrects or own is None or not path.exists():
        return None
    moved = P.subtract(lesson.base, checkpoints.StoredParams(path))
    return P.subtract(variate_after(moved, _length(lesson, round)), own)


def _length(lesson: Lesson, round: int) -> float:
    study = lesson.order.study
    return study.training.length(round, study.rounds)
