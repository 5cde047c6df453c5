"""The choice of the model that a run ends with, on public cases; it costs no privacy.

Candidates are the models of all rounds, and models between the start and the last one. Each has to
beat the start by more than one standard error of the cases' own differences; where none does, the run
ends with its start. That is a rule of thumb and no test: of many candidates one may pass by chance. It
follows the rule for models in Breiman and others, Classification and Regression Trees, 1984
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

    Only candidates that beat the start (`beats`) count; without any, the start is returned.

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
        best, least = start, float("inf")
        for candidate in _candidates(run, start, last):
            found = losses(candidate)
            if beats(found, of_start) and float(found.mean()) < least:
                best, least = candidate, float(found.mean())
    return {name: best[name] for name in best}


def beats(losses: Tensor, others: Tensor) -> bool:
    """Return whether the mean of losses is smaller than that of others by more than one standard error.

    Both are losses `(cases,)` of the same cases; the error is that of the mean of their differences. One
    case has no such error, and is never enough. Losses that are no numbers beat nothing, and are beaten.

    >>> from torch import tensor
    >>> beats(tensor([0.1, 0.2, 0.3]), tensor([0.2, 0.3, 0.4]))
    True
    >>> beats(tensor([0.1, 0.2, 0.6]), tensor([0.2, 0.4, 0.4]))
    False
    """
    if len(losses) < 2 or not losses.isfinite().all():
        return False
    if not others.isfinite().all():
        return True
    gains = others.double() - losses.double()
    return bool(gains.mean() > gains.std() / len(gains) ** 0.5)


def _candidates(run: Run, start: Params, last: Params) -> Iterator[Params]:
    """Yield the last model, those on the way back to the start, and those of earlier rounds."""
    yield last
    for share in reversed(BETWEEN):
        yield {name: start[name] + share * (last[name] - start[name]) for name in start}
    records = [record for record in run.records() if 0 < record.round < run.study.rounds]
    yield from (run.model(record) for record in reversed(records))
