"""Audit of a run's models at a hospital, as far as its policy asks for one.

The report stays in the hospital's `state/audits/`. What leaves is the AUC of one attack with noise,
which the ledger is charged for, and where models are compared the share of evaluation patients whose
hospital the models' outputs give away.
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models import params as P
from models.checkpoints import StoredParams
from models.config import Config
from models.files import write_atomically
from models.objectives import build_task
from models.params import Params
from privacy.accounting import Budget, PrivacyEvent, epsilon, most_found, noise_for
from privacy.eight_bits import EightBits
from privacy.ledger import Charge
from privacy.noise.noised import noised_sums, to_grid
from privacy.statements import ReleaseManifest
from sites import export
from sites.admission.admission import mechanism_for_study, training_for
from sites.admission.approvals import check_join
from sites.admission.resources import exclusive_device
from sites.audit.membership import AttackResult, Model, attacks, ranks_of_members
from sites.audit.one_run import OneRun, one_run
from sites.audit.provenance import own_share
from sites.audit.twins import Twins
from sites.cohort import Cohort
from sites.evaluation.scoring import WITHIN
from sites.hospital import Hospital
from sites.local_models import (
    GlobalModel,
    fits,
    global_model,
    released_model,
    stored_params,
    with_local_layers,
)
from sites.orders import Order, check_in_time
from sites.policy.policy import AuditConfig
from sites.progress import Progress
from sites.training.examples import prepare

log = logging.getLogger("wardround.site")

NAME = "mia_auc"
"""The published AUC of the membership attack by the calibrated loss."""
FALSE_ALARMS = 0.05


class HospitalAudit(Config):
    """The report of an audit at a hospital. It is of single patients and stays there.

    Attributes:
        round: the round whose global model was attacked, by the hospital's own patients.
        settings: the reduced setting of the attacks.
        epsilon, delta: what the run was charged here; None without privacy.
        most_found: the largest share of its patients that any attack could find at 5 % of false alarms,
            by what was charged; None without privacy.
        attacks: what each attack on each model found.
        one_run: the audit of one private training by canaries; None without privacy, where hospitals
            share the noise, or without canaries.
    """

    study: str
    run: str
    round: int
    at_ms: int
    settings: AuditConfig
    epsilon: float | None
    delta: float | None
    most_found: float | None
    attacks: tuple[AttackResult, ...]
    one_run: OneRun | None
    seconds: float


def report_path(hospital: Hospital, run: str, round: int) -> Path:
    """Return the path of the report on a round's models."""
    return hospital.state / "audits" / f"{run}-{round:03d}.json"


def reports(hospital: Hospital) -> list[HospitalAudit]:
    """Return the reports of all audits at this hospital, the newest last."""
    paths = (hospital.state / "audits").glob("*.json")
    found = [HospitalAudit.model_validate_json(path.read_bytes()) for path in paths]
    return sorted(found, key=lambda each: each.at_ms)


def audit(hospital: Hospital, order: Order, act: Charge, progress: Progress) -> None:
    """Attack the run's models, store the report here, and publish as much as the policy allows."""
    policy, study = hospital.policy.audit, order.study
    check_join(hospital, study, order.run)
    model = global_model(hospital, order)
    few = len(hospital.eligible.evaluation) < hospital.policy.min_evaluation_patients
    if policy == "withheld" or few:
        export.audit_figures(hospital, study, act, model, {})
        return
    limit = Budget(epsilon=policy.epsilon, delta=hospital.policy.budget.delta)
    event = PrivacyEvent(noise_for(limit, sampling_rate=1, steps=1), 1.0, 1)
    charge = Charge(act.study, act.run, act.round, act.purpose, event)
    if not hospital.ledger.has_started(charge):
        hospital.ledger.check_fits(hospital.eligible.training, event, times=1)
    cohort = hospital.cohort(study)
    evaluation = [patient for patient in cohort.evaluation if patient.scans]
    with exclusive_device(hospital.policy.device):
        check_in_time(order)
        path = report_path(hospital, order.run, order.round)
        if not path.exists():
            report = _audited(hospital, order, model, cohort, policy, progress)
            write_atomically(path, report.model_dump_json(indent=1).encode())
    check_in_time(order)
    charged = hospital.ledger.reserve(charge, hospital.eligible.training, limit)
    hospital.ledger.start(charge)
    members = [patient for patient in cohort.training if patient.pseudonym in charged]
    figures = _noised_auc(hospital, order, model, [*members, *evaluation], len(members), event)
    if order.models and study.task.kind != "regression":
        models = {site: released_model(hospital, order, site).params for site in order.models}
        found = own_share(study, models, hospital.name, evaluation, hospital.device)
        declared = hospital.policy.declared_evaluation
        figures["provenance"] = round(found * declared) / declared
    export.audit_figures(hospital, study, charge, model, figures)


