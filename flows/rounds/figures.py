"""Metrics and statistics of all hospitals together, from their secure sum."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from flows.rounds import secure_sum
from flows.rounds.secure_sum import Ask, statements_in, total_of
from flows.rounds.statements import Answers
from flows.rounds.sum_progress import progress, terms_of
from flows.runs.records import head_before
from flows.runs.run import Run
from models.objectives import build_task
from privacy.noise.noised import Noised, SharedSums
from privacy.secure_aggregation.ring import Vector
from privacy.statements import EventRecord, Scores, Statement, SumKeys, Survey
from sites.evaluation.scoring import noised_means
from sites.evaluation.survey import bins, noised_shares, sensitivity
from sites.exchange.phases import SUMS, SumKind
from sites.secure_sum.figures import event_of

FIGURES: Mapping[SumKind, type[Scores] | type[Survey]] = {"metrics": Scores, "survey": Survey}
"""The statement that has a hospital's masked sums, by what they are of."""


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
    task = build_task(run.study.task)
    count = len(task.bounded([]))
    total = _total(run, number, "metrics", count**0.5, count)
    return noised_means(total.sums, task, total.declared, total.deviation) if total else {}


def summed_survey(run: Run) -> dict[str, list[float | None]]:
    """Return the histograms of all hospitals together; empty where too few took part."""
    task = run.study.task
    total = _total(run, 0, "survey", sensitivity(task), sum(bins(task).values()))
    return noised_shares(total.sums, task, total.declared) if total else {}


class _Total(NamedTuple):
    """The noised sums of all hospitals, their declared patients, and each sum's standard deviation."""

    sums: Noised
    declared: int
    deviation: float


def _total(run: Run, number: int, kind: SumKind, moved: float, numel: int) -> _Total | None:
    """Return what hospitals have summed; None where too few took part.

    Args:
        moved: the largest L2 norm of a patient's row.
        numel: the length of a row.
    """
    record, phases = progress(run, number, kind), SUMS[kind]
    if record.failed or not record.members(phases.opening):
        return None
    found = statements_in(run, number, record, phases.vector, FIGURES[kind])
    keys = statements_in(run, number, record, phases.keys, SumKeys)
    terms = terms_of(run, number, len(keys), record.attempt, kind)
    patients = sum(each.weight for each in keys.values())
    shared = SharedSums(event_of(run.study, kind), moved, numel, terms.honest, patients)

    def vector(site: str) -> Vector:
        return np.asarray(found[site].hidden, dtype=np.uint32)

    sums = shared.total(total_of(run, number, kind, vector).tolist())
    return _Total(sums, sum(keys[site].weight for site in found), shared.deviation(len(found)))
