"""The coordinator's worker: it trains the studies of one folder on Prefect's schedules.

The hospitals have Prefect's password too, so it is not Prefect's process worker: a run can only name a
study whose file is in `studies/`.
"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from anyio.to_thread import run_sync
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Completed, Crashed, Failed
from pydantic import TypeAdapter, ValidationError

from flows.coordination.resume import is_interrupted
from flows.hospitals.processes import end_session
from flows.hospitals.restricted_worker import InstalledWorker
from flows.runs.paths import Home
from models.files import sha256_of
from models.settings.tasks import Name
from privacy.signing import canonical
from sites.study import load_study
from sites.yaml_files import ConfigError

NAME: TypeAdapter[str] = TypeAdapter(Name)
AT_A_TIME = 8


class CoordinatorWorker(InstalledWorker):
    """Runs `wardround run studies/NAME.yaml --federation federation.yaml` for the flow `train`."""

    type = "wardround-coordinator"
    flows = ("train",)
    _description = "Trains the studies in the coordinator's folder."

    def __init__(self, home: Home) -> None:
        super().__init__("coordinator", limit=AT_A_TIME)
        self.home = home
        self._running: dict[UUID, subprocess.Popen[bytes]] = {}

    def study_in(self, parameters: Mapping[str, Any]) -> Path:
        """Return the file of the study that a run names; raise ValueError for anything else."""
        if set(parameters) - {"study", "only_resume"}:
            raise ValueError("Expected the parameters study and only_resume, and no others.")
        try:
            study = Path("studies") / f"{NAME.validate_python(parameters['study'])}.yaml"
        except (KeyError, ValidationError) as error:
            raise ValueError("Expected the parameter study, a study's name.") from error
        if not (self.home.folder / study).is_file():
            raise ValueError("Expected the name of a study whose file is in studies/.")
        return study

    def _is_interrupted(self, study: Path) -> bool:
        try:
            return is_interrupted(self.home, load_study(self.home.folder / study))
        except ConfigError as error:
            raise ValueError(str(error)) from error

    def _served_before(self, flow_run: FlowRun) -> str:
        """Return the flow run that has served this scheduled time before, empty if none has.

        Prefect may serve one time of a schedule twice, as after a redeployment; a second training would
        cost every hospital's budget again. The same flow run may go on.
        """
        if not flow_run.auto_scheduled or flow_run.expected_start_time is None:
            return ""
        due = f"{flow_run.expected_start_time.timestamp():.0f}"
        asked = canonical([str(flow_run.deployment_id), due, dict(flow_run.parameters)])
        path = self.home.state / "scheduled" / f"{sha256_of(asked)}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("x") as file:
                file.write(str(flow_run.id))
        except FileExistsError:
            first = path.read_text()
            return "" if first == str(flow_run.id) else first or "another"
        return ""

    async def work(self, flow: str, flow_run: FlowRun) -> State[Any]:
        """Train the study that a run names, from its last finished round on."""
        del flow
        asked = self.study_in(flow_run.parameters)
        if flow_run.parameters.get("only_resume") and not self._is_interrupted(asked):
            return Completed(message="There is no interrupted run to continue.")
        if first := self._served_before(flow_run):
            return Completed(message=f"This time of the schedule was served by the flow run {first}.")
        log = self.home.state / "logs" / f"{asked.stem}-{flow_run.id}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "flows.cli", "run", str(asked), "--attached"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--federation", "federation.yaml"],
                cwd=self.home.folder, stdin=subprocess.PIPE, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        self._running[flow_run.id] = process
        try:
            status = await run_sync(process.wait, abandon_on_cancel=True)
        finally:
            self.stop(flow_run.id)
            del self._running[flow_run.id]
        if status < 0:
            return Crashed(message=f"{asked} was killed; the run goes on when it is started again.")
        if status:
            return Failed(
                message=f"{asked} ended with {status}; {log.name} on the coordinator has the reason."
            )
        return Completed(message="Every round is recorded.")

    def stop(self, flow_run_id: UUID) -> None:
        """End a training; its run goes on from the last finished round when it is started again."""
        end_session(self._running[flow_run_id])
