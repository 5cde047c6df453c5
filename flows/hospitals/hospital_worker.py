"""A hospital's worker: it asks Prefect for work over HTTPS, and fetches its orders from the exchange.

A person who has the coordinator's password can name an order, and nothing else
(`flows.hospitals.restricted_worker`). The order itself counts only if the coordinator's key signed it
(`sites.protocol.order_inbox`). Patients' data are read in a process that knows neither Prefect nor its
password.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from anyio.to_thread import run_sync
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import PrefectException
from prefect.input.run_input import keyset_from_base_key
from prefect.states import Completed, Crashed, Failed, Suspended
from pydantic import ValidationError

from flows.hospitals.processes import HospitalFailed, HospitalProcess, HospitalWaits
from flows.hospitals.restricted_worker import InstalledWorker
from flows.hospitals.template import PASSED_ON
from sites.admission.requests import CodeAnswer
from sites.exchange.storage import AUTH
from sites.hospital import Hospital
from sites.notifications import WEBHOOK
from sites.protocol.order_inbox import FLOWS, OrderRef

NETWORK = ("SSL_CERT_FILE", "SSL_CERT_DIR", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy")
SITE_PASSED_ON = (*PASSED_ON, *NETWORK, AUTH, WEBHOOK)
"""The variables of the worker's environment that a hospital's process gets, to reach the exchange."""

LONGEST_S = 7 * 24 * 3600.0
"""The most seconds that a hospital works for one order; orders expire long before."""


class HospitalWorker(InstalledWorker):
    """One hospital's worker; its work pool and its deployments carry the hospital's name."""

    type = "wardround-hospital"
    flows = tuple(FLOWS)
    _description = "Carries out signed orders at one hospital."

    def __init__(self, folder: Path, test_noise: int | None = None) -> None:
        hospital = Hospital.open(folder, test_noise)
        super().__init__(hospital.name, limit=1)
        self.log = hospital.security_log
        self.process = HospitalProcess(hospital.name, folder, test_noise, passed_on=SITE_PASSED_ON)

    async def work(self, flow: str, flow_run: FlowRun) -> State[Any]:
        """Have the hospital's process carry out the order that a run names."""
        ref = _ref_in(flow, flow_run.parameters)
        times, answer = await self._answered(flow_run)
        if answer is not None:
            with suppress(HospitalFailed):  # a wrong code: the order keeps waiting for approval
                await run_sync(self.process.request, {"answer": answer}, LONGEST_S)
        try:
            request = {"order_ref": ref.model_dump(mode="json")}
            await run_sync(self.process.request, request, LONGEST_S)
        except HospitalWaits as waits:
            return await self._waiting(flow_run, str(waits), times + 1)
        except HospitalFailed as error:
            is_dead = self.process.pid is None
            return (Crashed if is_dead else Failed)(message=str(error))
        return Completed(message="The answer is in the exchange.")

    def note_ignored(self, settings: Sequence[str]) -> None:
        """Note settings that the server has sent in the hospital's own log."""
        self.log.write("settings_ignored", "Prefect's server", settings=", ".join(settings))

    def stop(self, flow_run_id: UUID) -> None:
        """Kill the hospital's process; charges to the ledger stay."""
        del flow_run_id
        self.process.kill()

    async def register(self) -> None:
        """Create the deployments through which this hospital is asked."""
        for flow in FLOWS:
            flow_id = await self.client.create_flow_from_name(flow)
            await self.client.create_deployment(
                flow_id,
                name=self.name,
                work_pool_name=self._work_pool_name,
                job_variables={},
                pull_steps=[],
                parameter_openapi_schema=OrderRef.model_json_schema(),
                enforce_parameter_schema=True,
                description=f"{flow} at {self.name}: an order in the exchange, by its name.",
            )

    async def teardown(self, *exc_info: Any) -> None:  # Prefect's own signature
        """End the hospital's process with the worker."""
        await run_sync(self.process.close)
        await super().teardown(*exc_info)

    async def _waiting(self, flow_run: FlowRun, act: str, times: int) -> State[Any]:
        """Return the state of a run that waits for a person, with the form that the UI shows them."""
        key = f"approval-{times}"
        keyset = keyset_from_base_key(f"suspended-{key}")
        text = (
            f"{self.name} waits for its approval to {act}. Run `wardround site waiting` there: it shows "
            f"the terms and the code. Without that code no answer here counts."
        )
        form = {keyset["schema"]: CodeAnswer.model_json_schema(), keyset["description"]: text}
        for name, value in form.items():
            await self.client.create_flow_run_input(flow_run.id, name, json.dumps(value))
        state: State[Any] = Suspended(timeout_seconds=int(LONGEST_S), pause_key=key)
        state.state_details.run_input_keyset = {str(part): name for part, name in keyset.items()}
        return state

    async def _answered(self, flow_run: FlowRun) -> tuple[int, Mapping[str, Any] | None]:
        """Return the number of times that a run's form was filled in, and its last answer."""
        answer = None
        for times in count(1):
            keyset = keyset_from_base_key(f"suspended-approval-{times}")
            try:
                value = await self.client.read_flow_run_input(flow_run.id, keyset["response"])
            except (PrefectException, httpx.HTTPStatusError):
                return times - 1, answer
            answer = json.loads(value)
        raise AssertionError("unreachable")


def _ref_in(flow: str, parameters: Mapping[str, Any]) -> OrderRef:
    try:
        ref = OrderRef.model_validate(parameters)
    except ValidationError as error:
        raise ValueError("Expected the parameters run, round, phase and attempt.") from error
    if ref.phase not in FLOWS[flow]:
        raise ValueError(f"Expected a phase of {', '.join(FLOWS[flow])} in {flow}.")
    return ref
