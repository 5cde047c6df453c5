"""Contribution of a hospital to a run: its acceptance, and in each round the release of its update."""

import copy
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import product

import torch

from models.files import private_folder, sha256_of, write_atomically
from models.objectives import build_task
from models.spans import span, spanned
from privacy.accounting import Budget, reported_epsilon
from privacy.distillation import distil
from privacy.ledger import Charge, LedgerError
from privacy.mechanisms import Mechanism
from privacy.signing import canonical
from privacy.soundness import check_soundness
from privacy.statements import MOST_EPSILON, Acceptance, parse_statement
from sites import export
from sites.admission.admission import mechanism_for_study, teacher_for, training_for
from sites.admission.approvals import check_join, check_probe
from sites.admission.resources import check_disk, exclusive_device
from sites.code_version import versions
from sites.contribution.local_update import LocalTraining, draws_seed, end, forget, local_update
from sites.exchange.exchange import COORDINATOR, Exchange
from sites.hospital import Hospital
from sites.local_models import GlobalModel, global_model, network_for, with_local_layers
from sites.orders import Order, check_in_time
from sites.policy.policy import Refused
from sites.progress import Progress
from sites.secure_sum.attempt import terms_of
from sites.secure_sum.masked_update import MaskedSum
from sites.secure_sum.own_share import check_own_share
from sites.secure_sum.relay import check_peers
from sites.secure_sum.steps import take_shares
from sites.study import Study
from sites.training.examples import prepare
from sites.transfer_set import NoTransferImages, contents, transfer_images

log = logging.getLogger("wardround.site")


CASES_BYTES = 2**24
"""Size of the largest list of hashes of public cases."""
TOO_FEW = "fewer training patients have usable scans than the policy's min_patients"
"""Reason for no release without privacy: it would show a few patients. It is recorded like a release."""


def check(hospital: Hospital, order: Order, act: Charge, _: Progress) -> None:
    """State that policy, list, code and budget would let this hospital join; no scan is opened."""
    _check_fit(hospital, order)
    check_probe(hospital, order.study, order.run)
    export.readiness(hospital, order.study, act)


def join(hospital: Hospital, order: Order, act: Charge, _: Progress) -> None:
    """Check that list, code and budget allow the whole run and that it is approved, and accept it.

    The scans are read for the hospital's own log and for the person who approves, and change nothing.
    """
    _check_fit(hospital, order)
    check_join(hospital, order.study, order.run, _findings(hospital, order))
    export.acceptance(hospital, order.study, act)


def _check_fit(hospital: Hospital, order: Order) -> None:
    """Raise `Refused` or `BudgetExceeded` if code or budget do not allow the whole run."""
    mechanism = mechanism_for_study(hospital.policy, order.study)
    if order.study.is_summed:
        check_peers(hospital)
        check_own_share(hospital, order.study, terms_of(order, order.study.sites.min, "update").honest)
    if mechanism:
        _check_accountants(order.study, mechanism, (1, order.study.rounds + order.study.spare))
    _rehearse(hospital, order.study, mechanism)
    if mechanism:
        patients = hospital.eligible.training
        left = order.study.rounds + order.study.spare - max(0, order.round - 1)
        hospital.ledger.check_fits(patients, mechanism.event, times=left)


