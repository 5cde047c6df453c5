"""Membership attacks on a hospital's models: who of its patients trained them?

The attacker may query a model about a patient, and knows the patient's truth.

| attack           | score of a patient                                                               |
|------------------|----------------------------------------------------------------------------------|
| loss             | how small the loss is (Yeom et al. 2018, https://arxiv.org/abs/1709.01604)       |
| calibrated loss  | by how much it fell since the start, which knows no patient (Watson et al. 2022, |
|                  | https://arxiv.org/abs/2111.08440)                                                |
| likelihood ratio | against shadow models (Carlini et al. 2022, https://arxiv.org/abs/2112.03570),   |
|                  | here twins of the training on drawn halves of the patients                       |
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from models.config import Config
from models.params import Params
from privacy.audit.bounds import Interval, Scores
from privacy.audit.membership import Found, coins, confidence, found, left_one_out, likelihood_ratios
from sites.audit.twins import Twins

Model = Literal["global", "released", "teacher", "private twin", "plain twin"]
Attack = Literal["loss", "calibrated loss", "likelihood ratio"]
Share = Annotated[float, Field(ge=0, le=1)]


class Measure(Config):
    """A measured share with both ends of its 95 % interval."""

    value: Share
    low: Share
    high: Share


class AttackResult(Config):
    """What one attack on one kind of model found.

    Attributes:
        model: the run's global model, the hospital's released one, its teacher, or its twins.
        auc: chance that the attack ranks a patient who trained above one who did not; 0.5 by guessing.
        found: share of those who trained that it finds at 5 % of false alarms.
        found_at_one: the same at 1 %; None with fewer than 300 patients who did not train.
        members, others: scores of patients who trained, and of others, over all models of the kind.
    """

    model: Model
    attack: Attack
    auc: Measure
    found: Measure
    found_at_one: Measure | None
    members: int
    others: int


def attacks(
    twins: Twins,
    models: Mapping[Model, Params],
    trained: NDArray[np.bool_],
    shadows: int,
    rng: np.random.Generator,
) -> Iterator[AttackResult]:
    """Yield what each attack finds about each model, and about private and plain twins.

    Args:
        models: parameters of the models that the hospital's patients trained.
        trained: `(P,)`, which of the twins' patients trained them.
        shadows: number of twins of each kind; at least four.

    Raises:
        ValueError: the scans of too few patients can be read.
    """
    seen = twins.seen()
    before = twins.losses_of(twins.network(), seen)
    readable = ~np.isnan(before)
    private = _losses(twins, shadows, readable, private=True, rng=rng) if twins.mechanism else None
    for name, params in models.items():
        own = twins.losses_of(twins.network(params), seen)[readable]
        who = trained[None, readable]
        yield _result(name, "loss", -own[None], who)
        yield _result(name, "calibrated loss", (before[readable] - own)[None], who)
        if private:
            ratios = likelihood_ratios(confidence(own), confidence(private[1]), private[0])
            yield _result(name, "likelihood ratio", ratios[None], who)
    if private:
        yield from _of_twins("private twin", *private, rng)
    yield from _of_twins("plain twin", *_losses(twins, shadows, readable, private=False, rng=rng), rng)


def _losses(
    twins: Twins, shadows: int, readable: NDArray[np.bool_], *, private: bool, rng: np.random.Generator
) -> tuple[NDArray[np.bool_], Scores]:
    """Return who trained which twin, and each twin's losses, of the patients whose scans can be read."""
    inside = coins(shadows, len(twins.patients), rng)
    return inside[:, readable], twins.losses(inside, private=private, rng=rng)[:, readable]


def _of_twins(
    model: Model, inside: NDArray[np.bool_], losses: Scores, rng: np.random.Generator
) -> Iterator[AttackResult]:
    yield _result(model, "loss", -losses, inside)
    yield _result(model, "likelihood ratio", left_one_out(confidence(losses), inside, rng), inside)


def _result(model: Model, attack: Attack, scores: Scores, inside: NDArray[np.bool_]) -> AttackResult:
    result: Found = found(scores, inside, seed=0)
    return AttackResult(
        model=model,
        attack=attack,
        auc=_measure(result.auc),
        found=_measure(result.found),
        found_at_one=None if result.found_at_one is None else _measure(result.found_at_one),
        members=result.members,
        others=result.others,
    )


def _measure(interval: Interval) -> Measure:
    return Measure(value=interval.value, low=interval.low, high=interval.high)


def ranks_of_members(scores: Scores, trained: NDArray[np.bool_]) -> Scores:
    """Return for each patient who trained the share of the others whose score is smaller, `(M,)`.

    Their mean is the AUC of the attack. A patient without a score (NaN) is ranked at 1/2, as by
    guessing, and others without one do not count. So a rank depends on that patient and the others
    alone.
    """
    mine, theirs = scores[trained], scores[~trained]
    theirs = theirs[~np.isnan(theirs)]
    if not len(theirs):
        return np.full(len(mine), 0.5)
    above = (mine[:, None] > theirs[None]).mean(1)
    ties = (mine[:, None] == theirs[None]).mean(1)
    return np.where(np.isnan(mine), 0.5, above + ties / 2)
