"""What Prefect's UI shows of a run: a table and a bar for each round, a link to MLflow, and events.

They are for people and for automations. Nothing here decides anything, so a server that is out of reach
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

from flows.rounds.rounds import REFUSED
from flows.runs.run import RoundRecord, Run, runs_of
from sites.export import LOW
from sites.notifications import call

CALLS = frozenset({"wardround.site.missing", "wardround.site.refused", "wardround.budget.low"})
"""The events of a round for which a person is called, too (`sites.notifications`)."""


def announce(run: Run, record: RoundRecord, mlflow: str) -> None:
    """Show a round that is on record, and tell who wants to know; `mlflow` is the run's page there."""
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


def announce_standstill(run: Run, reasons: Mapping[str, str]) -> None:
    """Tell who wants to know, and call a person, because a run stands for lack of these hospitals."""
    about = {"prefect.resource.id": f"wardround.run.{run.name}"}
    for site, reason in sorted(reasons.items()):
        payload = {"run": run.name, "study": run.study.name, "site": site, "reason": reason}
        emit_event("wardround.site.missing", about, payload=payload)
        call("wardround.site.missing", f"{run.name} stands without {site}: {reason}", **payload)


def end_what_was_left(run: Run) -> None:
    """Say of the flow runs in which earlier coordinators were killed that they are over.

    They are those of this run, which the caller has locked, and of its study's finished ones.
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
    """Return a round as a table: a row for each hospital, of public values."""
    releases = {release.site: release for release in record.releases}
    shown = []
    for site, participant in sorted(run.description.members(record.round).items()):
        release = releases.get(site)
        metrics = record.scores.get(site, {})
        row: dict[str, Any] = {
            "hospital": site,
            "epsilon": "" if release is None or release.epsilon is None else f"{release.epsilon:.3f}",
            "of budget": f"{participant.budget.epsilon:g}",
            "bytes": release.payload_bytes if release else 0,
            "missing because": record.left_out.get(site, ""),
        }
        row |= {name: f"{value:.3f}" for name, value in metrics.items() if "/" not in name}
        shown.append(row)
    return shown


def events(run: Run, record: RoundRecord) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the events of a round, with what they tell."""
    told = {"run": run.name, "study": run.study.name, "round": record.round}
    for site, reason in sorted(record.left_out.items()):
        kind = "refused" if reason.startswith(REFUSED) else "missing"
        yield f"wardround.site.{kind}", {**told, "site": site, "reason": reason}
    for release in record.releases:
        budget = run.description.member(release.site, record.round).budget.epsilon
        if release.epsilon is not None and release.epsilon >= LOW * budget:
            spent = {"site": release.site, "epsilon": release.epsilon, "budget": budget}
            yield "wardround.budget.low", {**told, **spent}
    yield "wardround.round.done", {**told, "quality": dict(record.quality)}