def _noised_auc(
    hospital: Hospital,
    order: Order,
    model: GlobalModel,
    patients: Sequence,  # type: ignore[type-arg]
    members: int,
    event: PrivacyEvent,
) -> dict[str, float]:
    """Return the AUC of the calibrated loss attack on the global model with noise, and its interval.

    A member's rank among the others is between 0 and 1. What exceeds 1/2 and what falls short of it are
    summed apart, so that a member moves the two sums by at most 1 in L2, and one who is missing counts
    as a guess.
    """
    twins = _twins(hospital, order, _start(hospital, order).params, patients)
    seen, after = twins.seen(), twins.network(_own(hospital, order, model))
    fell = twins.losses_of(twins.network(), seen) - twins.losses_of(after, seen)
    trained = np.arange(len(patients)) < members
    ranks = ranks_of_members(fell, trained) - 0.5
    rows = np.stack([np.maximum(ranks, 0), np.maximum(-ranks, 0)], 1) * 2
    noise, _source = hospital.noise(f"{order.study.sha256} {order.round} audit")
    declared = hospital.policy.declared_training
    above, below = noised_sums(rows, event, 1.0, noise).means(declared)
    auc = 0.5 + (above - below) / 2
    deviation = event.noise_multiplier / declared / 2**0.5
    return {
        NAME: to_grid(auc),
        f"low/{NAME}": to_grid(auc - WITHIN * deviation),
        f"high/{NAME}": to_grid(auc + WITHIN * deviation),
    }


def _audited(
    hospital: Hospital,
    order: Order,
    model: GlobalModel,
    cohort: Cohort,
    policy: AuditConfig,
    progress: Progress,
) -> HospitalAudit:
    """Return the report of all attacks on the run's models and their twins."""
    started, study = time.monotonic(), order.study
    patients = [*cohort.training, *(patient for patient in cohort.evaluation if patient.scans)]
    trained = np.arange(len(patients)) < len(cohort.training)
    start = _start(hospital, order)
    twins = _twins(hospital, order, start.params, patients, start.rate, policy.plain_steps)
    rng = np.random.default_rng()
    progress("audit", 0, 2)
    found = tuple(attacks(twins, _models(hospital, order, model), trained, policy.shadows, rng))
    progress("audit", 1, 2)
    watched = _one_run(twins, cohort, policy, rng)
    progress("audit", 2, 2)
    claimed = _claimed(hospital, order)
    return HospitalAudit(
        study=study.name,
        run=order.run,
        round=order.round,
        at_ms=int(time.time() * 1000),
        settings=policy,
        epsilon=claimed[0],
        delta=claimed[1],
        most_found=claimed[2],
        attacks=found,
        one_run=watched,
        seconds=round(time.monotonic() - started, 1),
    )


def _twins(
    hospital: Hospital,
    order: Order,
    start: Params,
    patients: Sequence,  # type: ignore[type-arg]
    rate: float | None = None,
    plain_steps: int = 1,
) -> Twins:
    study = order.study
    own = training_for(hospital.policy, study)
    own = own.at_rate(rate)
    rounds = (
        [] if own.lr == "auto" else [own.in_round(k, study.rounds) for k in range(1, study.rounds + 1)]
    )
    alone = None if study.shares_noise else mechanism_for_study(hospital.policy, study)
    return Twins(study, start, rounds, alone, patients, plain_steps, hospital.device)


def _start(hospital: Hospital, order: Order) -> GlobalModel:
    """Return the run's model before training, which no patient has trained."""
    return global_model(hospital, order.model_copy(update={"round": 0, "phase": "evaluate"}))


def _own(hospital: Hospital, order: Order, model: GlobalModel) -> Params:
    return with_local_layers(hospital, order, model.params, order.round)


def _models(hospital: Hospital, order: Order, model: GlobalModel) -> dict[Model, Params]:
    """Return the models of the round that this hospital's patients trained, as far as they are here."""
    study, found = order.study, dict[Model, Params]()
    found["global"] = _own(hospital, order, model)
    released = _released(hospital, order)
    if released is not None:
        found["released"] = released
    teacher = stored_params(hospital, "teacher", order, order.round, exactly=True)
    if teacher is not None and fits(teacher, study.network, study):
        found["teacher"] = teacher
    return found


def _released(hospital: Hospital, order: Order) -> Params | None:
    """Return the model that this hospital released in the round: its base with its own change alone."""
    study = order.study
    act = Charge(study.name, order.run, order.round, "contribute", None)
    sha256 = hospital.ledger.file_of(act)
    if sha256 is None or study.is_summed:
        return None
    statement = export.statement_of(hospital, act)[0]
    if not isinstance(statement, ReleaseManifest) or statement.content not in ("weights", "student"):
        return None
    base_order = order.model_copy(update={"round": order.round - 1, "phase": "evaluate"})
    base = global_model(hospital, base_order).params
    stored = StoredParams(hospital.outbox.tensors(statement.payload_sha256))
    change = EightBits(stored) if study.release_bits == 8 else stored
    shared = P.add(study.bound_strategy().shared(base), change)
    return with_local_layers(hospital, order, {**base, **shared}, order.round)


def _one_run(
    twins: Twins, cohort: Cohort, policy: AuditConfig, rng: np.random.Generator
) -> OneRun | None:
    study = twins.study
    if twins.mechanism is None or study.privacy.mode == "none" or not policy.canaries:
        return None
    seed = int(rng.integers(2**31))
    examples = prepare(cohort.training, study.preprocessing, twins.device, seed)
    task = build_task(study.task)
    return one_run(
        twins.network(), task, examples, twins.rounds, twins.mechanism, study.privacy.delta,
        policy.canaries, rng,
    )  # fmt: skip


def _claimed(hospital: Hospital, order: Order) -> tuple[float | None, float | None, float | None]:
    """Return the epsilon, delta, and the most that any attack can find, by the charges of the run."""
    privacy = order.study.privacy
    if privacy.mode == "none":
        return None, None, None
    events = [
        charge.event
        for charge in hospital.ledger.charges(order.run)
        if charge.event and charge.purpose.startswith("contribute")
    ]
    spent = epsilon(events, privacy.delta, hospital.ledger.rule)
    return spent, privacy.delta, most_found(events, privacy.delta, FALSE_ALARMS)
