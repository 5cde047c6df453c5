"""What a hospital does when the coordinator asks: tell of its scans, join a run, contribute, evaluate.

Each act ends in exactly one signed statement in the exchange, and asking again lays down the same
bytes: the coordinator reads that statement and nothing else of the hospital.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models import checkpoints
from models import params as P
from models.checkpoints import CorruptCheckpoint, sha256_of
from models.config import Config
from models.networks import NetworkConfig
from models.objectives import build_task
from models.params import Params
from privacy.accounting import Budget, PrivacyEvent, noise_for, reported_epsilon
from privacy.distillation import DistillationConfig, distil, transfer_images
from privacy.ledger import BudgetExceeded, Charge, ClockWentBack, LedgerError
from privacy.mechanisms import Mechanism, mechanism_for
from privacy.release import ModelManifest, Noise
from privacy.signing import BadSignature, verified
from privacy.soundness import check_soundness
from sites import export, inference, survey
from sites.admission import admit
from sites.cohort import Patient
from sites.exchange import Exchange, model_place
from sites.forgotten import check_memory, unrecorded
from sites.hospital import Hospital
from sites.policy import NoisedMetrics, Refused
from sites.preprocessing import Prepared
from sites.scoring import Predict, noised_score, score
from sites.study import Study
from sites.training import Examples, Progress, prepare, train_plainly, train_privately

log = logging.getLogger("wardround.site")

Phase = Literal["survey", "join", "contribute", "evaluate"]
MODEL_BYTES = 2**34
CPU = torch.device("cpu")


def refusal_of(phase: Phase, attempt: int) -> str:
    """Return the name under which a refusal of a phase is recorded and laid down.

    >>> refusal_of("contribute", 2)
    'contribute-refused-2'
    """
    return f"{phase}-refused-{attempt}"


class Order(Config):
    """What the coordinator asks of a hospital: public values only.

    Attributes:
        attempt: counts the coordinator's starts of this run. A refusal holds for its attempt, so
            that a hospital which was put right can take part when the run goes on.
        exchange: where to read the global model and to lay down the answer.
        coordinator: the coordinator's public key, pinned by the hospital on first contact.
    """

    phase: Phase
    study: Study
    run: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,99}$")]
    round: Annotated[int, Field(ge=0)]
    attempt: Annotated[int, Field(ge=1)]
    exchange: str
    coordinator: str


def carry_out(hospital: Hospital, order: Order, progress: Progress) -> None:
    """Do what the order asks and publish the one statement in which it ends.

    A refusal is such a statement too. An act that is on record already is published again, not
    done again.
    """
    act = Charge(order.study.name, order.run, order.round, order.phase, event=None)
    with hospital.alone():
        _carry_out(hospital, order, act, progress)


def _carry_out(hospital: Hospital, order: Order, act: Charge, progress: Progress) -> None:
    study, exchange = order.study, Exchange(order.exchange)
    try:
        hospital.trust(order.coordinator)
        _check_address(exchange)
        hospital.bind(order.run, study.sha256, order.exchange)
        check_memory(hospital, exchange)
        _take_up(hospital, act)
        if hospital.ledger.file_of(act) is None:
            admit(hospital.policy, study)
            _PHASES[order.phase](hospital, order, act, progress)
        export.publish(hospital, exchange, act)
    except (Refused, BudgetExceeded, ClockWentBack) as reason:
        log.warning("%s, round %d of %s: refused: %s", act.purpose, act.round, act.run, reason)
        refused = replace(act, purpose=refusal_of(order.phase, order.attempt))
        export.refusal(hospital, study, refused, str(reason))
        export.publish(hospital, exchange, refused)


def _check_address(exchange: Exchange) -> None:
    try:
        exchange.check()
    except ValueError as error:
        raise Refused(f"the exchange can't be used: {error}") from error


def _take_up(hospital: Hospital, act: Charge) -> None:
    """Record what a crash left in the outbox for this act: doing it again would be a second output."""
    for said in unrecorded(hospital):
        if not said.act.is_same_act(act) or hospital.ledger.file_of(act):
            continue
        record = hospital.ledger.settle if said.is_charged else hospital.ledger.publish
        record(said.act, sha256_of(said.data))


def join(hospital: Hospital, order: Order, act: Charge, _: Progress) -> None:
    """Check that data and budget allow the run from end to end, and accept."""
    mechanism = _mechanism(hospital, order.study)
    if mechanism:
        _check_accountants(order.study, mechanism)
    network = _network(order.study.network, order.study, hospital.device, None)
    _rehearse(hospital, order.study, network, mechanism)
    hospital.cohort(order.study)
    if mechanism:
        patients = hospital.eligible.training
        hospital.ledger.check_fits(patients, mechanism.event, times=order.study.rounds)
    export.acceptance(hospital, order.study, act)


def contribute(hospital: Hospital, order: Order, act: Charge, progress: Progress) -> None:
    """Train from the global model, distil, and release the change that the ledger has paid for."""
    study = order.study
    model = _global_model(hospital, order)
    mechanism = _mechanism(hospital, study)
    start = _with_local_layers(hospital, order, model.params, order.round - 1)
    network = _network(study.network, study, hospital.device, start)
    _rehearse(hospital, study, network, mechanism)
    patients = hospital.cohort(study).training
    charge = replace(act, event=mechanism.event if mechanism else None)
    charged = hospital.ledger.reserve(charge, hospital.eligible.training)
    patients = tuple(patient for patient in patients if patient.pseudonym in charged)
    with _given_back_on_failure(hospital, charge):
        seed = study.seed_for(order.round, hospital.name, "draws")
        examples = prepare(patients, study.preprocessing, hospital.device, seed)
    hospital.ledger.start(charge)
    for kind in ("teacher", "local", "clip"):
        hospital.stored(kind, order.run, order.round).unlink(missing_ok=True)
    noise = _learn(hospital, order, network, examples, mechanism, progress)
    trained, strategy = P.of(network.cpu()), study.bound_strategy()
    local = {name: trained[name] for name in trained if strategy.is_local(name)}
    if local:
        checkpoints.write(hospital.stored("local", order.run, order.round), local)
    change = strategy.shared(P.subtract(trained, start))
    if P.all_finite(change):
        export.release(hospital, study, charge, change, model.sha256, noise)
    else:
        export.spoilt(hospital, study, charge, "the training diverged; its cost stays charged")


@contextmanager
def _given_back_on_failure(hospital: Hospital, charge: Charge) -> Iterator[None]:
    """Void the charge if the work before training fails, unless an earlier try had started training."""
    try:
        yield
    except Exception:
        with suppress(LedgerError):
            hospital.ledger.void(charge)
        raise


def evaluate(hospital: Hospital, order: Order, act: Charge, _: Progress) -> None:
    """Score a global model on patients who never train, as far as the policy lets it be known."""
    study, policy = order.study, hospital.policy
    model = _global_model(hospital, order)
    patients = hospital.cohort(study).evaluation
    if policy.metrics == "withheld" or len(patients) < policy.min_evaluation_patients:
        export.scores(hospital, study, act, model.sha256, "withheld", {})
        return
    params = _with_local_layers(hospital, order, model.params, order.round)
    network = _network(study.network, study, hospital.device, params)
    task = build_task(study.task)
    predict = partial(
        inference.predict,
        network,
        task.activation,
        study.preprocessing,
        study.network.divisor,
        device=hospital.device,
    )
    if policy.noised_metrics is None:
        metrics = score(predict, task, patients) | _attacked_metrics(
            hospital, study, network, predict, patients
        )
        export.scores(hospital, study, act, model.sha256, "exact", metrics)
        return
    event = _metrics_event(policy.noised_metrics, policy.budget)
    charge = replace(act, event=event)
    paid = [c for c in hospital.ledger.charges(order.run) if c.purpose == act.purpose]
    if charge not in paid and len(paid) >= policy.noised_metrics.evaluations:
        export.scores(hospital, study, act, model.sha256, "withheld", {})
        return
    charged = hospital.ledger.reserve(charge, hospital.eligible.evaluation)
    hospital.ledger.start(charge)
    patients = tuple(patient for patient in patients if patient.pseudonym in charged)
    if not patients:
        raise Refused("everybody for whom this evaluation was charged has left")
    noise, _source = hospital.noise(f"{study.sha256} {order.round} metrics")
    metrics = noised_score(
        predict,
        task,
        patients,
        declared=policy.declared_evaluation,
        event=event,
        noise=noise,
    )
    export.scores(hospital, study, charge, model.sha256, "noised", metrics)


def _attacked_metrics(
    hospital: Hospital,
    study: Study,
    network: nn.Module,
    predict: Predict,
    patients: Sequence[Patient],
) -> dict[str, float]:
    """Return the metrics of attacked images, without those of single labels; none without an attack."""
    attack, task = study.evaluation.attack, build_task(study.task)
    if attack is None:
        return {}

    def predict_attacked(prepared: Prepared) -> Tensor:
        changed = inference.attacked_scan(
            network, task.loss, attack, study.preprocessing, study.network.divisor, prepared,
            hospital.device,
        )  # fmt: skip
        return predict(changed)

    found = score(predict_attacked, task, patients)
    return {f"attacked/{name}": value for name, value in found.items() if "/" not in name}


def _metrics_event(config: NoisedMetrics, budget: Budget) -> PrivacyEvent:
    """Return what one evaluation costs when all of a study's together may cost `config.epsilon`."""
    whole = Budget(epsilon=config.epsilon, delta=budget.delta)
    return PrivacyEvent(noise_for(whole, sampling_rate=1, steps=config.evaluations), 1.0, 1)


