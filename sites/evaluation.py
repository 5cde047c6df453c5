"""What a hospital tells of a model, and of its scans, as far as its policy lets it be known."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from models.objectives import build_task
from privacy.accounting import Budget, PrivacyEvent, noise_for
from privacy.ledger import Charge
from sites import export, inference, survey
from sites.cohort import Patient
from sites.hospital import Hospital
from sites.orders import Order, global_model, network_for, with_local_layers
from sites.policy import NoisedMetrics, Refused
from sites.preprocessing import Prepared
from sites.scoring import Predict, noised_score, score
from sites.study import Study
from sites.training import Progress


def evaluate(hospital: Hospital, order: Order, act: Charge, _: Progress) -> None:
    """Score a global model on patients who never train, as far as the policy lets it be known."""
    study, policy = order.study, hospital.policy
    model = global_model(hospital, order)
    patients = hospital.cohort(study).evaluation
    if policy.metrics == "withheld" or len(patients) < policy.min_evaluation_patients:
        export.scores(hospital, study, act, model.sha256, "withheld", {})
        return
    params = with_local_layers(hospital, order, model.params, order.round)
    network = network_for(study.network, study, hospital.device, params)
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
