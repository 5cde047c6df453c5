"""What a hospital does when the coordinator asks: join a run, contribute to a round, evaluate.

Each act ends in exactly one signed statement in the exchange, and asking again lays down the same
bytes: the coordinator reads that statement and nothing else of the hospital.
"""

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field, ValidationError
from torch import nn

from models import checkpoints
from models import params as P
from models.checkpoints import CorruptCheckpoint
from models.config import Config
from models.networks import NetworkConfig
from models.objectives import build_task
from models.params import Params
from privacy.distillation import distil, transfer_images
from privacy.ledger import BudgetExceeded, Charge
from privacy.mechanisms import Mechanism, mechanism_for
from privacy.release import ModelManifest, Noise
from privacy.signing import BadSignature, verified
from sites import export
from sites.admission import admit
from sites.exchange import Exchange, model_place
from sites.hospital import Hospital
from sites.policy import Refused
from sites.scoring import score
from sites.study import Study
from sites.training import Examples, Progress, prepare, train_plainly, train_privately

log = logging.getLogger("wardround.site")

Phase = Literal["join", "contribute", "evaluate"]


class Order(Config):
    """What the coordinator asks of a hospital: public values only.

    Attributes:
        exchange: where to read the global model and to lay down the answer.
        coordinator: the coordinator's public key, pinned by the hospital on first contact.
    """

    phase: Phase
    study: Study
    run: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,99}$")]
    round: Annotated[int, Field(ge=0)]
    exchange: str
    coordinator: str


def carry_out(hospital: Hospital, order: Order, progress: Progress) -> None:
    """Do what the order asks and publish the one statement in which it ends.

    A refusal is such a statement too. An act that is on record already is published again, not
    done again.
    """
    study = order.study
    act = Charge(study.name, order.run, order.round, order.phase, "training", event=None)
    if hospital.ledger.file_of(act) is None:
        try:
            hospital.trust(order.coordinator)
            admit(hospital.policy, study)
            _PHASES[order.phase](hospital, order, act, progress)
        except (Refused, BudgetExceeded) as reason:
            log.warning("%s, round %d of %s: refused: %s", act.purpose, act.round, act.run, reason)
            export.refusal(hospital, study, act, str(reason))
    export.publish(hospital, Exchange(order.exchange), act)


def join(hospital: Hospital, order: Order, act: Charge, _: Progress) -> None:
    """Check that data and budget allow the run from end to end, and accept."""
    hospital.cohort(order.study.task)
    if mechanism := _mechanism(hospital, order.study):
        hospital.ledger.check_fits(act.patients, mechanism.event, times=order.study.rounds)
    export.acceptance(hospital, order.study, act)


def contribute(hospital: Hospital, order: Order, act: Charge, progress: Progress) -> None:
    """Train from the global model, distil, and release the change that the ledger has paid for."""
    study = order.study
    model = _global_model(hospital, order)
    mechanism = _mechanism(hospital, study)
    charge = replace(act, event=mechanism.event if mechanism else None)
    patients = hospital.cohort(study.task).training
    hospital.ledger.reserve(charge)
    hospital.ledger.start(charge)
    start = _with_local_layers(hospital, order, model.params, order.round - 1)
    network = _network(study.network, study, hospital.device, start)
    examples = prepare(patients, study.preprocessing, hospital.device)
    noise = _learn(hospital, order, network, examples, mechanism, progress)
    trained, strategy = P.of(network.cpu()), study.strategy.build()
    local = {name: trained[name] for name in trained if strategy.is_local(name)}
    if local:
        checkpoints.write(hospital.stored("local", order.run, order.round), local)
    change = strategy.shared(P.subtract(trained, start))
    export.release(hospital, study, charge, change, model.sha256, noise)


def evaluate(hospital: Hospital, order: Order, act: Charge, _: Progress) -> None:
    """Score a global model on patients who never train, as far as the policy lets it be known."""
    study, policy = order.study, hospital.policy
    model = _global_model(hospital, order)
    patients = hospital.cohort(study.task).evaluation
    metrics: dict[str, float] = {}
    if policy.metrics == "exact" and len(patients) >= policy.min_evaluation_patients:
        params = _with_local_layers(hospital, order, model.params, order.round)
        network = _network(study.network, study, hospital.device, params)
        task = build_task(study.task)
        metrics = score(network, task, study.network.divisor, patients, hospital.device)
    export.scores(hospital, study, act, model.sha256, metrics)


_PHASES: Mapping[Phase, Callable[[Hospital, Order, Charge, Progress], None]] = {
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
        exchange.fetch_object(manifest.model_sha256, path)
        return GlobalModel(manifest.model_sha256, checkpoints.read(path, manifest.model_sha256))
    except (BadSignature, ValidationError, CorruptCheckpoint, FileNotFoundError) as error:
        raise Refused(f"the global model of round {round} can't be trusted: {error}") from error


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
    teacher = copy.deepcopy(network)
    if distillation.teacher:
        teacher = _own_teacher(hospital, order, distillation.teacher)
        distil(network, teacher, images, distillation, rng)
    noise = _train(hospital, order, teacher, examples, mechanism, progress)
    checkpoints.write(hospital.stored("teacher", order.run, order.round), P.of(teacher))
    progress("distil", 0, distillation.steps)
    distil(teacher, network, images, distillation, rng)
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
    if mechanism is None:
        rng = torch.Generator().manual_seed(study.seed_for(order.round, hospital.name, "lots"))
        train_plainly(network, task, examples, study.training, rng, local_loss, progress)
        return "none"
    source, noise = hospital.noise(f"{study.sha256} {order.round}")
    train_privately(network, task, examples, study.training, mechanism, source, local_loss, progress)
    return noise


def _own_teacher(hospital: Hospital, order: Order, config: NetworkConfig) -> nn.Module:
    """Return the hospital's own teacher as the round before left it; in the first round, a new one."""
    study, path = order.study, hospital.stored("teacher", order.run, order.round - 1)
    stored = checkpoints.StoredParams(path) if path.exists() else None
    return _network(config, study, hospital.device, stored)


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
    path = hospital.stored("local", order.run, round)
    return {**params, **checkpoints.StoredParams(path)} if path.exists() else params
