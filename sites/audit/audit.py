"""Audit of a run's models at a hospital, as far as its policy asks for one.

The report stays in the hospital's `state/audits/`. What leaves is the AUC of one attack with noise,
which the ledger is charged for, and where models are compared the share of evaluation patients whose
hospital the models' outputs give away.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models import params as P
from models.checkpoints import StoredParams
from models.config import Config
from models.files import private_folder, write_atomically
from models.objectives import build_task
from models.params import Params
from privacy.accounting import Budget, PrivacyEvent, epsilon, most_found, noise_for
from privacy.audit.published import NAME, half_interval
from privacy.eight_bits import EightBits
from privacy.ledger import Charge
from privacy.ledger_book import is_kind
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
from sites.cohort import Patient
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
from sites.policy.policy import AuditConfig, Refused
from sites.progress import Progress
from sites.study import Study
from sites.training.examples import prepare

log = logging.getLogger("wardround.site")

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
    """Attack the run's models, store the report here, and publish as much as the policy allows.

    The charge stands before any scan is looked at, and from then on no scan decides whether there is an
    answer.
    """
    policy, study = hospital.policy.audit, order.study
    check_join(hospital, study, order.run)
    _check_trained(hospital, order)
    model = global_model(hospital, order)
    start = global_model(hospital, order.model_copy(update={"round": 0, "phase": "evaluate"}))
    released = _compared(hospital, order)
    few = len(hospital.eligible.evaluation) < hospital.policy.min_evaluation_patients
    if policy == "withheld" or few:
        export.audit_figures(hospital, study, act, model, {})
        return
    with exclusive_device(hospital.policy.device):
        check_in_time(order)
        limit = Budget(epsilon=policy.epsilon, delta=hospital.policy.budget.delta)
        charge = _charge(hospital, act, limit)
        charged = hospital.ledger.reserve(charge, hospital.eligible.training, limit)
        hospital.ledger.start(charge)
        cohort = hospital.cohort(study)
        members = tuple(patient for patient in cohort.training if patient.pseudonym in charged)
        evaluation = tuple(patient for patient in cohort.evaluation if patient.scans)
        audited = _Audited(hospital, order, start, model, members, evaluation)
        audited.report(policy, progress)
        figures = audited.noised_auc(charge)
        if released:
            found = own_share(study, released, hospital.name, evaluation, hospital.device)
            declared = hospital.policy.declared_evaluation
            figures["provenance"] = round(found * declared) / declared
    export.audit_figures(hospital, study, charge, model, figures)


def _check_trained(hospital: Hospital, order: Order) -> None:
    """Raise `Refused` unless this hospital trained in the run: an audit is of models of its own.

    So nobody can spend budgets on audits of runs that are made up.
    """
    rounds = range(1, order.round + 1)
    if not any(hospital.ledger.has_ended(order.run, k, "contribute") for k in rounds):
        raise Refused("this hospital has trained no model of this run")


def _charge(hospital: Hospital, act: Charge, limit: Budget) -> Charge:
    """Return the charge of an audit: the one that stands, whatever the policy now says, or a new one."""
    for standing in hospital.ledger.charges(act.run):
        if standing.is_same_act(act):
            return standing
    return replace(act, event=PrivacyEvent(noise_for(limit, sampling_rate=1, steps=1), 1.0, 1))


def _compared(hospital: Hospital, order: Order) -> dict[str, Params]:
    """Return the released models by which scans may be told apart; none where this hospital refuses."""
    allows = hospital.policy.cross_site == "allow" and order.study.task.kind != "regression"
    if not allows or hospital.name not in order.models or len(order.models) < 2:
        return {}
    return {site: released_model(hospital, order, site).params for site in order.models}


@dataclass(frozen=True)
class _Audited:
    """What is audited: a run's models, and this hospital's patients who trained and who evaluate."""

    hospital: Hospital
    order: Order
    start: GlobalModel
    model: GlobalModel
    members: Sequence[Patient]
    evaluation: Sequence[Patient]

    @property
    def study(self) -> Study:
        """The order's study."""
        return self.order.study

    @property
    def trained(self) -> NDArray[np.bool_]:
        """Which of the twins' patients trained the run's models."""
        return np.arange(len(self.members) + len(self.evaluation)) < len(self.members)

    def twins(self, plain_steps: int = 1) -> Twins:
        """Return what twins of this hospital's training are made of."""
        study, policy = self.study, self.hospital.policy
        own = training_for(policy, study).at_rate(self.start.rate)
        rounds = [own.in_round(k, study.rounds) for k in range(1, study.rounds + 1)]
        alone = None if study.shares_noise else mechanism_for_study(policy, study)
        patients = (*self.members, *self.evaluation)
        return Twins(
            study, self.start.params, rounds, alone, patients, plain_steps, self.hospital.device
        )

    def noised_auc(self, charge: Charge) -> dict[str, float]:
        """Return the AUC of the calibrated loss attack on the global model, noised, and its interval.

        A member's rank among the others is between 0 and 1, and depends on that member, the others and
        the two global models alone. What exceeds 1/2 and what falls short of it are summed apart, so
        that a member moves the two sums by at most 1 in L2, and one who is missing counts as a guess.
        """
        event, twins = charge.event, self.twins()
        if event is None:
            raise ValueError("Expected a charge with an event.")
        seen, after = twins.seen(), twins.network(self.model.params)
        fell = twins.losses_of(twins.network(), seen) - twins.losses_of(after, seen)
        ranks = ranks_of_members(fell, self.trained) - 0.5
        rows = np.stack([np.maximum(ranks, 0), np.maximum(-ranks, 0)], 1) * 2
        noise, _source = self.hospital.noise(f"{self.study.sha256} {self.order.round} audit")
        declared = self.hospital.policy.declared_training
        above, below = noised_sums(rows, event, 1.0, noise).means(declared)
        auc, half = 0.5 + (above - below) / 2, half_interval(event.noise_multiplier, declared)
        ends = {f"low/{NAME}": to_grid(auc - half), f"high/{NAME}": to_grid(auc + half)}
        return {NAME: to_grid(auc), **ends}

    def report(self, policy: AuditConfig, progress: Progress) -> None:
        """Make the report of all attacks and store it here, once; what fails is only logged."""
        path = report_path(self.hospital, self.order.run, self.order.round)
        if path.exists():
            return
        try:
            report = _audited(self, policy, progress)
            private_folder(path.parent)
            write_atomically(path, report.model_dump_json(indent=1).encode())
        except Exception as error:  # an error that ends the audit could be seen from outside
            log.warning("the audit's report can't be made: %s", type(error).__name__)


