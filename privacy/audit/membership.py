"""Scores of membership attacks, and what they find: AUC, and members found at few false alarms.

A patient is the unit: a score is of one patient, with all of the patient's scans.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import mannwhitneyu, norm

from privacy.audit.bounds import Interval, Scores, share

RESAMPLES = 1000
"""Draws of patients, with replacement, behind an interval of an AUC."""
FEW_FALSE_ALARMS, FEWEST_FALSE_ALARMS = 0.05, 0.01
ENOUGH_FOR_FEWEST = 300
"""Patients outside from which on a rate at one per cent of false alarms says anything."""
Z_95 = 1.959964
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
        scores: `(K, P)` of K models for P patients, finite.
        inside: `(K, P)`, who trained which model.
        seed: of the resampling.

    Raises:
        ValueError: all are members, or none.
    """
    if inside.all() or not inside.any():
        raise ValueError("Expected members and others, got one of them alone.")
    resampled = _Resampled.of(scores, inside, np.random.default_rng(seed))
    enough = resampled.patients_outside >= ENOUGH_FOR_FEWEST
    return Found(
        auc=resampled.auc(),
        found=resampled.found_at(FEW_FALSE_ALARMS),
        found_at_one=resampled.found_at(FEWEST_FALSE_ALARMS) if enough else None,
        members=int(inside.sum()),
        others=int((~inside).sum()),
    )


@dataclass(frozen=True)
class _Resampled:
    """Scores of members and of others, each sorted, and how often each is drawn in each resample.

    Patients are drawn, and all scores of a patient go together. Where few patients are on a side,
    resampling alone gives intervals that are too short; so each interval also covers a closed one for as
    many patients as there are.

    Attributes:
        of_members, of_others: `(B, M)` and `(B, N)`, in the order of the scores.
        patients_inside, patients_outside: patients on each side; of a patient on both a half on each.
    """

    members: Scores
    others: Scores
    of_members: NDArray[np.float32]
    of_others: NDArray[np.float32]
    patients_inside: float
    patients_outside: float

    @classmethod
    def of(cls, scores: Scores, inside: NDArray[np.bool_], rng: np.random.Generator) -> "_Resampled":
        patients = scores.shape[1]
        times = rng.multinomial(patients, [1 / patients] * patients, RESAMPLES).astype(np.float32)
        sides = []
        for mask in (inside, ~inside):
            values, whose = scores[mask], np.nonzero(mask)[1]
            order = np.argsort(values, kind="stable")
            sides.append((values[order], times[:, whose[order]]))
        share_inside = inside.mean(0)
        return cls(
            sides[0][0], sides[1][0], sides[0][1], sides[1][1],
            float(share_inside.sum()), float((1 - share_inside).sum()),
        )  # fmt: skip

    def auc(self) -> Interval:
        """Return the AUC; the closed interval is that of Newcombe 2006, method 5.

        (https://doi.org/10.1002/sim.2324.)
        """
        left = np.searchsorted(self.others, self.members, "left")
        right = np.searchsorted(self.others, self.members, "right")
        below = np.concatenate([np.zeros((RESAMPLES, 1)), self.of_others.cumsum(1)], 1)
        won = np.zeros(RESAMPLES)
        for k, (one, other) in enumerate(zip(left, right, strict=True)):
            won += self.of_members[:, k] * (below[:, one] + below[:, other]) / 2
        pairs = self.of_members.sum(1) * self.of_others.sum(1)
        value = auc(self.members, self.others)
        return _wider(value, won[pairs > 0] / pairs[pairs > 0], self._newcombe(value))

    def _newcombe(self, value: float) -> tuple[float, float]:
        m, n = max(self.patients_inside, 1.0), max(self.patients_outside, 1.0)
        half = (m + n) / 2 - 1

        def missed(true: float) -> float:
            spread = 1 + half * ((1 - true) / (2 - true) + true / (1 + true))
            return (value - true) ** 2 - Z_95**2 * true * (1 - true) * spread / (m * n)

        low = brentq(missed, 0.0, value) if missed(0.0) > 0 else 0.0
        high = brentq(missed, value, 1.0) if missed(1.0) > 0 else 1.0
        return float(low), float(high)

    def found_at(self, false_alarms: float) -> Interval:
        """Return the share of members above the threshold that the largest scores of others set.

        Each resample sets its own threshold; the closed interval is that of Clopper and Pearson.
        """
        above = self.of_others[:, ::-1].cumsum(1)  # from the largest score on
        allowed = np.floor(false_alarms * self.of_others.sum(1) + 1e-6)
        first = np.argmax(above > allowed[:, None], axis=1)
        thresholds = self.others[::-1][first]
        beyond = np.searchsorted(self.members, thresholds, "right")
        total = np.concatenate([np.zeros((RESAMPLES, 1)), self.of_members.cumsum(1)], 1)
        drawn = (self.of_others.sum(1) > 0) & (total[:, -1] > 0)
        found_ = 1 - total[np.arange(RESAMPLES), beyond] / np.maximum(total[:, -1], 1)
        threshold = self.others[len(self.others) - int(false_alarms * len(self.others)) - 1]
        value = float((self.members > threshold).mean())
        patients = max(1, round(self.patients_inside))
        closed = share(round(value * patients), patients)
        return _wider(value, found_[drawn], (closed.low, closed.high))


