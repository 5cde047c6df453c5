"""A hospital's personal model, which the strategy draws to the global one (Ditto, Li et al. 2021).

It trains without noise, also in a study with privacy. So it is worked on only after the act it belongs
to has ended and is published: whatever happens here, nothing that leaves the hospital depends on it.
"""

import json
import logging

import torch

from models import checkpoints
from models import params as P
from models.files import write_atomically
from models.objectives import build_task
from models.params import Params
from models.strategies import LocalLoss
from sites.admission.admission import training_for
from sites.evaluation.scoring import score
from sites.hospital import Hospital
from sites.inference import predictor
from sites.local_models import global_model, network_for, stored_params
from sites.orders import Order
from sites.progress import ignore_progress
from sites.training.examples import prepare
from sites.training.sgd import train_plainly

log = logging.getLogger("wardround.site")


def update_personal_model(hospital: Hospital, order: Order) -> None:
    """Do the personal part of an act that is published; a fault is the hospital's own affair."""
    loss = order.study.strategy.build().personal_loss
    if loss is None:
        return
    try:
        if order.phase == "contribute":
            _train(hospital, order, loss)
        elif order.phase == "evaluate":
            _note(hospital, order)
    except Exception as error:
        log.warning("the personal model of round %d: %s", order.round, type(error).__name__)


def _train(hospital: Hospital, order: Order, loss: LocalLoss) -> None:
    """Train the personal model of a round from the one before; in the first, from the global one."""
    study, kept = order.study, hospital.stored("personal", order.run, order.round)
    if kept.exists():
        return
    model = global_model(hospital, order)
    base = {name: model.params[name].to(hospital.device) for name in model.params}
    start = stored_params(hospital, "personal", order, order.round - 1) or base
    network = network_for(study.network, study, hospital.device, start)
    seed = study.seed_for(order.round, hospital.name, "personal")
    patients = hospital.cohort(study).training
    examples = prepare(patients, study.preprocessing, hospital.device, seed)
    config = training_for(hospital.policy, study).in_round(order.round, study.rounds)
    rng, task = torch.Generator().manual_seed(seed), build_task(study.task)
    train_plainly(network, task, examples, config, rng, lambda own, _: loss(own, base), ignore_progress)
    if P.all_finite(P.of(network)):
        checkpoints.write(kept, P.of(network))


def _note(hospital: Hospital, order: Order) -> None:
    """Note how the personal model does beside the global one, for the hospital alone."""
    study, patients = order.study, hospital.cohort(order.study).evaluation
    own = stored_params(hospital, "personal", order, order.round)
    if not patients or own is None:
        return
    task, common = build_task(study.task), global_model(hospital, order).params

    def figures(params: Params) -> dict[str, float]:
        network = network_for(study.network, study, hospital.device, params)
        return score(predictor(network, study, study.network, hospital.device), task, patients)

    scored = {"study": study.name, "round": order.round}
    told = {**scored, "global": figures(common), "personal": figures(own)}
    write_atomically(hospital.scored(order.run, order.round), json.dumps(told).encode())
