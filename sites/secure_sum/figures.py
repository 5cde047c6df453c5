"""Which metrics and statistics a study sums over hospitals, what that costs, and who takes no part."""

from functools import lru_cache

from privacy.accounting import Budget, PrivacyEvent, noise_for
from sites.admission.admission import check_shared_noise
from sites.hospital import Hospital
from sites.policy.policy import Refused
from sites.study import Study
from sites.study_sections import SumKind


@lru_cache(maxsize=64)
def _event(most: float, delta: float, steps: int) -> PrivacyEvent:
    return PrivacyEvent(
        noise_for(Budget(epsilon=most, delta=delta), sampling_rate=1, steps=steps), 1.0, 1
    )


def event_of(study: Study, kind: SumKind) -> PrivacyEvent:
    """Return what one sum of a study's figures costs a patient.

    Raises:
        ValueError: the study has no such sum.
    """
    config = study.evaluation.summed if kind == "metrics" else study.survey
    if config is None or study.privacy.mode == "none":
        raise ValueError(f"The study has no sum of {kind}.")
    evaluations = sum(study.is_evaluated(number) for number in range(study.rounds + 1))
    return _event(config.epsilon, study.privacy.delta, evaluations if kind == "metrics" else 1)


def check_figures(hospital: Hospital, study: Study, kind: SumKind) -> None:
    """Raise `Refused` if the policy lets no figures of this kind leave in a sum."""
    policy = hospital.policy
    if study.privacy.mode in ("masked", "shared_noise"):
        check_shared_noise(policy, study.privacy)
    if kind == "survey" and policy.statistics == "withheld":
        raise Refused("the hospital's policy withholds statistics")
    few = len(hospital.eligible.evaluation) < policy.min_evaluation_patients
    if kind == "metrics" and (policy.metrics == "withheld" or few):
        raise Refused("the hospital withholds metrics")