def _wider(value: float, drawn: Scores, closed: tuple[float, float]) -> Interval:
    """Return the interval that covers both the resamples' and the closed one."""
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(value, min(float(low), closed[0], value), max(float(high), closed[1], value))


def confidence(losses: Scores) -> Scores:
    """Return the log-odds of exp(-loss), close to normal over trainings.

    (Carlini et al. 2022, section V.C, https://arxiv.org/abs/2112.03570.)

    >>> confidence(np.array([np.log(2)])).round(6).tolist()
    [0.0]
    """
    losses = np.maximum(losses, 1e-12)
    return np.asarray(-losses - np.log(-np.expm1(-losses)))


def likelihood_ratios(
    target: Scores,
    shadows: Scores,
    inside: NDArray[np.bool_],
    outside: NDArray[np.bool_] | None = None,
) -> Scores:
    """Return for each patient the log likelihood ratio of having trained the target.

    Source: Carlini et al. 2022, Membership Inference Attacks From First Principles, algorithm 1 with one
    variance for all patients, as for few shadow models (https://arxiv.org/abs/2112.03570).

    Args:
        target: `(P,)`, the target's confidence in each patient.
        shadows: `(K, P)`, that of shadow models.
        inside: `(K, P)`, who trained which shadow; each patient trained one and was left out of one.
        outside: `(K, P)`, the shadows that count as left out; by default all others.

    Raises:
        ValueError: a patient trained all shadows, or none.
    """
    masks = (inside, ~inside if outside is None else outside)
    if not all(mask.any(0).all() for mask in masks):
        raise ValueError("Expected each patient in at least one shadow model and outside one.")
    means = [np.where(mask, shadows, 0).sum(0) / mask.sum(0) for mask in masks]
    spreads = [
        max(float((shadows - mean)[mask].std()), LEAST_DEVIATION)
        for mean, mask in zip(means, masks, strict=True)
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


def left_one_out(confidences: Scores, inside: NDArray[np.bool_], rng: np.random.Generator) -> Scores:
    """Return `(K, P)` likelihood ratios in which each model is the target and the others its shadows.

    Of each patient as many shadows count inside as outside: with a fixed number of trained models the
    ones left over would tell whether the target is among them.
    """
    rows = []
    for target in range(len(confidences)):
        shadows = np.arange(len(confidences)) != target
        mine = inside[shadows]
        most = np.minimum(mine.sum(0), (~mine).sum(0))
        some = [_some(mask, most, rng) for mask in (mine, ~mine)]
        rows.append(likelihood_ratios(confidences[target], confidences[shadows], *some))
    return np.stack(rows)


def _some(
    mask: NDArray[np.bool_], most: NDArray[np.int_], rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Return a mask `(K, P)` with so many of each patient's marks, drawn at random."""
    order = np.where(mask, rng.random(mask.shape), 2.0).argsort(0).argsort(0)
    return np.asarray(mask & (order < most))
