"""The choice of the model that a run ends with, on public cases; it costs no privacy.

Candidates are the models of all rounds, the start among them, and models between the start and the last
one. A candidate has to beat the start by more than chance, otherwise the run ends with its start: a few
lucky cases are no gain. The bound is one standard error of the cases' own differences, after the rule
for choosing among models in Breiman and others, Classification and Regression Trees, 1984
(https://scikit-learn.org/stable/auto_examples/model_selection/plot_grid_search_refit_callable.html).
"""

from collections.abc import Iterator

from torch import Tensor

from flows.runs.run import Run
from flows.starts.measures import losses_by_case
from flows.starts.public_sets import public_set
from models.objectives import build_task
from models.params import Params
from models.repeatable import one_thread
from sites.local_models import CPU, network_for

BETWEEN = (0.25, 0.5, 0.75)
"""Shares of the way from the start to the last model at which further candidates lie."""


def chosen(run: Run, last: Params) -> Params:
    """Return the candidate with the smallest loss on the study's validation cases; on a tie the later.

    The start itself is returned where no candidate is surely better (`surely_smaller`).

    Args:
        last: the model that the last round's releases make.
    """
    study = run.study
    if study.validation is None or not study.validation.choose:
        return last
    cases = public_set(run.home.public, study.validation.folder, study).cases
    task = build_task(study.task)

    def losses(params: Params) -> Tensor:
        network = network_for(study.network, study, CPU, params).eval()
        return losses_by_case(network, task, study, cases)

    start: Params = run.model(run.records()[0])
    with one_thread():
        of_start = losses(start)
        best, least = start, of_start
        for candidate in _candidates(run, start, last):
            if (found := losses(candidate)).mean() < least.mean():
                best, least = candidate, found
        best = best if surely_smaller(least, of_start) else start
    return {name: best[name] for name in best}


def surely_smaller(losses: Tensor, others: Tensor) -> bool:
    """Return whether the mean of losses is smaller than that of others by more than one standard error.

    Both are losses `(cases,)` of the same cases; the error is that of the mean of their differences. One
    case has no such error, and is never enough.

    >>> from torch import tensor
    >>> surely_smaller(tensor([0.1, 0.2, 0.3]), tensor([0.2, 0.3, 0.4]))
    True
    >>> surely_smaller(tensor([0.1, 0.2, 0.6]), tensor([0.2, 0.4, 0.4]))
    False
    """
    if len(losses) < 2:
        return False
    gains = others.double() - losses.double()
    return bool(gains.mean() > gains.std() / len(gains) ** 0.5)


def _candidates(run: Run, start: Params, last: Params) -> Iterator[Params]:
    """Yield the last model, those on the way back to the start, and those of earlier rounds."""
    yield last
    for share in reversed(BETWEEN):
        yield {name: start[name] + share * (last[name] - start[name]) for name in start}
    records = [record for record in run.records() if 0 < record.round < run.study.rounds]
    yield from (run.model(record) for record in reversed(records))
