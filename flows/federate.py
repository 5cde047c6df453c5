"""The federation: one flow, which reads like the algorithm's box."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import wait
from prefect.task_runners import ThreadPoolTaskRunner

from flows.hospitals.processes import REACHABLE, HospitalFailed, HospitalLeftOut
from flows.reporting.prefect_artifacts import announce, end_what_was_left
from flows.reporting.publish import put_on_record, tell_again
from flows.rounds import membership, rounds
from flows.rounds.rounds import NO_ANSWERS, PHASES, Answers
from flows.runs import artifacts
from flows.runs.paths import Home
from flows.runs.run import RoundRecord, Run
from flows.tracking.tracking import Tracking
from models.params import Params
from sites.orders import Phase, is_answered

SIDE_BY_SIDE: ThreadPoolTaskRunner[None] = ThreadPoolTaskRunner(max_workers=1000)
"""All hospitals at once: a task only waits for one. Those on this machine share its cores themselves."""

ON_RECORD: list[Callable[[Run, RoundRecord], None]] = []
"""Who in this process wants to know of each round that is on record."""


@flow(flow_run_name="{run}", task_runner=SIDE_BY_SIDE)  # type: ignore[arg-type]  # Prefect's own type
def federate(run: str, home: str, sites: list[str]) -> None:
    """Train a run's study from its last finished round on.

    After McMahan et al. 2017, algorithm 1: in each round every hospital contributes what it learned
    from the global model, and the strategy makes the next model of the contributions.

    Raises:
        TooFewHospitals: fewer than the study's minimum accept the study, or contribute to a round.
    """
    with Run.open(Home(Path(home)), run).locked() as opened:
        opened.begin_attempt()
        end_what_was_left(opened)
        federation = join(opened, sites)
        with Tracking(federation) as tracking:
            record = begin(federation, tracking)
            first = record.round + 1
            for number in range(first, federation.study.rounds + 1):
                started = time.time()
                federation = admit(federation, tracking, number, first)
                releases = contribute(federation, number, record)
                model = rounds.aggregate(federation, number, record, releases)
                record = finish(federation, tracking, number, model, releases, started)
        federation.mark_finished()


def join(run: Run, sites: Sequence[str]) -> Run:
    """Ask hospitals whether they take part; a run that has begun keeps its hospitals."""
    if run.description.everybody:
        return run
    answers = ask_all(run, 0, "join", sites)
    return run.with_participants(membership.participants(run, answers), answers.left_out)


def begin(run: Run, tracking: Tracking) -> RoundRecord:
    """Return the newest record; in a new run, that of the model before training."""
    if records := run.records():
        tell_again(run, tracking, tracking.untold(records))
        return records[-1]
    return finish(run, tracking, 0, rounds.first_model(run.study), NO_ANSWERS, time.time())


def admit(run: Run, tracking: Tracking, number: int, asked: int) -> Run:
    """Let hospitals join or leave before a round. Whoever is absent was asked in round `asked`, or is
    now, and is not waited for."""
    for site in membership.absent(run):
        order = rounds.order(run, asked, "join", site)
        if not is_answered(run.exchange, order):
            REACHABLE[site].invite(order)
    with artifacts.alone(run):
        members = membership.before_round(run, number, asked)
        tracking.follow(members)
    return members


def contribute(run: Run, number: int, base: RoundRecord) -> Answers:
    """Take the hospitals through the round's phases; return the releases that fit."""
    if decided := rounds.decided(run, number):
        return decided
    answers = NO_ANSWERS
    for phase in PHASES[run.study.privacy.mode]:
        answers = ask_all(run, number, phase, sorted(run.description.participants))
    return rounds.take_in(run, number, base, answers)


def finish(
    run: Run, tracking: Tracking, number: int, model: Params, releases: Answers, started: float
) -> RoundRecord:
    """Publish a global model, have it evaluated everywhere, and put the round on record."""
    model_sha256 = rounds.publish_model(run, number, model)
    scores = NO_ANSWERS
    if run.study.is_evaluated(number):
        scores = ask_all(run, number, "evaluate", sorted(run.description.participants))
    compared = compare(run, number) if run.study.is_compared(number) else NO_ANSWERS
    record = rounds.record(run, number, model_sha256, releases, scores, started, compared)
    put_on_record(run, tracking, record)
    announce(run, record, tracking.page)
    for tell in ON_RECORD:
        tell(run, record)
    return record


def compare(run: Run, number: int) -> Answers:
    """Have each hospital's released model scored at every hospital that allows it."""
    rounds.publish_released(run, number, run.records()[-1])
    return ask_all(run, number, "compare", rounds.comparing(run, number))


def ask_all(run: Run, number: int, phase: Phase, sites: Sequence[str]) -> Answers:
    """Ask hospitals, each in a task of its own; return what they laid down in the exchange."""
    home = str(run.home.folder)
    wait([ask.submit(run.name, number, phase, site, home) for site in sites])
    return rounds.answers(run, number, phase, sites)


@task(
    task_run_name="{phase} {number} {site}",
    retries=2,
    retry_delay_seconds=1,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def ask(run: str, number: int, phase: Phase, site: str, home: str) -> None:
    """Have a hospital's process carry out one phase of a round. It returns nothing on purpose:
    the coordinator reads signed statements from the exchange, never a task's result."""
    opened, started = Run.open(Home(Path(home)), run), time.time()
    order, failure = rounds.order(opened, number, phase, site), ""
    try:
        REACHABLE[site].carry_out(order, timeout_s=opened.study.sites.deadline_s)
    except HospitalLeftOut as error:
        failure = str(error)
    except HospitalFailed as error:
        failure = str(error)
        raise  # Prefect asks again
    finally:
        opened.note_call(number, phase, site, time.time() - started, failure)
