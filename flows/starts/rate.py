"""The learning rate of a private run, and an honest word where its signal is too weak.

Both follow from public numbers alone: the study and the patients that hospitals declare.
"""

import math
from collections.abc import Mapping, Sequence

from flows.runs.records import StartRecord
from flows.runs.run import Run
from privacy.mechanisms import Privacy, SharedNoise, mechanism_for
from privacy.secure_aggregation.terms import BadTerms, Terms
from privacy.signal import NEEDED, Reach, Share, learning_rate, reach, reach_of_sum
from sites.local_models import numel_of
from sites.study import Study

LARGEST_EPSILON = 50.0
Declared = Mapping[str, tuple[int, int]]
"""By hospital: its declared training patients, and its steps in a round."""


def with_rate(run: Run, record: StartRecord, numel: int) -> StartRecord:
    """Return a start's record with the strength of the run's signal and, if due, its learning rate."""
    found = reach_of(run.study, declared_in(run))
    if found is None:
        return record
    rate = None
    if run.study.training.lr == "auto" and record.tolerance is not None:
        rate = learning_rate(found, numel, record.tolerance)
    strength = float(f"{found.strength(numel):.4g}")
    return record.model_copy(update={"strength": strength, "rate": rate})


def declared_in(run: Run) -> Declared:
    """Return what the hospitals declared that took part from the first round on."""
    first = {site: run.description.member(site, 0) for site in run.description.everybody}
    return {
        site: (member.statement.declared_training, member.statement.steps)
        for site, member in first.items()
        if member.since <= 1
    }


def reach_of(study: Study, declared: Declared, epsilon: float | None = None) -> Reach | None:
    """Return how far a run moves the parameters; None without privacy, or without a hospital.

    Args:
        epsilon: in place of the study's own.
    """
    privacy = study.privacy
    if privacy.mode == "none" or not declared:
        return None
    if epsilon is not None:
        privacy = privacy.model_copy(update={"epsilon": epsilon})
    total = sum(patients for patients, _ in declared.values())
    rates = [study.training.share_in(number, study.rounds) for number in range(1, study.rounds + 1)]
    if isinstance(privacy, SharedNoise):
        return _reach_of_sum(study, privacy, declared, rates)
    shares = [_share(study, privacy, patients, steps, total) for patients, steps in declared.values()]
    return reach(shares, rates, study.training.momentum)


def _reach_of_sum(
    study: Study, privacy: SharedNoise, declared: Declared, rates: Sequence[float]
) -> Reach | None:
    """Return the reach of rounds that are steps along one sum; None with too few hospitals for one.

    A hospital's change, where that is what is clipped, is a whole step of the round.
    """
    try:
        terms = Terms(study.name, len(declared), privacy.sum.dropouts, privacy.sum.colluding)
    except BadTerms:
        return None
    total = sum(patients for patients, _ in declared.values())
    smallest = min(patients for patients, _ in declared.values())
    mechanism = mechanism_for(privacy, rounds=study.rounds, steps=1, lot=None, declared=smallest)
    momentum = study.strategy.build().momentum
    if privacy.unit == "hospital":
        total, rates = len(declared), [1.0] * study.rounds
    return reach_of_sum(mechanism, len(declared) / terms.honest, total, rates, momentum)


def _share(study: Study, privacy: Privacy, patients: int, steps: int, total: int) -> Share:
    mechanism = mechanism_for(
        privacy, rounds=study.rounds, steps=steps, lot=study.training.lot_size, declared=patients
    )
    return Share(patients / total, mechanism)


def warnings(study: Study, declared: Declared) -> Sequence[str]:
    """Return a sentence where the run's signal is too weak to gain anything; nothing is charged before.

    The sentence names what would suffice: more patients, a smaller network, another epsilon.
    """
    found, numel = reach_of(study, declared), numel_of(study)
    if found is None or study.privacy.mode == "none":
        return ()
    strength = found.strength(numel)
    if strength >= NEEDED:
        return ()
    patients = sum(each for each, _ in declared.values())
    needed = NEEDED / strength
    counted, what = (patients, "patients") if study.clips_patients else (len(declared), "hospitals")
    ways = [
        f"{int(counted * needed) + 1} {what}",
        f"a network of {int(numel / needed**2):,} parameters",
    ]
    if study.privacy.mode == "local" and strength * math.sqrt(len(declared)) >= NEEDED:
        ways.append("a secure sum of gradients (privacy.mode: shared_noise)")  # one noise for all
    if enough := _enough(study, declared, numel):
        ways.append(f"epsilon {enough:g}")
    return (
        f"{_counted(len(declared), 'hospital')} with {patients} training patients together at epsilon "
        f"{study.privacy.epsilon:g} are not expected to improve the start: the strength of the signal "
        f"is {strength:.3g}, below {NEEDED:g}. Any of these would suffice: {', '.join(ways)}.",
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _enough(study: Study, declared: Declared, numel: int) -> float | None:
    """Return the smallest of some epsilons whose signal is strong enough; None if none is."""
    least = study.privacy.epsilon if study.privacy.mode != "none" else 0.0
    for epsilon in (0.5, 1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 30, LARGEST_EPSILON):
        found = reach_of(study, declared, epsilon) if epsilon > least else None
        if found and found.strength(numel) >= NEEDED:
            return epsilon
    return None
