"""Which metrics and statistics a study sums over hospitals, what that costs, and who takes no part."""

from functools import lru_cache

from privacy.accounting import Budget, PrivacyEvent, epsilon, noise_for
from privacy.ledger import Charge
from privacy.noise.noised import SharedSums
from sites.admission.admission import check_shared_noise, has_enough_surveys
from sites.exchange.phases import SumKind
from sites.hospital import Hospital
from sites.orders import Order
from sites.policy.policy import Refused
from sites.study import Study


@lru_cache(maxsize=64)
def _event(most: float, delta: float, steps: int) -> PrivacyEvent:
    budget = Budget(epsilon=most, delta=delta)
    return PrivacyEvent(noise_for(budget, sampling_rate=1, steps=steps), 1.0, 1)


def budget_of(study: Study, kind: SumKind) -> Budget:
    """Return what all sums of a kind may cost a patient in a run.

    Raises:
        ValueError: the study has no such sum.
    """
    config = study.evaluation.summed if kind == "metrics" else study.survey
    if config is None or study.privacy.mode == "none":
        raise ValueError(f"The study has no sum of {kind}.")
    return Budget(epsilon=config.epsilon, delta=study.privacy.delta)


def times_of(study: Study, kind: SumKind, since: int = 0) -> int:
    """Return how many sums of a kind a run has from a round on."""
    if kind == "survey":
        return 1
    return sum(study.is_evaluated(number) for number in range(since, study.rounds + 1))


def event_of(study: Study, kind: SumKind) -> PrivacyEvent:
    """Return what one sum of a study's figures costs a patient; raises as `budget_of` does."""
    budget = budget_of(study, kind)
    return _event(budget.epsilon, budget.delta, times_of(study, kind))


def weight_of(hospital: Hospital, kind: SumKind) -> int:
    """Return the declared number of patients of whom a sum is."""
    policy = hospital.policy
    return {
        "update": policy.declared_training, "metrics": policy.declared_evaluation,
        "survey": policy.declared_patients,
    }[kind]  # fmt: skip


def check_figures(hospital: Hospital, order: Order, act: Charge) -> None:
    """Raise `Refused` or `BudgetExceeded` if the hospital lets no figures of this kind leave in a sum.

    It is asked before the first message, so that nobody is charged for a sum that one hospital ends.
    """
    study, policy, kind = order.study, hospital.policy, order.sum_kind
    if study.privacy.mode in ("masked", "shared_noise"):
        check_shared_noise(policy, study.privacy)
    budget = budget_of(study, kind)
    if budget.delta > policy.budget.delta:
        raise Refused(f"the study's delta {budget.delta:g} is above the policy's")
    if kind == "survey":
        _check_survey(hospital, act, budget)
        patients = hospital.eligible.training | hospital.eligible.evaluation
    else:
        _check_metrics(hospital, study, budget)
        patients = hospital.eligible.evaluation
    vector = order.sum_phases.vector
    paid = any((c.purpose, c.round) == (vector, order.round) for c in hospital.ledger.charges(order.run))
    if left := times_of(study, kind, order.round) - paid:
        hospital.ledger.check_fits(patients, event_of(study, kind), times=left)


def _check_metrics(hospital: Hospital, study: Study, budget: Budget) -> None:
    policy = hospital.policy
    few = len(hospital.eligible.evaluation) < policy.min_evaluation_patients
    if policy.metrics == "withheld" or few:
        raise Refused("the hospital withholds metrics")
    config = policy.noised_metrics
    if config and not (
        budget.epsilon <= config.epsilon and times_of(study, "metrics") <= config.evaluations
    ):
        raise Refused(
            f"the study's metrics cost epsilon {budget.epsilon:g} in {times_of(study, 'metrics')} "
            f"evaluations, the policy allows {config.epsilon:g} in {config.evaluations}"
        )


def _check_survey(hospital: Hospital, act: Charge, budget: Budget) -> None:
    statistics = hospital.policy.statistics
    if statistics == "withheld" or statistics.kind != "noised":
        raise Refused("the hospital's policy has no noised statistics, as a summed survey needs")
    if budget.epsilon > statistics.epsilon:
        raise Refused(
            f"the survey costs epsilon {budget.epsilon:g}, the policy allows {statistics.epsilon:g}"
        )
    if has_enough_surveys(hospital, act, statistics):
        raise Refused("the policy allows no further survey now")


def check_own_figures(hospital: Hospital, study: Study, kind: SumKind, honest: int) -> None:
    """Raise `Refused` if the own share of the noise alone protects less than the policy says."""
    limits = hospital.policy.shared_noise
    if limits == "refuse" or limits.own_epsilon is None:
        return
    shared = SharedSums(event_of(study, kind), 1.0, 1, honest, 1)
    events = [shared.own_event] * times_of(study, kind)
    alone = epsilon(events, budget_of(study, kind).delta, hospital.ledger.rule)
    if not alone <= limits.own_epsilon:
        raise Refused(
            f"with this hospital's noise alone the {kind} would cost epsilon {alone:.4g}, the policy's "
            f"shared_noise allows {limits.own_epsilon:g}"
        )