def tell(hospital: Hospital, order: Order, act: Charge, _: Progress) -> None:
    """Tell what the hospital's scans are like, as far as its policy lets it be known."""
    study, policy = order.study, hospital.policy
    statistics, declared = policy.statistics, policy.declared_patients
    if statistics == "withheld":
        export.survey(hospital, study, act, "withheld", {})
        return
    cohort = hospital.cohort(study)
    patients = (*cohort.training, *cohort.evaluation)
    if statistics.kind == "suppressed":
        told = survey.suppressed(patients, study.task, smallest=statistics.smallest)
        export.survey(hospital, study, act, "suppressed", told)
        return
    budget = Budget(epsilon=statistics.epsilon, delta=policy.budget.delta)
    event = PrivacyEvent(noise_for(budget, sampling_rate=1, steps=1), 1.0, 1)
    charge = replace(act, event=event)
    eligible = hospital.eligible
    charged = hospital.ledger.reserve(charge, eligible.training | eligible.evaluation)
    hospital.ledger.start(charge)
    noise, _source = hospital.noise(f"{study.sha256} {order.run} survey")
    patients = tuple(patient for patient in patients if patient.pseudonym in charged)
    told = survey.noised(patients, study.task, declared=declared, event=event, noise=noise)
    export.survey(hospital, study, charge, "noised", told)


