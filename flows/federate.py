"""The federation as one Prefect flow, which reads like the algorithm box of its paper."""

import time
from collections.abc import Sequence
from pathlib import Path

from prefect import flow

from flows.asking import SIDE_BY_SIDE, ask_all
from flows.hospitals.session import session_of
from flows.reporting.prefect_artifacts import end_stale_flow_runs
from flows.reporting.publish import Publishing, backfill
from flows.rounds import (
    aggregation,
    figures,
    global_model,
    membership,
    recording,
    releases,
    secure_sum,
    statements,
)
from flows.rounds.statements import NO_ANSWERS, Answers
from flows.runs.paths import Home
from flows.runs.records import RoundRecord, StartRecord
from flows.runs.run import Run
from flows.starts import first_model
from flows.tracking.tracking import Tracking
from models.params import Params
from models.spans import span
from sites.exchange.answers import is_answered


@flow(flow_run_name="{run}", task_runner=SIDE_BY_SIDE)  # type: ignore[arg-type]  # Prefect's own type
def federate(run: str, home: str, sites: list[str]) -> None:
    """Train a run's study from its last finished round on.

    In each round every hospital contributes what it learned from the global model, and the strategy
    makes the next model of the contributions (McMahan et al. 2017, FedAvg, algorithm 1,
    https://arxiv.org/abs/1602.05629).

    Raises:
        TooFewHospitals: fewer than the study's minimum accept the study, or contribute to a round.
    """
    with Run.open(Home(Path(home)), run).locked() as opened:
        opened.begin_attempt()
        end_stale_flow_runs(opened)
        federation = join(opened, sites)
        with Tracking(federation) as tracking, Publishing(tracking) as publishing:
            record = begin(federation, publishing)
            first = record.round + 1
            for number in range(first, federation.study.rounds + 1):
                started = time.time()
                federation = admit(federation, publishing, number, first)
                accepted = contribute(federation, number, record)
                model = aggregation.aggregate(federation, number, record, accepted)
                record = finish(federation, publishing, number, model, accepted, started)
        federation.mark_finished()


def join(run: Run, sites: Sequence[str]) -> Run:
    """Ask hospitals whether they take part; a run that has begun keeps its hospitals."""
    if run.description.everybody:
        return run
    first_model.publish_cases(run)
    answers = ask_all(run, 0, "join", sites)
    return run.with_participants(membership.participants(run, answers), answers.absent)


def begin(run: Run, publishing: Publishing) -> RoundRecord:
    """Return the newest record; in a new run, that of the model before training."""
    if records := run.records():
        backfill(run, publishing.tracking, publishing.tracking.unlogged(records))
        return records[-1]
    started = time.time()
    start = first_model.start_of(run)
    return finish(run, publishing, 0, start.params, NO_ANSWERS, started, start.record)


def admit(run: Run, publishing: Publishing, number: int, first: int) -> Run:
    """Let hospitals join or leave before a round.

    Absent hospitals are invited once per start of the coordinator, in the name of its `first` round; the
    round does not wait for them.
    """
    for site in membership.absent(run):
        order = statements.order(run, first, "join", site)
        if not is_answered(run.exchange, order, run.description.roster[site]):
            session_of(run).hospitals[site].invite(order)
    if not membership.has_changed(run, number, first):
        return run
    with publishing.paused(run):
        members = membership.before_round(run, number, first)
        publishing.tracking.follow(members)
    return members


def contribute(run: Run, number: int, base: RoundRecord) -> Answers:
    """Have the hospitals contribute to a round; return the releases that fit."""
    if run.study.is_summed:
        return secure_sum.contribute(run, number, base, ask_all)
    if decided := releases.decided(run, number):
        return decided
    answers = ask_all(run, number, "contribute", sorted(run.description.participants))
    with span("verify", round=number):
        return releases.accept_releases(run, number, base, answers)


def finish(
    run: Run, publishing: Publishing, number: int, model: Params, accepted: Answers, started: float,
    start: StartRecord | None = None,
) -> RoundRecord:  # fmt: skip
    """Publish a global model, have it evaluated everywhere, and record the round."""
    rate = start.rate if start else run.rate
    model_sha256 = global_model.publish_model(run, number, model, rate)
    scores = NO_ANSWERS
    if run.study.is_evaluated(number):
        scores = evaluate(run, number, model_sha256)
    compared = compare(run, number) if run.study.is_compared(number) else NO_ANSWERS
    record = recording.round_record(
        run, number, model_sha256, accepted, scores, started, compared, start
    )
    publishing.publish(run, record)
    return record


def evaluate(run: Run, number: int, model_sha256: str) -> Answers:
    """Have a round's model scored at every hospital, or by all of them together."""
    if run.study.evaluation.summed:
        return figures.ask_scores(run, number, model_sha256, ask_all)
    return ask_all(run, number, "evaluate", sorted(run.description.participants))


def compare(run: Run, number: int) -> Answers:
    """Have each hospital's released model scored at every hospital that allows it."""
    global_model.publish_released(run, number, run.records()[-1])
    return ask_all(run, number, "compare", global_model.compared_hospitals(run, number))
