"""A run on Prefect's pages: a table and a bar for each round, a link to MLflow, and events.

They are for people and for automations. No decision depends on them, so a server that is out of reach
loses a picture and no round.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import httpx
from prefect import runtime
from prefect.artifacts import create_link_artifact, create_progress_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterName,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import State, StateType
from prefect.events import emit_event
from prefect.exceptions import PrefectException
from prefect.states import Crashed

from flows.runs.records import Absence, RoundRecord
from flows.runs.run import Run, runs_of
from sites.export import LOW
from sites.notifications import call

CALLS = frozenset({"wardround.site.missing", "wardround.site.refused", "wardround.budget.low"})
"""The events of a round that also notify a person (`sites.notifications`)."""


def announce(run: Run, record: RoundRecord, mlflow: str) -> None:
    """Show a recorded round, and notify people; `mlflow` is the run's page there."""
    for name, payload in events(run, record):
        emit_event(name, {"prefect.resource.id": f"wardround.run.{run.name}"}, payload=payload)
        if name in CALLS:
            text = f"{name} in round {record.round} of {run.name}: {payload['site']}"
            call(name, f"{text}: {payload['reason']}" if "reason" in payload else text, **payload)
    key, rounds = run.name.replace("_", "-"), run.study.rounds
    with suppress(httpx.HTTPError, PrefectException):
        create_table_artifact(rows(run, record), f"{key}-hospitals", f"Round {record.round} of {rounds}")
        create_progress_artifact(100 * record.round / rounds, f"{key}-progress", f"Rounds of {run.name}")
        if mlflow.startswith("http"):
            create_link_artifact(mlflow, "MLflow", f"{key}-mlflow", "Every round, model and epsilon")


def announce_standstill(run: Run, absent: Mapping[str, Absence]) -> None:
    """Emit an event, and notify a person, for each hospital whose absence stops a run."""
    about = {"prefect.resource.id": f"wardround.run.{run.name}"}
    for site, why in sorted(absent.items()):
        payload = {"run": run.name, "study": run.study.name, "site": site, "reason": str(why)}
        emit_event("wardround.site.missing", about, payload=payload)
        call("wardround.site.missing", f"{run.name} can't go on without {site}: {why}", **payload)


def end_stale_flow_runs(run: Run) -> None:
    """End the flow runs of this run and its study in which earlier coordinators were killed.

    They are those of this run, which the caller has locked, and of its study's finished runs.
    """
    names = [run.name, *(known.name for known in runs_of(run.home, run.study) if known.is_finished)]
    left = FlowRunFilter(
        name=FlowRunFilterName(any_=names),
        state=FlowRunFilterState(
            type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING])
        ),
    )
    over: State[Any] = Crashed(message="Its coordinator has died; the run goes on in another flow run.")
    with suppress(httpx.HTTPError, PrefectException), get_client(sync_client=True) as client:
        for flow_run in client.read_flow_runs(flow_run_filter=left):
            if str(flow_run.id) != runtime.flow_run.id:
                client.set_flow_run_state(flow_run.id, over, force=True)


def rows(run: Run, record: RoundRecord) -> list[dict[str, Any]]:
    """Return a round as a table of public values: a row for each hospital."""
    absent, metrics = record.absences("release"), record.metrics
    found = []
    for site, participant in sorted(run.description.members(record.round).items()):
        release = record.releases[site].statement if site in record.releases else None
        row: dict[str, Any] = {
            "hospital": site,
            "epsilon": "" if release is None or release.epsilon is None else f"{release.epsilon:.3f}",
            "of budget": f"{participant.statement.budget.epsilon:g}",
            "bytes": release.payload_bytes if release else 0,
            "missing because": str(absent.get(site, "")),
        }
        row |= {name: f"{value:.3f}" for name, value in metrics.get(site, {}).items() if "/" not in name}
        found.append(row)
    return found


def events(run: Run, record: RoundRecord) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the events of a round with their payloads."""
    about = {"run": run.name, "study": run.study.name, "round": record.round}
    for site, why in record.absences("release").items():
        kind = "refused" if why.kind == "refused" else "missing"
        yield f"wardround.site.{kind}", {**about, "site": site, "reason": str(why)}
    for site, release in record.releases.items():
        epsilon = release.statement.epsilon
        budget = run.description.member(site, record.round).statement.budget.epsilon
        if epsilon is not None and epsilon >= LOW * budget:
            spent = {"site": site, "epsilon": epsilon, "budget": budget}
            yield "wardround.budget.low", {**about, **spent}
    yield "wardround.round.done", {**about, "quality": dict(record.quality)}
