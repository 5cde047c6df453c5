"""The choice of the model that a run ends with, on public cases; it costs no privacy.

Candidates are the models of all rounds, the start among them, and models between the start and the last
one. Training on patients can end worse than its start; then the choice stays near the start.
"""

from collections.abc import Iterator

from flows.runs.run import Run
from flows.starts.measures import loss_of
from flows.starts.public_sets import public_set
from models.objectives import build_task
from models.params import Params
from models.repeatable import one_thread
from sites.local_models import CPU, network_for

BETWEEN = (0.25, 0.5, 0.75)
"""Shares of the way from the start to the last model at which further candidates lie."""


def chosen(run: Run, last: Params) -> Params:
    """Return the candidate with the smallest loss on the study's validation cases; on a tie the later.

    Args:
        last: the model that the last round's releases make.
    """
    study = run.study
    if study.validation is None or not study.validation.choose:
        return last
    cases = public_set(run.home.public, study.validation.folder, study).cases
    task, best, least = build_task(study.task), last, float("inf")
    with one_thread():
        for candidate in _candidates(run, last):
            network = network_for(study.network, study, CPU, candidate).eval()
            if (loss := loss_of(network, task, study, cases)) < least:
                best, least = candidate, loss
    return {name: best[name] for name in best}


def _candidates(run: Run, last: Params) -> Iterator[Params]:
    """Yield the last model, those on the way back to the start, and those of earlier rounds."""
    records = [record for record in run.records() if record.round < run.study.rounds]
    start = run.model(records[0])
    yield last
    for share in reversed(BETWEEN):
        yield {name: start[name] + share * (last[name] - start[name]) for name in start}
    yield from (run.model(record) for record in reversed(records))
