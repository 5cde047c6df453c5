"""Scores of membership attacks, and what they find: AUC, and members found at few false alarms.

A patient is the unit: a score is of one patient, with all of the patient's scans.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu, norm

from privacy.audit.bounds import Interval, Scores, share

RESAMPLES = 2000
"""Draws of patients, with replacement, behind an interval of an AUC."""
FEW_FALSE_ALARMS, FEWEST_FALSE_ALARMS = 0.05, 0.01
ENOUGH_FOR_FEWEST = 300
"""Patients outside from which on a rate at one per cent of false alarms says anything."""
LEAST_DEVIATION = 1e-3
"""The smallest standard deviation of shadow models' confidence, so that equal ones divide by no zero."""


@dataclass(frozen=True)
class Found:
    """What an attack found.

    Attributes:
        auc: chance that a member's score exceeds that of somebody else, with its interval.
        found: share of the members above the threshold that calls 5 % of the others members.
        found_at_one: the same at 1 %; None with fewer than 300 others.
        members: scores of members, each of one patient and one model.
        others: scores of patients who did not train that model.
    """

    auc: Interval
    found: Interval
    found_at_one: Interval | None
    members: int
    others: int


def auc(members: Scores, others: Scores) -> float:
    """Return the chance that a member's score exceeds another's; ties count half.

    >>> auc(np.array([2.0, 1.0]), np.array([1.0, 0.0]))
    0.875
    """
    statistic = mannwhitneyu(members, others).statistic
    return float(statistic) / (len(members) * len(others))


def found(scores: Scores, inside: NDArray[np.bool_], seed: int) -> Found:
    """Return what scores find, with intervals over patients.

    Args:
        scores: `(K, P)` of K models for P patients.
        inside: `(K, P)`, who trained which model.
        seed: of the resampling.

    Raises:
        ValueError: all are members, or none.
    """
    if inside.all() or not inside.any():
        raise ValueError("Expected members and others, got one of them alone.")
    members, others = scores[inside], scores[~inside]
    enough = len({*np.nonzero(~inside)[1].tolist()}) >= ENOUGH_FOR_FEWEST
    return Found(
        auc=_interval(scores, inside, np.random.default_rng(seed)),
        found=_found_at(FEW_FALSE_ALARMS, members, others),
        found_at_one=_found_at(FEWEST_FALSE_ALARMS, members, others) if enough else None,
        members=len(members),
        others=len(others),
    )


def _interval(scores: Scores, inside: NDArray[np.bool_], rng: np.random.Generator) -> Interval:
    """Return the AUC with its interval over resampled patients, whose scores go together."""
    members, others = scores[inside], scores[~inside]
    above = (members[:, None] > others[None]).astype(np.float32)
    above += 0.5 * (members[:, None] == others[None])
    patients = scores.shape[1]
    times = rng.multinomial(patients, [1 / patients] * patients, RESAMPLES).astype(np.float32)
    of_member, of_other = (times[:, np.nonzero(mask)[1]] for mask in (inside, ~inside))
    pairs = of_member.sum(1) * of_other.sum(1)
    won = ((of_member @ above) * of_other).sum(1)
    low, high = np.quantile(won[pairs > 0] / pairs[pairs > 0], (0.025, 0.975))
    return Interval(auc(members, others), float(low), float(high))


def _found_at(false_alarms: float, members: Scores, others: Scores) -> Interval:
    """Return the share of members above the threshold that the largest scores of others set."""
    allowed = int(false_alarms * len(others))
    threshold = np.sort(others)[len(others) - allowed - 1]
    return share(int((members > threshold).sum()), len(members))


def confidence(losses: Scores) -> Scores:
    """Return the log-odds of exp(-loss), close to normal over trainings.

    (Carlini et al. 2022, section V.C, https://arxiv.org/abs/2112.03570.)

    >>> confidence(np.array([np.log(2)])).round(6).tolist()
    [0.0]
    """
    losses = np.maximum(losses, 1e-12)
    return np.asarray(-losses - np.log(-np.expm1(-losses)))


def likelihood_ratios(target: Scores, shadows: Scores, inside: NDArray[np.bool_]) -> Scores:
    """Return for each patient the log likelihood ratio of having trained the target.

    Source: Carlini et al. 2022, Membership Inference Attacks From First Principles, algorithm 1 with one
    variance for all patients, as for few shadow models (https://arxiv.org/abs/2112.03570).

    Args:
        target: `(P,)`, the target's confidence in each patient.
        shadows: `(K, P)`, that of shadow models.
        inside: `(K, P)`, who trained which shadow; each patient trained one and was left out of one.

    Raises:
        ValueError: a patient trained all shadows, or none.
    """
    trained, left_out = inside.sum(0), (~inside).sum(0)
    if not (trained.all() and left_out.all()):
        raise ValueError("Expected each patient in at least one shadow model and outside one.")
    means = [np.where(mask, shadows, 0).sum(0) / mask.sum(0) for mask in (inside, ~inside)]
    spreads = [
        max(float((shadows - mean)[mask].std()), LEAST_DEVIATION)
        for mean, mask in zip(means, (inside, ~inside), strict=True)
    ]
    of_in, of_out = (
        norm.logpdf(target, mean, spread) for mean, spread in zip(means, spreads, strict=True)
    )
    return np.asarray(of_in - of_out)


def coins(models: int, patients: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return who trains which of several models, `(K, P)`: each patient trains half of them.

    Raises:
        ValueError: fewer than four models, with which no likelihood ratio leaves one out.
    """
    if models < 4:
        raise ValueError(f"Expected at least four shadow models, got {models}.")
    order = rng.random((models, patients)).argsort(0)
    return np.asarray(order < models // 2)


def left_one_out(confidences: Scores, inside: NDArray[np.bool_]) -> Scores:
    """Return `(K, P)` likelihood ratios in which each model is the target and the others its shadows."""
    rows = []
    for target in range(len(confidences)):
        shadows = np.arange(len(confidences)) != target
        rows.append(likelihood_ratios(confidences[target], confidences[shadows], inside[shadows]))
    return np.stack(rows)
