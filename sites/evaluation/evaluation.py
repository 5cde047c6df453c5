"""Publication of a hospital's scores of a model and of its survey, as far as its policy allows."""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from models.objectives import build_task
from models.spans import span, spanned
from privacy.accounting import Budget, PrivacyEvent, noise_for
from privacy.ledger import Charge
from sites import export, inference
from sites.admission.admission import has_enough_surveys, teacher_for
from sites.admission.approvals import check_join
from sites.cohort import Patient
from sites.evaluation import survey
from sites.evaluation.scoring import (
    bounded_rows,
    coarse,
    intervals,
    kept,
    noised_score,
    score,
    worst_case,
)
from sites.hospital import Hospital
from sites.imaging.preprocessing import Prepared
from sites.inference import predictor
from sites.local_models import (
    GlobalModel,
    fits,
    global_model,
    network_for,
    released_model,
    stored_params,
    with_local_layers,
)
from sites.orders import Order, check_in_time
from sites.policy.policy import NoisedMetrics
from sites.progress import Progress
from sites.secure_sum.masked_figures import SummedFigures
from sites.study import Study


def evaluate(hospital: Hospital, order: Order, act: Charge, _: Progress) -> None:
    """Score a global model on patients who never train; publish as much as the policy allows."""
    study, policy = order.study, hospital.policy
    check_join(hospital, study, order.run)
    with span("fetch"):
        model = global_model(hospital, order)
    if policy.metrics == "withheld" or _has_few(hospital):
        export.scores(hospital, study, act, model, "withheld", {})
        return
    if study.evaluation.summed:
        _score_summed(hospital, order, act, model)
        return
    with span("load"):
        patients = hospital.cohort(study).evaluation
    if policy.noised_metrics is None:
        metrics = _exact_metrics(hospital, order, model, patients)
        export.scores(hospital, study, act, model, "exact", metrics)
    else:
        _score_noised(hospital, order, act, model, patients, policy.noised_metrics)


def _network_of(hospital: Hospital, order: Order, model: GlobalModel) -> nn.Module:
    """Return the network that evaluates a global model: with this hospital's local layers, if any."""
    params = with_local_layers(hospital, order, model.params, order.round)
    return network_for(order.study.network, order.study, hospital.device, params)


@spanned("evaluate")
def _exact_metrics(
    hospital: Hospital, order: Order, model: GlobalModel, patients: Sequence[Patient]
) -> dict[str, float]:
    study, task = order.study, build_task(order.study.task)
    network = _network_of(hospital, order, model)
    outcomes = kept(predictor(network, study, study.network, hospital.device), task, patients)
    seed = _secret_seed(hospital, f"{order.run} {order.round} intervals")
    metrics = task.over_patients(outcomes) | intervals(task, outcomes, seed)
    if hospital.policy.worst_case == "tell":
        metrics |= worst_case(outcomes)
    metrics |= _attacked_metrics(hospital, study, network, patients)
    metrics |= _local_metrics(hospital, order, patients)
    return coarse(metrics, study.task, hospital.policy.declared_evaluation)


def _score_noised(
    hospital: Hospital,
    order: Order,
    act: Charge,
    model: GlobalModel,
    patients: Sequence[Patient],
    config: NoisedMetrics,
) -> None:
    """Charge one evaluation and publish its noised metrics; after the last one they are withheld."""
    study = order.study
    limit = Budget(epsilon=config.epsilon, delta=hospital.policy.budget.delta)
    event = PrivacyEvent(noise_for(limit, sampling_rate=1, steps=config.evaluations), 1.0, 1)
    charge = replace(act, event=event)
    paid = [c for c in hospital.ledger.charges(order.run) if c.purpose == act.purpose]
    if charge not in paid and len(paid) >= config.evaluations:
        export.scores(hospital, study, act, model, "withheld", {})
        return
    check_in_time(order)
    charged = hospital.ledger.reserve(charge, hospital.eligible.evaluation, limit)
    hospital.ledger.start(charge)
    patients = tuple(patient for patient in patients if patient.pseudonym in charged)
    noise, _source = hospital.noise(f"{study.sha256} {order.round} metrics")
    network = _network_of(hospital, order, model)
    metrics = noised_score(
        predictor(network, study, study.network, hospital.device),
        build_task(study.task),
        patients,
        declared=hospital.policy.declared_evaluation,
        event=event,
        noise=noise,
    )
    export.scores(hospital, study, charge, model, "noised", metrics)


def _score_summed(hospital: Hospital, order: Order, act: Charge, model: GlobalModel) -> None:
    """Charge one evaluation, and publish masked sums of the metrics with a share of their noise."""
    study, task = order.study, build_task(order.study.task)

    def rows(charged: frozenset[str]) -> NDArray[np.float64]:
        patients = [p for p in hospital.cohort(study).evaluation if p.pseudonym in charged]
        predict = predictor(_network_of(hospital, order, model), study, study.network, hospital.device)
        return bounded_rows(predict, task, patients)

    count = len(task.bounded([]))
    figures = SummedFigures(hospital, order, count**0.5, count)
    charge, masked, vector = figures.hidden(act, hospital.eligible.evaluation, rows)
    export.scores(hospital, study, charge, model, "summed", {}, masked, vector)


