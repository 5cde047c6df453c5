"""The making of a round's record from the hospitals' answers."""

import time
from collections.abc import Mapping

from flows.rounds.figures import summed_metrics
from flows.rounds.releases import weight_of
from flows.rounds.statements import NO_ANSWERS, Answers
from flows.rounds.sum_progress import progress
from flows.runs.records import (
    GENESIS,
    Absence,
    AcceptedRelease,
    HospitalRound,
    RoundRecord,
    Signed,
    StartRecord,
)
from flows.runs.run import Run
from flows.runs.versions import installed
from models.settings.metrics import SPREAD
from privacy.statements import Comparison, ReleaseManifest, Scores, Statement

UNASKED = Absence(kind="missing", text="it no longer took part when the model was scored")
OTHER_MODEL = Absence(kind="rejected", text="its scores are of another model")
NOT_COMPARED = Absence(kind="rejected", text="it is no comparison")
Answer = Signed[Statement] | Absence | None


def round_record(
    run: Run,
    round: int,
    model_sha256: str,
    releases: Answers,
    scores: Answers,
    started: float,
    comparisons: Answers = NO_ANSWERS,
    start: StartRecord | None = None,
) -> RoundRecord:
    """Return the record of a round, chained to the one before.

    Args:
        started: when the round began, in seconds since 1970.
        start: how the first model was made; for round 0.
    """
    before = run.records()
    waits = run.waits(round, "contribute")
    unasked = _unasked(run, round, releases, scores)
    sites = releases.asked | scores.asked | comparisons.asked | waits.keys() | unasked
    hospitals = {
        site: HospitalRound(
            release=_release(run, round, releases.of(site)),
            scores=UNASKED if site in unasked else _scores(scores.of(site), model_sha256),
            comparison=_comparison(comparisons.of(site)),
            seconds=waits.get(site),
        )
        for site in sorted(sites)
    }
    metrics = {
        s: h.scores.statement.metrics for s, h in hospitals.items() if isinstance(h.scores, Signed)
    }
    return RoundRecord(
        study=run.study.name,
        study_sha256=run.study.sha256,
        run=run.name,
        round=round,
        previous=before[-1].sha256 if before else GENESIS,
        base_sha256=before[-1].model_sha256 if before else GENESIS,
        model_sha256=model_sha256,
        hospitals=hospitals,
        quality=quality_in(run, round, metrics),
        seconds=time.time() - started,
        finished_ms=int(time.time() * 1000),
        software=installed(),
        start=start,
        sum=progress(run, round) if run.study.is_summed and round else None,
        metrics_sum=progress(run, round, "metrics") if has_metrics_sum(run, round) else None,
    )


def has_metrics_sum(run: Run, round: int) -> bool:
    """Return whether a round's metrics are those of a secure sum."""
    return run.study.evaluation.summed is not None and run.study.is_evaluated(round)


def quality_in(run: Run, round: int, metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return a round's quality: of the secure sum of the metrics, or the mean of the hospitals'."""
    return summed_metrics(run, round) if has_metrics_sum(run, round) else quality_of(run, round, metrics)


def _release(run: Run, round: int, answer: Answer) -> AcceptedRelease | Absence | None:
    if answer is None or isinstance(answer, Absence):
        return answer
    if not isinstance(answer.statement, ReleaseManifest):
        return None
    return AcceptedRelease(
        statement=answer.statement,
        statement_sha256=answer.statement_sha256,
        public_key=answer.public_key,
        weight=weight_of(run, round, answer.statement),
    )


def _scores(answer: Answer, model_sha256: str) -> Signed[Scores] | Absence | None:
    if answer is None or isinstance(answer, Absence):
        return answer
    if isinstance(answer.statement, Scores) and answer.statement.model_sha256 == model_sha256:
        return Signed[Scores](**dict(answer))
    return OTHER_MODEL


def _comparison(answer: Answer) -> Signed[Comparison] | Absence | None:
    if answer is None or isinstance(answer, Absence):
        return answer
    if isinstance(answer.statement, Comparison):
        return Signed[Comparison](**dict(answer))
    return NOT_COMPARED


def _unasked(run: Run, round: int, releases: Answers, scores: Answers) -> frozenset[str]:
    """Return the hospitals that began a round and left it before the model was scored."""
    if not run.study.is_evaluated(round):
        return frozenset()
    everybody = frozenset(run.description.everybody)
    begun = releases.asked & everybody if round else everybody
    return begun - scores.asked


def quality_of(run: Run, round: int, metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return each metric's mean over the hospitals that published it, by declared patients.

    Intervals and worst cases have no mean.
    """
    every = {name for each in metrics.values() for name in each}
    names = sorted(name for name in every if name.partition("/")[0] not in SPREAD)
    quality = {}
    for name in names:
        pairs = [
            (run.description.member(site, round).statement.declared_training, each[name])
            for site, each in metrics.items()
            if name in each
        ]
        quality[name] = sum(n * value for n, value in pairs) / sum(n for n, _ in pairs)
    return quality
