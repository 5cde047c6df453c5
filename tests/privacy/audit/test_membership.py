"""Scores of membership attacks: AUC, likelihood ratios and intervals against plain versions."""

import numpy as np
import pytest
from scipy.stats import norm

from privacy.audit.membership import auc, coins, confidence, found, left_one_out, likelihood_ratios


def test_the_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 5, 12).astype(float), rng.integers(0, 5, 9).astype(float)
    pairs = [(m > o) + (m == o) / 2 for m in members for o in others]
    assert auc(members, others) == pytest.approx(np.mean(pairs))


def test_found_at_five_per_cent_of_false_alarms_counts_members_above_all_but_one_in_twenty() -> None:
    others, members = np.arange(100.0), np.array([94.0, 95.0, 96.0, 200.0])
    result = found(np.concatenate([members, others])[None], np.arange(104)[None] < 4, seed=0)
    assert result.found.value == 0.75  # the threshold is 94: five others are above it
    assert (result.members, result.others, result.found_at_one) == (4, 100, None)


def test_a_rate_at_one_per_cent_needs_three_hundred_others() -> None:
    rng = np.random.default_rng(1)
    inside = np.arange(330)[None] < 30
    scores = rng.normal(size=(1, 330)) + 2 * inside
    result = found(scores, inside, seed=0)
    assert result.found_at_one is not None
    assert result.found_at_one.value <= result.found.value
    assert result.auc.low < result.auc.value < result.auc.high


def test_the_interval_counts_patients_and_not_their_scores() -> None:
    """Twenty models of one kind of score are no more patients than one model."""
    rng = np.random.default_rng(2)
    once = rng.normal(size=(1, 40))
    inside = np.arange(40)[None] < 20
    one = found(once, inside, seed=0)
    many = found(np.repeat(once, 20, 0), np.repeat(inside, 20, 0), seed=0)
    for each in ("auc", "found"):
        short, long = getattr(many, each), getattr(one, each)
        assert short.high - short.low == pytest.approx(long.high - long.low, rel=0.15)


def test_the_resamples_are_those_written_out() -> None:
    """Without the closed interval, which is wider only for few patients."""
    rng = np.random.default_rng(5)
    inside = np.array([[True] * 120 + [False] * 80, [False] * 100 + [True] * 100])
    scores = rng.normal(size=(2, 200)) + inside
    drawn = {"auc": [], "found": []}
    for _ in range(1000):
        chosen = rng.integers(200, size=200)
        some, their = scores[:, chosen], inside[:, chosen]
        members, others = some[their], some[~their]
        drawn["auc"].append(auc(members, others))
        threshold = np.sort(others)[len(others) - int(0.05 * len(others)) - 1]
        drawn["found"].append((members > threshold).mean())
    result = found(scores, inside, seed=0)
    for name, values in drawn.items():
        low, high = np.quantile(values, (0.025, 0.975))
        interval = getattr(result, name)
        assert interval.low <= low + 0.02 and interval.high >= high - 0.02
        assert interval.high - interval.low < 1.7 * (high - low)


def test_intervals_cover_the_truth_also_of_few_patients() -> None:
    """Eight members and four others, a hundred times: the true AUC of a shift of one is 0.76."""
    rng, covered = np.random.default_rng(6), 0
    inside = np.arange(12)[None] < 8
    for _ in range(100):
        interval = found(rng.normal(size=(1, 12)) + inside, inside, seed=0).auc
        covered += interval.low <= norm.cdf(1 / 2**0.5) <= interval.high
    assert covered >= 90


def test_the_likelihood_ratio_is_that_of_two_normal_distributions() -> None:
    shadows = np.array([[2.0, 0.0], [4.0, 2.0], [0.0, 5.0], [-2.0, 7.0]])
    inside = np.array([[True, False], [True, False], [False, True], [False, True]])
    ratio = likelihood_ratios(np.array([3.0, 1.0]), shadows, inside)
    spread = 1.0  # all deviations from the means are one
    due = [
        norm.logpdf(3, 3, spread) - norm.logpdf(3, -1, spread),
        norm.logpdf(1, 6, spread) - norm.logpdf(1, 1, spread),
    ]
    assert ratio.tolist() == pytest.approx(due)
    with pytest.raises(ValueError, match="in at least one shadow model and outside one"):
        likelihood_ratios(np.zeros(2), shadows, np.ones_like(inside))


def test_each_patient_trains_half_of_the_models() -> None:
    drawn = coins(8, 50, np.random.default_rng(0))
    assert (drawn.sum(0) == 4).all()
    with pytest.raises(ValueError, match="at least four"):
        coins(3, 50, np.random.default_rng(0))


def test_left_one_out_finds_who_trained_and_nobody_where_nothing_is_learnt() -> None:
    rng = np.random.default_rng(3)
    inside = coins(8, 60, rng)
    noise = rng.normal(size=(8, 60)) + rng.normal(size=60) * 3  # patients differ much
    learnt = found(left_one_out(noise + 3 * inside, inside, rng), inside, seed=0)
    nothing = found(left_one_out(noise, inside, rng), inside, seed=0)
    assert learnt.auc.low > 0.8
    assert nothing.auc.low < 0.5 < nothing.auc.high


def test_confidence_is_the_log_odds_of_the_likelihood() -> None:
    p = np.array([0.1, 0.5, 0.99])
    assert confidence(-np.log(p)).tolist() == pytest.approx(np.log(p / (1 - p)).tolist())


@pytest.mark.parametrize("models", [4, 5, 8])
def test_where_nothing_is_learnt_likelihood_ratios_guess(models: int) -> None:
    """No more and no less: shadows that are left over must not tell whether the target is among them."""
    rng, values = np.random.default_rng(4), []
    for _ in range(40):
        inside = coins(models, 60, rng)
        ratios = left_one_out(rng.normal(size=(models, 60)), inside, rng)
        values.append(auc(ratios[inside], ratios[~inside]))
    assert np.mean(values) == pytest.approx(0.5, abs=4 * np.std(values) / 40**0.5)
    assert np.std(values) < 0.05
