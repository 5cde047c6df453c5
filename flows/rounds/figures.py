"""Metrics and statistics of all hospitals together, from their secure sum."""

from collections.abc import Mapping

import numpy as np

from flows.rounds import secure_sum
from flows.rounds.secure_sum import Ask, statements_in, total_of
from flows.rounds.statements import Answers
from flows.rounds.sum_progress import progress, terms_of
from flows.runs.records import head_before
from flows.runs.run import Run
from models.objectives import build_task
from privacy.noise.noised import Noised, SharedSums
from privacy.release import EventRecord, Scores, Statement, SumKeys, Survey
from privacy.secure_aggregation.ring import Vector
from sites.evaluation.scoring import noised_means
from sites.evaluation.survey import bins, noised_shares, sensitivity
from sites.orders import SUMS
from sites.secure_sum.figures import event_of
from sites.study_sections import SumKind


def ask_scores(run: Run, number: int, model_sha256: str, ask: Ask) -> Answers:
    """Have a global model scored in a secure sum; return the hospitals' statements in it."""
    length = len(build_task(run.study.task).bounded([]))

    def fault(statement: Statement) -> str | None:
        if not isinstance(statement, Scores) or statement.model_sha256 != model_sha256:
            return "its scores are of another model"
        if statement.chain_head != head_before(run.records(), number):
            return "its scores were signed upon another chain of records"
        return _fault(run, number, "metrics", statement, length)

    return secure_sum.figures(run, number, "metrics", ask, fault)


def ask_survey(run: Run, ask: Ask) -> Answers:
    """Have a survey answered in a secure sum; return the hospitals' statements in it."""
    length = sum(bins(run.study.task).values())

    def fault(statement: Statement) -> str | None:
        if not isinstance(statement, Survey):
            return "it is no survey"
        return _fault(run, 0, "survey", statement, length)

    return secure_sum.figures(run, 0, "survey", ask, fault)


def _fault(
    run: Run, number: int, kind: SumKind, statement: Scores | Survey, length: int
) -> str | None:  # fmt: skip
    """Return why a statement's figures do not fit a sum, or None."""
    found, event = progress(run, number, kind), event_of(run.study, kind)
    terms = terms_of(run, number, len(found.members(SUMS[kind].keys)), found.attempt, kind)
    masked = statement.masked
    due = (found.attempt, found.members(SUMS[kind].shares), terms.honest)
    if masked is None or (masked.attempt, dict(masked.members), masked.honest) != due:
        return "its figures are masked for another attempt or other members"
    if len(statement.hidden) != length:
        return f"expected {length} sums, got {len(statement.hidden)}"
    cost = EventRecord(noise_multiplier=event.noise_multiplier, sampling_rate=1.0, steps=1)
    return None if statement.event == cost else "its figures have other noise than the study asks for"


def is_fitting_score(run: Run, number: int, scores: Scores) -> bool:
    """Return whether a hospital's summed scores are masked and charged as the sum asks for."""
    length = len(build_task(run.study.task).bounded([]))
    return _fault(run, number, "metrics", scores, length) is None


def summed_metrics(run: Run, number: int) -> dict[str, float]:
    """Return the metrics of all hospitals together after a round, with the intervals of their noise.

    Raises:
        ValueError, LookupError: the sum can't be opened, or its statements are not those recorded.
    """
    record = progress(run, number, "metrics")
    if record.failed or not record.members(SUMS["metrics"].opening):
        return {}
    found = statements_in(run, number, record, "evaluate", Scores)
    task = build_task(run.study.task)
    weights = _weights(run, number, "metrics")
    shared = _shared(run, number, "metrics", len(task.bounded([])) ** 0.5, len(task.bounded([])))
    sums = _opened(run, number, shared, {site: each.hidden for site, each in found.items()})
    declared = sum(weights[site] for site in found)
    return noised_means(sums, task, declared, shared.deviation(len(found)))


def summed_survey(run: Run) -> dict[str, list[float | None]]:
    """Return the histograms of all hospitals together; empty where too few took part."""
    record = progress(run, 0, "survey")
    if record.failed or not record.members(SUMS["survey"].opening):
        return {}
    found = statements_in(run, 0, record, "survey", Survey)
    task, weights = run.study.task, _weights(run, 0, "survey")
    shared = _shared(run, 0, "survey", sensitivity(task), sum(bins(task).values()))
    sums = _opened(run, 0, shared, {site: each.hidden for site, each in found.items()}, "survey")
    return noised_shares(sums, task, sum(weights[site] for site in found))


def _weights(run: Run, number: int, kind: SumKind) -> dict[str, int]:
    """Return the declared patients of each member of a sum."""
    record = progress(run, number, kind)
    keys = statements_in(run, number, record, SUMS[kind].keys, SumKeys)
    return {site: each.weight for site, each in keys.items()}


def _shared(run: Run, number: int, kind: SumKind, moved: float, numel: int) -> SharedSums:
    weights, attempt = _weights(run, number, kind), progress(run, number, kind).attempt
    terms = terms_of(run, number, len(weights), attempt, kind)
    return SharedSums(event_of(run.study, kind), moved, numel, terms.honest, sum(weights.values()))


def _opened(
    run: Run, number: int, shared: SharedSums, hidden: Mapping[str, tuple[int, ...]],
    kind: SumKind = "metrics",
) -> Noised:  # fmt: skip
    def vector(site: str) -> Vector:
        return np.asarray(hidden[site], dtype=np.uint32)

    return shared.total(total_of(run, number, kind, vector).tolist())
