"""A hospital's worker: it asks Prefect for work over HTTPS, and runs nothing but what is installed here.

Whoever holds the coordinator's password can name an order in the exchange, and nothing else: commands,
images, environments, pull steps and other parameters that the server sends are reported and ignored,
and so is a flow that this hospital does not know. The order itself counts if the coordinator's own key
signed it (`sites.errands`). Patients' data are read in a process that knows neither Prefect nor its
password.

Built on Prefect's worker for polling, heartbeats and its page in the UI (3.8; some methods are private).
"""

import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
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
from prefect.exceptions import Abort, PrefectException
from prefect.input.run_input import keyset_from_base_key
from prefect.states import Cancelled, Completed, Crashed, Failed, Running, Suspended
from prefect.utilities.engine import propose_state
from prefect.workers.base import BaseJobConfiguration, BaseVariables, BaseWorker, BaseWorkerResult
from pydantic import ValidationError

from flows.hospitals import PASSED_ON, HospitalFailed, HospitalProcess, HospitalWaits
from sites.approvals import Word
from sites.errands import FLOWS, Errand
from sites.hospital import Hospital
from sites.storage import AUTH

NETWORK = ("SSL_CERT_FILE", "SSL_CERT_DIR", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy")
SITE_PASSED_ON = (*PASSED_ON, *NETWORK, AUTH)
"""What a hospital's process sees of the worker's environment: what it needs to reach the exchange."""

LONGEST_S = 7 * 24 * 3600.0
"""How long a hospital works for one errand at most; orders expire long before."""

WATCH_S, HEARTBEAT_S = 5, 30
"""How often a worker looks whether its run was cancelled, and says that it lives."""

LEFT = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]

NOTHING_TO_SET = {
    "job_configuration": {"runs": "what is installed at the hospital"},
    "variables": {"type": "object", "properties": {}},
}
"""What the work pool lets anybody set: nothing."""


class Nothing(BaseJobConfiguration):
    """How a run is to be started, as far as a server may say: not at all."""

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
        """Return an empty configuration, whatever deployment, work pool and run say."""
        del flow_run, client, work_pool, worker_name, worker_id, deployment
        return cls()