def contribute(hospital: Hospital, order: Order, act: Charge, progress: Progress) -> None:
    """Train from the global model, distil if the study does, and release the charged update.

    The charge is reserved before any scan is prepared for training. It is given back only if the work
    before training fails.
    """
    study = order.study
    with span("fetch"):
        model = global_model(hospital, order)
    _check_terms(hospital, order)
    check_join(hospital, study, order.run)
    mechanism = mechanism_for_study(hospital.policy, study)
    if mechanism:
        so_far = len(hospital.ledger.charges(order.run))
        _check_accountants(study, mechanism, (min(so_far + 1, study.rounds + study.spare),))
    start = with_local_layers(hospital, order, model.params, order.round - 1)
    _rehearse(hospital, study, mechanism)
    hidden = _hidden(hospital, order, mechanism, model)
    with span("load"):
        patients = hospital.cohort(study).training
    charge = replace(act, event=mechanism.event if mechanism else None)
    if not hospital.ledger.has_started(charge):
        check_disk(hospital)
    with exclusive_device(hospital.policy.device):
        check_in_time(order)
        charged = hospital.ledger.reserve(charge, hospital.eligible.training, _limit(study))
        patients = tuple(patient for patient in patients if patient.pseudonym in charged)
        with _given_back_on_failure(hospital, charge), span("load"):
            seed = draws_seed(hospital, order)
            examples = prepare(patients, study.preprocessing, hospital.device, seed)
            check_in_time(order)
        hospital.ledger.start(charge)
        fewest = max(hospital.policy.min_patients, 2 if study.training.membership else 1)
        if not mechanism and len(patients) < fewest:
            export.settle_without_release(hospital, study, charge, TOO_FEW)
            return
        update = local_update(
            LocalTraining(
                hospital, order, model.params, start, patients, examples, mechanism, progress, model.rate
            )
        )
    if update.is_finite:
        with span("export"):
            leaving, masked = hidden.hidden(update) if hidden else (update, None)
            export.settle_with_release(hospital, study, charge, leaving, model, masked)
    else:
        forget(hospital, order)
        diverged = "the training diverged; its cost stays charged"
        export.settle_without_release(hospital, study, charge, diverged)
    end(hospital, order)


def _hidden(
    hospital: Hospital, order: Order, mechanism: Mechanism | None, model: GlobalModel
) -> MaskedSum | None:
    """Return the hospital's part in the round's secure sum, before any charge; None without one."""
    if mechanism is None or not order.study.is_summed:
        return None
    return MaskedSum(hospital, order, take_shares(hospital, order), mechanism, model.rate)


def _limit(study: Study) -> Budget | None:
    """Return the most that all rounds of a run may spend on a patient: what the study declares."""
    if study.privacy.mode == "none":
        return None
    return Budget(epsilon=study.privacy.epsilon, delta=study.privacy.delta)


@contextmanager
def _given_back_on_failure(hospital: Hospital, charge: Charge) -> Iterator[None]:
    """Void the charge if the work before training fails, unless an earlier attempt started training."""
    try:
        yield
    except Exception:
        with suppress(LedgerError):
            hospital.ledger.void(charge)
        raise


def _check_terms(hospital: Hospital, order: Order) -> None:
    """Raise `Refused`, before any charge, if the terms differ from the hospital's own acceptance."""
    joined = [
        entry.file
        for entry in hospital.ledger.entries()
        if entry.charge.run == order.run and entry.charge.purpose == "join" and entry.file
    ]
    if not joined:
        return
    statement = parse_statement(hospital.verified(hospital.outbox.statement(joined[-1])))
    now = (hospital.policy.declared_training, training_for(hospital.policy, order.study).steps)
    if isinstance(statement, Acceptance) and (statement.declared_training, statement.steps) != now:
        raise Refused(
            f"the hospital joined with {statement.declared_training} declared training patients and "
            f"{statement.steps} steps a round; its policy now gives {now[0]} and {now[1]}"
        )


def _findings(hospital: Hospital, order: Order) -> list[str]:
    """Return what the checks find in the scans, and whether a public set contains one of them."""
    cohort = hospital.cohort(order.study)
    everybody = (*cohort.training, *cohort.evaluation)
    public = contents(order.study, hospital.public) | _coordinators_cases(order)
    if not any(scan.profile.content in public for patient in everybody for scan in patient.scans):
        return list(cohort.findings)
    found = "public_image: the study's public set contains an image of one of this hospital's patients"
    log.warning("%s", found)
    return [*cohort.findings, found]


def _coordinators_cases(order: Order) -> frozenset[str]:
    """Return the hashes of the coordinator's public cases; none if they can't be read."""
    if not order.public_cases:
        return frozenset()
    try:
        data = Exchange(order.exchange).object(order.public_cases, COORDINATOR, CASES_BYTES)
        return frozenset(map(str, json.loads(data)))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        log.warning("the hashes of the coordinator's public cases can't be read: %s", error)
        return frozenset()


