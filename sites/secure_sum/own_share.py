"""What a hospital's own share of the noise is worth alone, and the policy's limit on it."""

import json

from privacy.accounting import epsilon
from privacy.mechanisms import Mechanism
from privacy.shared_noise import SharedGaussian
from privacy.statements import MOST_EPSILON
from sites.admission.admission import mechanism_for_study
from sites.hospital import Hospital
from sites.local_models import numel_of
from sites.policy.policy import Refused
from sites.study import Study


def check_own_share(hospital: Hospital, study: Study, honest: int) -> None:
    """Raise `Refused`, before any charge, if the own noise alone protects less than the policy says.

    Args:
        honest: members whose noise together is charged.
    """
    limits = hospital.policy.shared_noise
    if study.privacy.mode != "shared_noise" or limits == "refuse" or limits.own_epsilon is None:
        return
    mechanism = mechanism_for_study(hospital.policy, study)
    if mechanism is None:
        return
    shared = SharedGaussian(mechanism, numel_of(study), honest)
    alone = own_epsilon(hospital, study, shared, study.rounds + study.spare)
    if not alone <= limits.own_epsilon:
        raise Refused(
            f"with this hospital's noise alone the run would cost epsilon {alone:.4g}, the policy's "
            f"shared_noise allows {limits.own_epsilon:g}"
        )


def own_epsilon(hospital: Hospital, study: Study, shared: SharedGaussian, times: int) -> float:
    """Return what so many rounds cost a patient with the own noise alone, at the study's delta."""
    delta = study.privacy.delta if study.privacy.mode != "none" else 1.0
    return min(epsilon([shared.own_event] * times, delta, hospital.ledger.rule), MOST_EPSILON)


def smallest_share(
    hospital: Hospital, run: str, mechanism: Mechanism, numel: int, honest: int
) -> SharedGaussian:
    """Return the smallest share of noise that the hospital has added in a run, this round's included."""
    return SharedGaussian(mechanism, numel, max(honest, _most_honest(hospital, run)))


def _most_honest(hospital: Hospital, run: str) -> int:
    """Return the most members on whose noise a release of a run counts, 0 before the first release.

    The outbox has every release; what lies there is this hospital's own and is not verified again.
    """
    outbox = hospital.outbox
    written = [json.loads(outbox.statement(sha256))["statement"] for sha256 in outbox.statements()]
    of_run = [each for each in written if each["run"] == run and each["kind"] == "release"]
    masked = [each["masked"] for each in of_run if each.get("masked")]
    return max((each["honest"] or 0 for each in masked), default=0)
