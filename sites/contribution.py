"""What a hospital gives to a run: its consent, and in each round what it learned."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from models import checkpoints
from models import params as P
from models.networks import NetworkConfig
from models.objectives import build_task
from models.params import Params
from models.strategies import variate_after
from privacy.accounting import reported_epsilon
from privacy.distillation import DistillationConfig, distil, transfer_images
from privacy.ledger import Charge, LedgerError
from privacy.mechanisms import Mechanism, mechanism_for
from privacy.release import Noise
from privacy.soundness import check_soundness
from sites import export
from sites.hospital import Hospital
from sites.orders import Order, global_model, left_by, network_for, with_local_layers
from sites.policy import Refused
from sites.study import Study
from sites.training import Examples, Progress, prepare, train_plainly, train_privately


def join(hospital: Hospital, order: Order, act: Charge, _: Progress) -> None:
    """Check that data and budget allow the run from end to end, and accept."""
    mechanism = _mechanism(hospital, order.study)
    if mechanism:
        _check_accountants(order.study, mechanism)
    network = network_for(order.study.network, order.study, hospital.device, None)
    _rehearse(hospital, order.study, network, mechanism)
    hospital.cohort(order.study)
    if mechanism:
        patients = hospital.eligible.training
        hospital.ledger.check_fits(patients, mechanism.event, times=order.study.rounds)
    export.acceptance(hospital, order.study, act)


def contribute(hospital: Hospital, order: Order, act: Charge, progress: Progress) -> None:
    """Train from the global model, distil, and release the change that the ledger has paid for."""
    study = order.study
    model = global_model(hospital, order)
    mechanism = _mechanism(hospital, study)
    start = with_local_layers(hospital, order, model.params, order.round - 1)
    network = network_for(study.network, study, hospital.device, start)
    _rehearse(hospital, study, network, mechanism)
    patients = hospital.cohort(study).training
    charge = replace(act, event=mechanism.event if mechanism else None)
    charged = hospital.ledger.reserve(charge, hospital.eligible.training)
    patients = tuple(patient for patient in patients if patient.pseudonym in charged)
    with _given_back_on_failure(hospital, charge):
        seed = study.seed_for(order.round, hospital.name, "draws")
        examples = prepare(patients, study.preprocessing, hospital.device, seed)
    hospital.ledger.start(charge)
    for kind in ("teacher", "local", "clip", "variate"):
        hospital.stored(kind, order.run, order.round).unlink(missing_ok=True)
    correction = _correction(hospital, order, model.params)
    noise = _learn(hospital, order, network, examples, mechanism, correction, progress)
    trained, strategy = P.of(network.cpu()), study.bound_strategy()
    local = {name: trained[name] for name in trained if strategy.is_local(name)}
    if local:
        checkpoints.write(hospital.stored("local", order.run, order.round), local)
    change = strategy.shared(P.subtract(trained, start))
    if not P.all_finite(change):
        export.spoilt(hospital, study, charge, "the training diverged; its cost stays charged")
        return
    if strategy.corrects:
        before = {name: -correction[name] for name in correction} if correction else None
        variate = variate_after(change, study.training.length(order.round, study.rounds), before)
        checkpoints.write(hospital.stored("variate", order.run, order.round), variate)
    export.release(hospital, study, charge, change, model.sha256, noise)


def _correction(hospital: Hospital, order: Order, params: Params) -> Params | None:
    """Return c - c_k, which a strategy adds to each local step; None where it does not, or not yet.

    A hospital that was not there in the round before has no variate of its own, and takes plain steps.
    """
    study, round = order.study, order.round - 1
    own = left_by(hospital, "variate", order, round) if round else None
    path = hospital.stored("global", order.run, round - 1)
    if not study.strategy.build().corrects or own is None or not path.exists():
        return None
    moved = P.subtract(params, checkpoints.StoredParams(path))
    return P.subtract(variate_after(moved, study.training.length(round, study.rounds)), own)


@contextmanager
def _given_back_on_failure(hospital: Hospital, charge: Charge) -> Iterator[None]:
    """Void the charge if the work before training fails, unless an earlier try had started training."""
    try:
        yield
    except Exception:
        with suppress(LedgerError):
            hospital.ledger.void(charge)
        raise


def _rehearse(hospital: Hospital, study: Study, network: nn.Module, mechanism: Mechanism | None) -> None:
    """Refuse a study that can't train soundly, on synthetic images and before anything is spent."""
    shape, labels = study.preprocessing.shape, len(study.task.labels)
    config = DistillationConfig(transfer="synthetic", steps=1, images=8, batch=2)
    images = transfer_images(config, shape, labels, study.seed_for(0, "", "rehearsal"))
    images = images[:4].to(hospital.device)
    target = _blank_targets(study, 4).to(hospital.device)
    teacher = study.distillation.teacher if study.distillation else None
    learner = network_for(teacher, study, hospital.device, None) if teacher else network
    try:
        task = build_task(study.task)
        if mechanism:
            check_soundness(learner, task.loss, mechanism, images, target)
        distil(learner, copy.deepcopy(network), images, config, torch.Generator(), task.exclusive)
    except (ValueError, RuntimeError, IndexError, TypeError) as error:
        raise Refused(f"the study cannot train on images of its shape: {error}") from error