_PHASES: Mapping[Phase, Callable[[Hospital, Order, Charge, Progress], None]] = {
    "survey": tell,
    "join": join,
    "contribute": contribute,
    "evaluate": evaluate,
}


@dataclass(frozen=True)
class GlobalModel:
    """A global model as the coordinator signed it."""

    sha256: str
    params: Params


def _global_model(hospital: Hospital, order: Order) -> GlobalModel:
    """Return the model to start from: the one after the round before, or the one to evaluate."""
    round = order.round - 1 if order.phase == "contribute" else order.round
    exchange = Exchange(order.exchange)
    data = exchange.statement(model_place(order.run, round))
    if data is None:
        raise Refused(f"the exchange holds no global model of round {round}")
    try:
        fields = verified(data, "coordinator", {"coordinator": order.coordinator})
        manifest = ModelManifest.model_validate(fields)
        named = (manifest.study_sha256, manifest.run, manifest.round)
        if named != (order.study.sha256, order.run, round):
            raise Refused("the global model's statement is of another study, run or round")
        path = hospital.stored("global", order.run, round)
        exchange.fetch_object(manifest.model_sha256, path, MODEL_BYTES)
        params = checkpoints.read(path, manifest.model_sha256)
        P.check_like(params, P.of(_network(order.study.network, order.study, CPU, None)))
        if not P.all_finite(params):
            raise CorruptCheckpoint("a value is NaN or infinite")
        return GlobalModel(manifest.model_sha256, params)
    except (BadSignature, ValueError, FileNotFoundError) as error:
        raise Refused(f"the global model of round {round} can't be trusted: {error}") from error