def compare(hospital: Hospital, order: Order, act: Charge, _: Progress) -> None:
    """Score the released models of other hospitals and of this one on patients who never train."""
    study, policy = order.study, hospital.policy
    check_join(hospital, study, order.run)
    if policy.cross_site == "refuse" or policy.metrics != "exact" or _has_few(hospital):
        export.comparison(hospital, study, act, {}, {})
        return
    patients = hospital.cohort(study).evaluation
    task, models, metrics = build_task(study.task), {}, {}
    for site in order.models:
        model = released_model(hospital, order, site)
        network = network_for(study.network, study, hospital.device, model.params)
        found = score(predictor(network, study, study.network, hospital.device), task, patients)
        models[site] = model.sha256
        overall = {name: value for name, value in found.items() if "/" not in name}
        metrics[site] = coarse(overall, study.task, policy.declared_evaluation)
    export.comparison(hospital, study, act, models, metrics)


def _has_few(hospital: Hospital) -> bool:
    """Return whether fewer evaluation patients are listed than the policy's `min_evaluation_patients`.

    Those without a usable scan count: whether metrics are withheld must not depend on what scans show.
    """
    return len(hospital.eligible.evaluation) < hospital.policy.min_evaluation_patients


def _secret_seed(hospital: Hospital, purpose: str) -> int:
    """Return a seed that only this hospital can compute."""
    return int.from_bytes(hmac.digest(hospital.pseudonym_key, purpose.encode(), "sha256")[:8])


def _attacked_metrics(
    hospital: Hospital, study: Study, network: nn.Module, patients: Sequence[Patient]
) -> dict[str, float]:
    """Return the metrics of attacked images, without those of single labels; empty without an attack."""
    attack, task = study.evaluation.attack, build_task(study.task)
    if attack is None:
        return {}
    predict = predictor(network, study, study.network, hospital.device)
    divisors = study.network.divisors(study.task.dims)

    def predict_attacked(prepared: Prepared) -> Tensor:
        changed = inference.attacked_scan(
            network, task.loss, attack, study.preprocessing, divisors, prepared, hospital.device,
        )  # fmt: skip
        return predict(changed)

    return _overall("attacked", score(predict_attacked, task, patients))


def _local_metrics(hospital: Hospital, order: Order, patients: Sequence[Patient]) -> dict[str, float]:
    """Return the metrics of models that the round stored here: teacher and student, if the study asks.

    Those of a personal model are published only in a study without privacy: no budget is charged for it.
    """
    study = order.study
    kinds = ["teacher", "student"] if study.evaluation.teachers else []
    if study.privacy.mode == "none":
        kinds.append("personal")
    metrics: dict[str, float] = {}
    for kind in kinds:
        metrics |= _overall(kind, _metrics_of(hospital, order, kind, patients))
    return metrics


def _metrics_of(
    hospital: Hospital, order: Order, kind: str, patients: Sequence[Patient]
) -> dict[str, float]:
    """Return the metrics of a network that the round stored at this hospital; empty if there is none."""
    study, exactly = order.study, kind != "personal"
    params = stored_params(hospital, kind, order, order.round, exactly=exactly)
    own = teacher_for(hospital.policy, study) if kind == "teacher" else None
    config = own or study.network
    if params is None or not fits(params, config, study):
        return {}
    network = network_for(config, study, hospital.device, params)
    predict = predictor(network, study, config, hospital.device)
    return score(predict, build_task(study.task), patients)


def _overall(kind: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{kind}/{name}": value for name, value in metrics.items() if "/" not in name}


def tell(hospital: Hospital, order: Order, act: Charge, _: Progress) -> None:
    """Publish the survey of the hospital's scans, as far as its policy allows."""
    study, policy = order.study, hospital.policy
    statistics, declared = policy.statistics, policy.declared_patients
    if study.survey:
        _tell_summed(hospital, order, act)
        return
    if statistics == "withheld":
        export.survey(hospital, study, act, "withheld", {})
        return
    if statistics.kind == "noised" and has_enough_surveys(hospital, act, statistics):
        export.survey(hospital, study, act, "withheld", {})
        return
    cohort = hospital.cohort(study)
    patients = tuple(p for p in (*cohort.training, *cohort.evaluation) if p.scans)
    if statistics.kind == "suppressed":
        shares = survey.suppressed(patients, study.task, smallest=statistics.smallest)
        export.survey(hospital, study, act, "suppressed", shares)
        return
    budget = Budget(epsilon=statistics.epsilon, delta=policy.budget.delta)
    event = PrivacyEvent(noise_for(budget, sampling_rate=1, steps=1), 1.0, 1)
    charge = replace(act, event=event)
    eligible = hospital.eligible
    check_in_time(order)
    charged = hospital.ledger.reserve(charge, eligible.training | eligible.evaluation, budget)
    hospital.ledger.start(charge)
    noise, _source = hospital.noise(f"{study.sha256} {order.run} survey")
    patients = tuple(patient for patient in patients if patient.pseudonym in charged)
    shares = survey.noised(patients, study.task, declared=declared, event=event, noise=noise)
    export.survey(hospital, study, charge, "noised", shares)


def _tell_summed(hospital: Hospital, order: Order, act: Charge) -> None:
    """Charge one survey, and publish masked sums of its histograms with a share of their noise."""
    study = order.study

    def rows(charged: frozenset[str]) -> NDArray[np.float64]:
        cohort = hospital.cohort(study)
        patients = [p for p in (*cohort.training, *cohort.evaluation) if p.scans]
        return survey.rows_of([p for p in patients if p.pseudonym in charged], study.task)

    eligible = hospital.eligible.training | hospital.eligible.evaluation
    count = sum(survey.bins(study.task).values())
    figures = SummedFigures(hospital, order, survey.sensitivity(study.task), count)
    charge, masked, vector = figures.hidden(act, eligible, rows)
    export.survey(hospital, study, charge, "summed", {}, masked, vector)
