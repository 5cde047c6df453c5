"""The asking of hospitals, in Prefect's tasks."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from math import ceil
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import wait
from prefect.task_runners import ThreadPoolTaskRunner

from flows.hospitals.processes import HospitalFailed, HospitalLeftOut
from flows.hospitals.session import session_of
from flows.rounds import global_model, statements
from flows.rounds.statements import Answers
from flows.runs.paths import Home
from flows.runs.run import Run
from models.spans import span
from sites.exchange.answers import is_answered
from sites.exchange.phases import Phase

TRAININGS, SHORT = 100, 8
"""The most tasks of a phase in which hospitals train, and of another: each costs Prefect's client and
server some 50 ms of processor time, whatever it does (`benchmarks/scale.py`)."""
SIDE_BY_SIDE: ThreadPoolTaskRunner[None] = ThreadPoolTaskRunner(max_workers=TRAININGS)
"""All tasks at once: they only wait for hospitals. Those on this machine share its cores themselves."""


def ask_all(run: Run, number: int, phase: Phase, sites: Sequence[str]) -> Answers:
    """Ask hospitals side by side; return their answers, read from the exchange."""
    home = str(run.home.folder)
    with span("ask", phase=phase, round=number):
        asked = groups(phase, sites)
        wait([ask.submit(run.name, number, phase, some, _named(some), home) for some in asked])
    with span("verify", phase=phase, round=number):
        return statements.answers(run, number, phase, sites)


def groups(phase: Phase, sites: Sequence[str]) -> list[list[str]]:
    """Return the hospitals by task, as evenly as they come: each alone while there are few.

    >>> groups("contribute", ["east", "north", "west"])
    [['east'], ['north'], ['west']]
    >>> [len(some) for some in groups("evaluate", [f"site-{number}" for number in range(20)])]
    [3, 3, 3, 3, 3, 3, 2]
    """
    each = ceil(len(sites) / (TRAININGS if phase == "contribute" else SHORT)) or 1
    return [list(sites[first : first + each]) for first in range(0, len(sites), each)]


def _named(sites: Sequence[str]) -> str:
    return sites[0] if len(sites) == 1 else f"{sites[0]} and {len(sites) - 1} more"


@task(
    task_run_name="{phase} {number} {named}",
    retries=2,
    retry_delay_seconds=1,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def ask(run: str, number: int, phase: Phase, sites: list[str], named: str, home: str) -> None:
    """Have hospitals carry out one phase of a round; `named` is for Prefect's pages.

    It returns nothing on purpose: the coordinator reads signed statements from the exchange, never a
    task's result.

    Raises:
        HospitalFailed: at least one could not do it; Prefect asks those without an answer again.
    """
    del named
    opened = Run.open(Home(Path(home)), run)
    if len(sites) == 1:
        failures = [_ask_one(opened, number, phase, sites[0])]
    else:
        with ThreadPoolExecutor(len(sites)) as threads:
            # Prefect finds its flow run in the context
            asked = [
                threads.submit(copy_context().run, _ask_one, opened, number, phase, s) for s in sites
            ]
            failures = [future.result() for future in asked]
    for failure in failures:
        if failure is not None:
            raise failure


def _models(run: Run, number: int, phase: Phase) -> Sequence[str]:
    """Return the hospitals whose released models an order is about."""
    if phase == "compare" or (phase == "audit" and run.study.is_compared(number)):
        return global_model.compared_hospitals(run, number)
    return ()


def _ask_one(run: Run, number: int, phase: Phase, site: str) -> HospitalFailed | None:
    """Have one hospital carry out a phase of a round; return why it failed, if it may be asked again."""
    started = time.time()
    models = _models(run, number, phase)
    order, failure = statements.order(run, number, phase, site, models), ""
    try:
        hospital = session_of(run).hospitals[site]
        if not is_answered(run.exchange, order, run.description.roster[site]):
            with span("wait", phase=phase, round=number, hospital=site):
                hospital.carry_out(order, timeout_s=run.study.sites.deadline_s)
    except HospitalLeftOut as error:
        failure = str(error)
    except HospitalFailed as error:
        failure = str(error)
        return error
    finally:
        run.note_call(number, phase, site, time.time() - started, failure)
    return None
