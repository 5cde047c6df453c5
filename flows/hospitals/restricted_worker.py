"""A worker that runs only the code that is installed beside it, whatever Prefect's server sends.

With Prefect's own process worker, anybody who reaches the API can run any command (job variables, pull
steps). Here the server can name one of a few known flows, with parameters that are checked. Commands,
images, environments and pull steps are reported and ignored, and no result is ever read.

Polling, heartbeats and the page in the UI come from Prefect's worker (3.8; some methods are private).
"""

import abc
import os
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any
from uuid import UUID

import anyio
import anyio.abc
import httpx
from anyio.to_thread import run_sync
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType, WorkPool
from prefect.events import emit_event
from prefect.exceptions import ObjectNotFound, PrefectException, PrefectSignal
from prefect.states import Cancelled, Crashed, Failed, Running
from prefect.utilities.engine import propose_state
from prefect.workers.base import BaseJobConfiguration, BaseVariables, BaseWorker, BaseWorkerResult

WATCH_S, HEARTBEAT_S = 5, 30
"""Seconds between two checks whether a run was cancelled, and between two heartbeats of a run."""

PAUSES_S = (5, 15, 60, 120, 300)
"""Seconds before each further attempt to report to Prefect how a run has ended."""

UNFINISHED = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]

NOTHING_TO_SET = {
    "job_configuration": {"runs": "what is installed beside the worker"},
    "variables": {"type": "object", "properties": {}},
}
"""The settings that the work pool offers: none."""


class Nothing(BaseJobConfiguration):
    """An empty configuration of a run: the server sets nothing."""

    @classmethod
    async def resolve_for_flow_run(
        cls,
        flow_run: FlowRun,
        *,
        client: PrefectClient,
        work_pool: WorkPool,
        worker_name: str,
        worker_id: UUID | None = None,
        deployment: Any = None,  # noqa: ANN401  # Prefect's own signature
    ) -> "Nothing":
        """Return an empty configuration, whatever deployment, work pool and run contain."""
        del flow_run, client, work_pool, worker_name, worker_id, deployment
        return cls()


class InstalledWorker(BaseWorker[Nothing, BaseVariables, BaseWorkerResult]):
    """A worker for the flows named in `flows`."""

    type = "wardround"
    job_configuration = Nothing
    flows: Collection[str] = ()

    def __init__(self, name: str, limit: int) -> None:
        super().__init__(work_pool_name=name, name=name, limit=limit, base_job_template=NOTHING_TO_SET)
        self._cancelled: set[UUID] = set()
        self._is_registered = False

    @abc.abstractmethod
    async def work(self, flow: str, flow_run: FlowRun) -> State[Any]:
        """Do the work of a flow run; return the state in which it ends.

        Raises:
            ValueError: its parameters are unknown or wrong; Prefect's UI shows the message.
        """

    @abc.abstractmethod
    def stop(self, flow_run_id: UUID) -> None:
        """End the work for a run at once."""

    def note_ignored(self, settings: Sequence[str]) -> None:
        """Note that the server has sent settings, which were ignored; by default nowhere else."""

    async def register(self) -> None:
        """Create deployments, once the work pool exists; by default none."""

    async def run(
        self,
        flow_run: FlowRun,
        configuration: Nothing,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> BaseWorkerResult:
        """Do the work of a flow run, and report its end to Prefect."""
        del configuration
        if task_status:
            task_status.started(os.getpid())
        await self._propose(flow_run, Running())
        async with self._watched(flow_run):
            ended = await self._worked(flow_run)
        if flow_run.id in self._cancelled:
            ended = Cancelled(message="Cancelled.")
        await self._propose(flow_run, ended)
        return BaseWorkerResult(identifier=str(flow_run.id), status_code=0)

    async def _worked(self, flow_run: FlowRun) -> State[Any]:
        try:
            flow = (await self.client.read_flow(flow_run.flow_id)).name
            await self._report_ignored(flow_run)
            if flow not in self.flows:
                raise ValueError(f"Expected one of the flows {', '.join(self.flows)}, got another.")
            return await self.work(flow, flow_run)
        except (httpx.HTTPError, PrefectException):
            return Crashed(message="Prefect was out of reach.")
        except ValueError as error:
            return Failed(message=str(error))

    async def _report_ignored(self, flow_run: FlowRun) -> None:
        """Report, in the log and as an event, the settings from the server that this worker ignores."""
        sent: dict[str, Any] = {"the run's job variables": flow_run.job_variables}
        if flow_run.deployment_id:
            deployment = await self.client.read_deployment(flow_run.deployment_id)
            sent |= {
                "the deployment's job variables": deployment.job_variables,
                "the deployment's pull steps": deployment.pull_steps,
            }
        ignored = sorted(name for name, value in sent.items() if value)
        if ignored:
            text = f"Ignored, because only installed code runs here: {', '.join(ignored)}."
            self.get_flow_run_logger(flow_run).warning(text)
            self.note_ignored(ignored)
            self._emit("wardround.site.ignored", flow_run, {"ignored": ignored})

    @asynccontextmanager
    async def _watched(self, flow_run: FlowRun) -> AsyncIterator[None]:
        """Send heartbeats of the run to Prefect, and end the work if the run was cancelled.

        The worker polls for this: Prefect's own watch checks only runs that have not begun, and proxies
        may let no events through.
        """

        async def watch() -> None:
            for seconds in count(step=WATCH_S):
                if seconds % HEARTBEAT_S == 0:
                    self._emit("prefect.flow-run.heartbeat", flow_run, {})
                await anyio.sleep(WATCH_S)
                if await self._is_cancelled(flow_run):
                    self._cancelled.add(flow_run.id)
                    await run_sync(self.stop, flow_run.id)

        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            try:
                yield
            finally:
                group.cancel_scope.cancel()

    async def _is_cancelled(self, flow_run: FlowRun) -> bool:
        try:
            state = (await self.client.read_flow_run(flow_run.id)).state
        except (httpx.HTTPError, PrefectException):
            return False
        return state is not None and (state.is_cancelling() or state.is_cancelled())

    def _emit(self, event: str, flow_run: FlowRun, payload: Mapping[str, Any]) -> None:
        resource = {
            "prefect.resource.id": f"prefect.flow-run.{flow_run.id}",
            "prefect.resource.name": flow_run.name,
        }
        emit_event(event=event, resource=resource, payload=dict(payload))

    async def _propose(self, flow_run: FlowRun, state: State[Any]) -> None:
        """Propose a state to Prefect, again while it is out of reach; accept that a run has ended."""
        for pause_s in (*PAUSES_S, None):
            try:
                await propose_state(self.client, state, flow_run_id=flow_run.id)
                return
            except (PrefectSignal, ObjectNotFound):  # the run was ended, paused or deleted
                return
            except (httpx.HTTPError, PrefectException):
                if pause_s is None:
                    raise
                await anyio.sleep(pause_s)

    async def _initialize_after_sync(self) -> None:
        await super()._initialize_after_sync()
        if self._has_successfully_synced and not self._is_registered:
            await self._end_abandoned_runs()
            await self.register()
            self._is_registered = True

    async def _end_abandoned_runs(self) -> None:
        """End the runs that an earlier worker of this name left unfinished when it was killed."""
        abandoned = await self.client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED))
            ),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[self._work_pool_name])),
        )
        for flow_run in abandoned:
            is_unwanted = flow_run.state and flow_run.state.is_cancelling()
            ended: State[Any] = Cancelled() if is_unwanted else Crashed(message="The worker has died.")
            await self._propose(flow_run, ended)
