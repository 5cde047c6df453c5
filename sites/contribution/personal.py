"""Personal model of a hospital, which the strategy pulls towards the global model.

It trains without noise, also in a study with privacy. So it is updated only after the statement of its
act is published: in a study with privacy, nothing that leaves the hospital depends on it.

Source: Li et al. 2021, Ditto: Fair and Robust Federated Learning Through Personalization,
https://arxiv.org/abs/2012.04221.
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
    """Train or score the personal model after an act is published; errors are only logged."""
    loss = order.study.strategy.build().personal_loss
    if loss is None:
        return
    try:
        if order.phase == "contribute":
            _train(hospital, order, loss)
        elif order.phase == "evaluate":
            _store_scores(hospital, order)
    except Exception as error:
        log.warning(
            "updating the personal model of round %d failed: %s", order.round, type(error).__name__
        )


def _train(hospital: Hospital, order: Order, loss: LocalLoss) -> None:
    """Train the personal model of a round from the newest earlier one, or from the global model."""
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


def _store_scores(hospital: Hospital, order: Order) -> None:
    """Store the metrics of the personal and the global model, for the hospital's own use."""
    study, patients = order.study, hospital.cohort(order.study).evaluation
    own = stored_params(hospital, "personal", order, order.round)
    if not patients or own is None:
        return
    task, common = build_task(study.task), global_model(hospital, order).params

    def metrics_of(params: Params) -> dict[str, float]:
        network = network_for(study.network, study, hospital.device, params)
        return score(predictor(network, study, study.network, hospital.device), task, patients)

    scored = {"study": study.name, "round": order.round}
    scores = {**scored, "global": metrics_of(common), "personal": metrics_of(own)}
    write_atomically(hospital.scored(order.run, order.round), json.dumps(scores).encode())