def _blank_targets(study: Study, count: int) -> torch.Tensor:
    task = study.task
    if task.kind == "segmentation":
        return torch.zeros(count, *study.preprocessing.shape).long()
    return torch.zeros(count, *([len(task.labels)] if task.multi_label else ())).long()


def _mechanism(hospital: Hospital, study: Study) -> Mechanism | None:
    if study.privacy.mode == "none":
        return None
    try:
        return mechanism_for(
            study.privacy,
            rounds=study.rounds,
            steps=study.training.steps,
            lot=study.training.lot_size,
            declared=hospital.policy.declared_training,
        )
    except ValueError as error:
        raise Refused(f"the study does not fit this hospital: {error}") from error


def _check_accountants(study: Study, mechanism: Mechanism) -> None:
    """Refuse a study whose accountants fail at its own schedule, before they could lose a release."""
    if study.privacy.mode == "none":
        return
    for name in study.privacy.accountants:
        try:
            for rounds in (1, study.rounds):
                reported_epsilon([mechanism.event] * rounds, study.privacy.delta, name)
        except (ValueError, RuntimeError, ArithmeticError, MemoryError) as error:
            raise Refused(f"the accountant {name} can't report the study's epsilon: {error}") from error


def _learn(
    hospital: Hospital,
    order: Order,
    network: nn.Module,
    examples: Examples,
    mechanism: Mechanism | None,
    correction: Params | None,
    progress: Progress,
) -> Noise:
    """Move `network`, in place, to what leaves: itself trained, or the student of a teacher."""
    study, distillation = order.study, order.study.distillation
    if distillation is None:
        return _train(hospital, order, network, examples, mechanism, correction, progress)
    images = transfer_images(
        distillation,
        study.preprocessing.shape,
        len(study.task.labels),
        study.seed_for(0, "", "transfer"),
    ).to(hospital.device)
    rng = torch.Generator().manual_seed(study.seed_for(order.round, hospital.name, "distil"))
    exclusive = build_task(study.task).exclusive
    teacher = copy.deepcopy(network)
    if distillation.teacher:
        teacher = _own_teacher(hospital, order, distillation.teacher)
        distil(network, teacher, images, distillation, rng, exclusive)
    noise = _train(hospital, order, teacher, examples, mechanism, correction, progress)
    checkpoints.write(hospital.stored("teacher", order.run, order.round), P.of(teacher))
    progress("distil", 0, distillation.steps)
    distil(teacher, network, images, distillation, rng, exclusive)
    progress("distil", distillation.steps, distillation.steps)
    return noise


def _train(
    hospital: Hospital,
    order: Order,
    network: nn.Module,
    examples: Examples,
    mechanism: Mechanism | None,
    correction: Params | None,
    progress: Progress,
) -> Noise:
    study = order.study
    task, local_loss = build_task(study.task), study.strategy.build().local_loss
    if correction is not None:
        local_loss = partial(_along, correction)
    config = study.training.in_round(order.round, study.rounds)
    progress("train", 0, config.steps)
    if mechanism is None:
        rng = torch.Generator().manual_seed(study.seed_for(order.round, hospital.name, "lots"))
        train_plainly(network, task, examples, config, rng, local_loss, progress)
        return "none"
    source, noise = hospital.noise(f"{study.sha256} {order.round}")
    before = left_by(hospital, "clip", order, order.round - 1)
    if before:
        mechanism = mechanism.starting_at(float(before["norm"]))
    left = train_privately(network, task, examples, config, mechanism, source, local_loss, progress)
    if left is not mechanism:
        after = hospital.stored("clip", order.run, order.round)
        checkpoints.write(after, {"norm": torch.tensor(left.clip.norm)})
    return noise


def _along(correction: Params, own: Params, _: Params) -> torch.Tensor:
    """Return the loss whose gradient is the correction, whatever the parameters are."""
    return torch.stack([(correction[name].to(own[name]) * own[name]).sum() for name in own]).sum()


def _own_teacher(hospital: Hospital, order: Order, config: NetworkConfig) -> nn.Module:
    """Return the hospital's own teacher as the round before left it; in the first round, a new one."""
    stored = left_by(hospital, "teacher", order, order.round - 1)
    return network_for(config, order.study, hospital.device, stored)