def _rehearse(hospital: Hospital, study: Study, network: nn.Module, mechanism: Mechanism | None) -> None:
    """Refuse a study that can't train soundly, on synthetic images and before anything is spent."""
    shape, labels = study.preprocessing.shape, len(study.task.labels)
    config = DistillationConfig(transfer="synthetic", steps=1, images=8, batch=2)
    images = transfer_images(config, shape, labels, study.seed_for(0, "", "rehearsal"))
    images = images[:4].to(hospital.device)
    target = _blank_targets(study, 4).to(hospital.device)
    teacher = study.distillation.teacher if study.distillation else None
    learner = _network(teacher, study, hospital.device, None) if teacher else network
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
    progress: Progress,
) -> Noise:
    """Move `network`, in place, to what leaves: itself trained, or the student of a teacher."""
    study, distillation = order.study, order.study.distillation
    if distillation is None:
        return _train(hospital, order, network, examples, mechanism, progress)
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
    noise = _train(hospital, order, teacher, examples, mechanism, progress)
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
    progress: Progress,
) -> Noise:
    study = order.study
    task, local_loss = build_task(study.task), study.strategy.build().local_loss
    config = study.training.in_round(order.round, study.rounds)
    progress("train", 0, config.steps)
    if mechanism is None:
        rng = torch.Generator().manual_seed(study.seed_for(order.round, hospital.name, "lots"))
        train_plainly(network, task, examples, config, rng, local_loss, progress)
        return "none"
    source, noise = hospital.noise(f"{study.sha256} {order.round}")
    before = _left_by(hospital, "clip", order, order.round - 1)
    if before:
        mechanism = mechanism.starting_at(float(before["norm"]))
    left = train_privately(network, task, examples, config, mechanism, source, local_loss, progress)
    if left is not mechanism:
        after = hospital.stored("clip", order.run, order.round)
        checkpoints.write(after, {"norm": torch.tensor(left.clip.norm)})
    return noise


def _own_teacher(hospital: Hospital, order: Order, config: NetworkConfig) -> nn.Module:
    """Return the hospital's own teacher as the round before left it; in the first round, a new one."""
    stored = _left_by(hospital, "teacher", order, order.round - 1)
    return _network(config, order.study, hospital.device, stored)


def _left_by(hospital: Hospital, kind: str, order: Order, round: int) -> Params | None:
    """Return what a round left in the hospital for the next, if that round is charged here.

    A file without a charge is of a round that a restored ledger has forgotten.
    """
    path = hospital.stored(kind, order.run, round)
    act = Charge(order.study.name, order.run, round, "contribute", event=None)
    if not path.exists() or not hospital.ledger.has_started(act):
        return None
    return checkpoints.StoredParams(path)


def _network(
    config: NetworkConfig, study: Study, device: torch.device, params: Params | None
) -> nn.Module:
    """Return a network with these parameters, or with first ones drawn from the study's seed."""
    with torch.random.fork_rng():
        torch.manual_seed(study.seed_for(0, "", f"first {config.name}"))
        network = config.build(study.task.dims, study.task.out_channels)
    if params is not None:
        P.load_into(network, params)
    return network.to(device)


def _with_local_layers(hospital: Hospital, order: Order, params: Params, round: int) -> Params:
    """Return `params` with the layers that this hospital keeps to itself, as a round left them."""
    return {**params, **(_left_by(hospital, "local", order, round) or {})}