def _audited(audited: _Audited, policy: AuditConfig, progress: Progress) -> HospitalAudit:
    """Return the report of all attacks on the run's models and their twins."""
    started, order = time.monotonic(), audited.order
    twins, rng = audited.twins(policy.plain_steps), np.random.default_rng()
    progress("audit", 0, 2)
    models = _models(audited.hospital, order, audited.model)
    found = tuple(attacks(twins, models, audited.trained, policy.shadows, rng))
    progress("audit", 1, 2)
    watched = _one_run(twins, audited.members, policy, rng)
    progress("audit", 2, 2)
    claimed = _claimed(audited.hospital, order)
    return HospitalAudit(
        study=order.study.name,
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


def _models(hospital: Hospital, order: Order, model: GlobalModel) -> dict[Model, Params]:
    """Return the models of the round that this hospital's patients trained, as far as they are here."""
    study, found = order.study, dict[Model, Params]()
    found["global"] = with_local_layers(hospital, order, model.params, order.round)
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
    twins: Twins, members: Sequence[Patient], policy: AuditConfig, rng: np.random.Generator
) -> OneRun | None:
    study = twins.study
    if twins.mechanism is None or study.privacy.mode == "none" or not policy.canaries:
        return None
    seed = int(rng.integers(2**31))
    examples = prepare(members, study.preprocessing, twins.device, seed)
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
        if charge.event and is_kind(charge.purpose, "contribute")
    ]
    spent = epsilon(events, privacy.delta, hospital.ledger.rule)
    return spent, privacy.delta, most_found(events, privacy.delta, FALSE_ALARMS)