def _rehearse(hospital: Hospital, study: Study, mechanism: Mechanism | None) -> None:
    """Raise `Refused` if the study can't train soundly; uses random images, before any charge.

    What was sound stays so: it is not tried again until study, policy, code or libraries change.
    """
    if study.distillation and not study.shares_noise:
        with _refused_if_it_fails():
            transfer_images(study, study.distillation, hospital.public)
    teacher = teacher_for(hospital.policy, study)
    depends_on = [study.sha256, *_gradients_depend_on(hospital), repr(mechanism), str(teacher)]
    path, due = hospital.state / "rehearsed" / study.name, sha256_of(canonical(depends_on)).encode()
    if path.exists() and path.read_bytes() == due:
        return
    _train_on_random_images(hospital, study, mechanism)
    try:
        private_folder(path.parent)
        write_atomically(path, due)
    except OSError as error:  # it is tried again at the next order
        log.warning("%s can't be written: %s", path, type(error).__name__)


@contextmanager
def _refused_if_it_fails() -> Iterator[None]:
    """Raise `Refused` where a study does not fit its own images."""
    try:
        yield
    except NoTransferImages as error:
        raise Refused(str(error)) from error
    except (ValueError, RuntimeError, IndexError, TypeError) as error:
        raise Refused(f"the study cannot train on images of its shape: {error}") from error


def _gradients_depend_on(hospital: Hospital) -> list[str]:
    """Return the code, the libraries and the device that compute gradients at a hospital."""
    found = [*versions(), repr(hospital.policy.device)]
    if hospital.policy.device.kind == "cuda":
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        found += [f"cuDNN {cudnn}", torch.cuda.get_device_name(hospital.device)]
    return found


@spanned("rehearse")
def _train_on_random_images(hospital: Hospital, study: Study, mechanism: Mechanism | None) -> None:
    target = _blank_targets(study, 4).to(hospital.device)
    rng = torch.Generator().manual_seed(study.seed_for(0, "", "rehearsal"))
    sides = (study.task.in_channels, *study.preprocessing.shape)
    images = torch.randn(4, *sides, generator=rng).to(hospital.device)
    network = network_for(study.network, study, hospital.device, None)
    teacher = teacher_for(hospital.policy, study)
    learner = network_for(teacher, study, hospital.device, None) if teacher else network
    with _refused_if_it_fails():
        task = build_task(study.task)
        if mechanism and study.clips_patients:
            check_soundness(learner, task.loss, mechanism, images, target)
        if study.distillation and not study.shares_noise:
            once = study.distillation.model_copy(update={"steps": 1, "batch": 2})
            distil(learner, copy.deepcopy(network), images, once, rng, task.exclusive)


def _blank_targets(study: Study, count: int) -> torch.Tensor:
    task = study.task
    if task.kind == "segmentation":
        return torch.zeros(count, *study.preprocessing.shape).long()
    if task.kind == "regression":
        return torch.full((count,), task.low)
    return torch.zeros(count, *([len(task.labels)] if task.multi_label else ())).long()


def _check_accountants(study: Study, mechanism: Mechanism, rounds: Sequence[int]) -> None:
    """Raise `Refused` if an accountant can't report what so many rounds cost: a release states it."""
    if study.privacy.mode == "none":
        return
    for name, number in product(study.privacy.accountants, rounds):
        try:
            found = reported_epsilon([mechanism.event] * number, study.privacy.delta, name)
        except (ValueError, RuntimeError, ArithmeticError, MemoryError, IndexError) as error:
            raise Refused(f"the accountant {name} can't report the study's epsilon: {error}") from error
        if not found <= MOST_EPSILON:
            raise Refused(
                f"the accountant {name} reports epsilon {found:g} at delta {study.privacy.delta:g}; a "
                f"larger delta or another accountant can report it"
            )