class HospitalWorker(BaseWorker[Nothing, BaseVariables, BaseWorkerResult]):
    """One hospital's worker; its work pool and its deployments carry the hospital's name."""

    type = "wardround"
    job_configuration = Nothing
    _description = "Carries out signed orders at one hospital."

    def __init__(self, folder: Path, test_noise: int | None = None) -> None:
        hospital = Hospital.open(folder, test_noise)
        super().__init__(
            work_pool_name=hospital.name, name=hospital.name, limit=1, base_job_template=NOTHING_TO_SET
        )
        self.process = HospitalProcess(hospital.name, folder, test_noise, passed_on=SITE_PASSED_ON)
        self._working_for: UUID | None = None
        self._is_registered = False

    async def run(
        self,
        flow_run: FlowRun,
        configuration: Nothing,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> BaseWorkerResult:
        """Carry out the errand that a flow run names, and tell Prefect how it ended."""
        del configuration
        if task_status:
            task_status.started(os.getpid())
        done = BaseWorkerResult(identifier=str(flow_run.id), status_code=0)
        try:
            errand = await self._errand_of(flow_run)
        except ValueError as error:
            await self._propose(flow_run, Failed(message=str(error)))
            return done
        await self._propose(flow_run, Running())
        self._working_for = flow_run.id
        try:
            async with self._watched(flow_run):
                ended = await self._carry_out(flow_run, errand)
        finally:
            self._working_for = None
        await self._propose(flow_run, ended)
        return done

    async def _errand_of(self, flow_run: FlowRun) -> Errand:
        """Return what a flow run asks for; raise ValueError, with words for the UI, if that is none."""
        flow = await self.client.read_flow(flow_run.flow_id)
        await self._report_ignored(flow_run)
        if flow.name not in FLOWS:
            raise ValueError(f"This hospital knows the flows {', '.join(FLOWS)}, and no other.")
        try:
            errand = Errand.model_validate(flow_run.parameters)
        except ValidationError as error:
            raise ValueError("Expected the parameters run, round, phase and attempt.") from error
        if errand.phase not in FLOWS[flow.name]:
            raise ValueError(f"Expected a phase of {', '.join(FLOWS[flow.name])} in {flow.name}.")
        return errand

    async def _carry_out(self, flow_run: FlowRun, errand: Errand) -> State[Any]:
        """Have the hospital's process carry out an errand; return the state in which it ended."""
        times, word = await self._said(flow_run)
        request = {"errand": errand.model_dump(mode="json")}
        if word is not None:
            with suppress(HospitalFailed):  # a wrong code; whatever waits goes on waiting
                await run_sync(self.process.request, {"word": word}, LONGEST_S)
        try:
            await run_sync(self.process.request, request, LONGEST_S)
        except HospitalWaits as waits:
            return await self._waiting(flow_run, str(waits), times + 1)
        except HospitalFailed as error:
            if self._working_for is None:
                return Cancelled(message="Cancelled.")
            is_dead = self.process.pid is None
            return (Crashed if is_dead else Failed)(message=str(error))
        return Completed(message="The answer lies in the exchange.")

    async def _waiting(self, flow_run: FlowRun, act: str, times: int) -> State[Any]:
        """Return the state of a run that waits for a person, with the form that the UI shows him."""
        key = f"approval-{times}"
        keyset = keyset_from_base_key(f"suspended-{key}")
        text = (
            f"{self.name} waits for its approval to {act}. Run `wardround site waiting` there: it shows "
            f"the terms and the code. Without that code nothing that is said here counts."
        )
        form = {keyset["schema"]: Word.model_json_schema(), keyset["description"]: text}
        for name, value in form.items():
            await self.client.create_flow_run_input(flow_run.id, name, json.dumps(value))
        state: State[Any] = Suspended(timeout_seconds=int(LONGEST_S), pause_key=key)
        state.state_details.run_input_keyset = {str(part): name for part, name in keyset.items()}
        return state

    async def _said(self, flow_run: FlowRun) -> tuple[int, Mapping[str, Any] | None]:
        """Return how often somebody has filled in the form of a run, and what he said last."""
        word = None
        for times in count(1):
            keyset = keyset_from_base_key(f"suspended-approval-{times}")
            try:
                value = await self.client.read_flow_run_input(flow_run.id, keyset["response"])
            except (PrefectException, httpx.HTTPStatusError):
                return times - 1, word
            word = json.loads(value)
        raise AssertionError("unreachable")

    async def _report_ignored(self, flow_run: FlowRun) -> None:
        """Say, here and as an event, what the server sent that this worker never looks at."""
        sent: dict[str, Any] = {"the run's job variables": flow_run.job_variables}
        if flow_run.deployment_id:
            deployment = await self.client.read_deployment(flow_run.deployment_id)
            sent |= {
                "the deployment's job variables": deployment.job_variables,
                "the deployment's pull steps": deployment.pull_steps,
                "the deployment's entry point": deployment.entrypoint,
            }
        ignored = sorted(name for name, value in sent.items() if value)
        if ignored:
            said = f"Ignored, because this hospital runs what is installed here: {', '.join(ignored)}."
            self.get_flow_run_logger(flow_run).warning(said)
            self._emit("wardround.site.ignored", flow_run, {"ignored": ignored})

    @asynccontextmanager
    async def _watched(self, flow_run: FlowRun) -> AsyncIterator[None]:
        """Let Prefect know that the run is alive, and end the work if somebody has cancelled it.

        It asks, since Prefect's own watch looks at runs that have not begun yet alone, and proxies may
        let no events through.
        """

        async def watch() -> None:
            for seconds in count(step=WATCH_S):
                if seconds % HEARTBEAT_S == 0:
                    self._emit("prefect.flow-run.heartbeat", flow_run, {})
                await anyio.sleep(WATCH_S)
                if await self._is_cancelled(flow_run):
                    self._working_for = None
                    await run_sync(self.process.kill)

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
        with suppress(Abort):  # somebody has ended the run in the meantime
            await propose_state(self.client, state, flow_run_id=flow_run.id)

    async def _initialize_after_sync(self) -> None:
        """Once the work pool is there, put up the deployments by which this hospital can be asked."""
        await super()._initialize_after_sync()
        if self._is_registered or not self._has_successfully_synced:
            return
        await self._end_what_was_left()
        for flow in FLOWS:
            flow_id = await self.client.create_flow_from_name(flow)
            await self.client.create_deployment(
                flow_id,
                name=self.name,
                work_pool_name=self._work_pool_name,
                job_variables={},
                pull_steps=[],
                parameter_openapi_schema=Errand.model_json_schema(),
                enforce_parameter_schema=True,
                description=f"{flow} at {self.name}: an order that lies in the exchange, by its name.",
            )
        self._is_registered = True

    async def _end_what_was_left(self) -> None:
        """Say of the runs in which an earlier worker of this hospital was killed that they are over."""
        left = await self.client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=LEFT))
            ),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[self._work_pool_name])),
        )
        for flow_run in left:
            is_unwanted = flow_run.state and flow_run.state.is_cancelling()
            ended: State[Any] = Cancelled() if is_unwanted else Crashed(message="The worker has died.")
            await self._propose(flow_run, ended)

    async def teardown(self, *exc_info: Any) -> None:  # Prefect's own signature
        """End the hospital's process with the worker."""
        await run_sync(self.process.close)
        await super().teardown(*exc_info)
