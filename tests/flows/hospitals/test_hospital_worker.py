"""Real hospitals' workers behind a real web server, a real Prefect server with a password.

What the password opens to an attacker is tried here, too.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from webserver import credential, needs_nginx, webserver

from flows.cli.errors import INTERRUPTED
from flows.coordination.remote import public_key
from flows.reporting.report import report
from flows.runs.paths import Home
from flows.runs.run import Run, runs_of, started_runs
from flows.servers.environment import mlflow_server, prefect_server
from flows.servers.loopback import running
from flows.verification.verify import faults
from sites.admission.requests import waiting
from sites.exchange.storage import AUTH
from sites.hospital import Hospital

PASSWORD = "consortium:known-to-every-client"
WARDS = ("north", "east")

pytestmark = needs_nginx


@dataclass
class Hub:
    """A coordinator's home with servers that run; hospitals reach it over HTTPS alone."""

    folder: Path
    url: str
    mlflow: str
    prefect: str

    @property
    def home(self) -> Home:
        return Home(self.folder)

    def ward(self, name: str) -> Path:
        return self.folder / "wards" / name

    @contextmanager
    def worker(self, name: str) -> Iterator[subprocess.Popen]:
        """Run a hospital's worker, in a session of its own."""
        environment = {
            **{key: os.environ[key] for key in ("PATH", "PYTHONPATH") if key in os.environ},
            "PREFECT_API_AUTH_STRING": PASSWORD,
            "SSL_CERT_FILE": str(self.folder / "hub.pem"),
            AUTH: credential(name, self.url),
        }
        command = [sys.executable, "-m", "flows.cli", "site", "worker", ".", "--test-noise", "7"]
        with (self.folder / f"{name}.log").open("a") as log:
            process = subprocess.Popen(
                command,
                env=environment,
                stdout=log,
                stderr=log,
                cwd=self.ward(name),
                start_new_session=True,
            )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):  # it has ended, and everything that it started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def start(self, study: str, federation: str = "federation.yaml") -> subprocess.Popen:
        """Start the coordinator's command, in a session of its own."""
        asked = [f"{study}.yaml", "--federation", federation]
        command = [sys.executable, "-m", "flows.cli", "run", *asked]
        environment = {
            **os.environ,
            "PREFECT_API_URL": f"{self.prefect}/api",
            "PREFECT_API_AUTH_STRING": PASSWORD,
            "MLFLOW_TRACKING_URI": self.mlflow,
        }
        return subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip

    def study(self, name: str, content: dict[str, Any], **changes: Any) -> str:
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump({**content, "name": name, **changes}))
        return name

    def ask(self, method: str, place: str, **content: Any) -> Any:
        """Ask Prefect's API, as anybody can who has the password."""
        user, _, password = PASSWORD.partition(":")
        reply = httpx.request(
            method,
            f"{self.prefect}/api/{place}",
            json=content or None,
            auth=(user, password),
            timeout=30,
        )
        reply.raise_for_status()
        return reply.json() if reply.content else None

    def deployment(self, flow: str, name: str) -> dict[str, Any]:
        """Return a deployment, once the hospital's worker has put it up."""
        for _ in range(240):
            try:
                return self.ask("GET", f"deployments/name/{flow}/{name}")
            except httpx.HTTPStatusError:
                time.sleep(0.5)
        raise TimeoutError(name)

    def ended(self, flow_run: str) -> dict[str, Any]:
        """Return a flow run's state once it is over."""
        for _ in range(240):
            state = self.ask("GET", f"flow_runs/{flow_run}")["state"]
            if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
                return state
            time.sleep(0.5)
        raise TimeoutError(flow_run)

    def newest(self) -> Run:
        return runs_of(self.home)[-1]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, small_wards) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    home = Home(folder)
    small_wards(folder / "wards")
    patched = pytest.MonkeyPatch()
    patched.setenv("PREFECT_SERVER_API_AUTH_STRING", PASSWORD)
    with ExitStack() as stack:
        stack.callback(patched.undo)
        prefect = stack.enter_context(running(prefect_server(home)))
        mlflow = stack.enter_context(running(mlflow_server(home)))
        server = stack.enter_context(webserver(folder, WARDS, urlsplit(prefect).port or 0))
        made = Hub(folder, server.url, mlflow, prefect)
        roster = {}
        for name in WARDS:
            path = made.ward(name) / "site.yaml"
            coordinator = {
                "key": public_key(home),
                "exchange": f"{server.url}/exchange/",
                "api": f"{server.url}/api",
            }
            policy = yaml.safe_load(path.read_text())
            policy |= {"coordinator": coordinator, "budget": {"epsilon": 500.0, "delta": 1e-3}}
            path.write_text(yaml.safe_dump(policy))
            roster[name] = {"key": Hospital.open(made.ward(name)).public_key, "patients": 20}
        members = {"exchange": str(server.exchange), "hospitals": roster}
        (folder / "federation.yaml").write_text(yaml.safe_dump(members))
        yield made


@pytest.fixture(scope="module")
def staffed(hub: Hub) -> Iterator[None]:
    """Both hospitals' workers, at work for as long as tests need them."""
    started = datetime.now(UTC)
    with hub.worker("north"), hub.worker("east"):
        for name in WARDS:
            while datetime.fromisoformat(hub.deployment("site-score", name)["updated"]) < started:
                time.sleep(0.5)  # an earlier worker's
        yield


def charges(ward: Path, run: str) -> list[int]:
    """Return the rounds for which a hospital has charged its patients for training in a run."""
    found = [c for c in Hospital.open(ward).ledger.charges(run) if c.event is not None]
    return sorted(charge.round for charge in found)


@pytest.mark.slow
def test_a_worker_that_is_told_to_stop_ends_at_once_and_the_hospitals_log_has_it(hub: Hub) -> None:
    log = Hospital.open(hub.ward("north")).security_log

    def told() -> list[str]:
        return [str(e["what"]) for e in log.events() if str(e["what"]).startswith("worker_")]

    before = told()
    with hub.worker("north") as worker:
        for _ in range(240):
            if told() != before:
                break
            time.sleep(0.5)
        time.sleep(2)  # its worker asks for work by then
        worker.terminate()
        assert worker.wait(timeout=60) == INTERRUPTED
    assert told() == [*before, "worker_started", "worker_stopped"]


@pytest.mark.slow
def test_hospitals_behind_a_web_server_train_through_kills_as_if_nothing_had_happened(
    hub: Hub, small_study
) -> None:
    """Kill worker and coordinator in mid-run; nothing is lost, nothing is charged twice."""
    name = hub.study("small", small_study)
    with hub.worker("east"):
        with hub.worker("north"):
            coordinator = hub.start(name)
            wait_for(lambda: runs_of(hub.home) and hub.newest().records(), coordinator)
        # north's worker is dead now, perhaps in the midst of a round
        os.killpg(coordinator.pid, signal.SIGKILL)
        coordinator.wait()
        with hub.worker("north"):
            again = hub.start(name)
            said, _ = again.communicate(timeout=600)
    assert again.returncode == 0, said
    assert len(runs_of(hub.home)) == 1
    records = hub.newest().records()
    assert [record.round for record in records] == [0, 1, 2]
    for record in records[1:]:
        assert sorted(record.releases) == ["east", "north"]
    for ward in WARDS:
        assert charges(hub.ward(ward), hub.newest().name) == [1, 2]
    command = [sys.executable, "-m", "flows.cli", "status", "--json"]
    shown = subprocess.run(command, cwd=hub.folder, capture_output=True, text=True, timeout=60)
    told = json.loads(shown.stdout)
    assert (told["round"], told["is_finished"]) == (2, True)
    assert [(h["name"], h["last_round"], h["asked"]) for h in told["hospitals"]] == [
        ("east", 2, ""),
        ("north", 2, ""),
    ]
    keys = {artifact["key"] for artifact in hub.ask("POST", "artifacts/filter", sort="CREATED_DESC")}
    shown_by_prefect = {f"{hub.newest().name}-{what}" for what in ("hospitals", "progress", "mlflow")}
    assert shown_by_prefect <= keys
    wanted = {"event": {"name": ["wardround.round.done"]}}
    events = hub.ask("POST", "events/filter", filter=wanted)["events"]
    assert {event["payload"]["round"] for event in events} >= {
        1,
        2,
    }
    names = {run["name"] for run in hub.ask("POST", "flow_runs/filter", sort="START_TIME_DESC")}
    assert {"small contribute 1 north", "small evaluate 2 east"} <= names


def wait_for(what: Any, process: subprocess.Popen) -> None:
    for _ in range(1200):
        if what():
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    raise TimeoutError


@pytest.mark.slow
def test_a_hospital_whose_worker_comes_late_joins_between_rounds_and_one_may_leave(
    hub: Hub, small_study, edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Before the tests whose workers, `staffed`, stay to the end.
    for ward in WARDS:
        edit(hub.ward(ward) / "site.yaml", approve={"join": "auto", "export": "auto"})
    name = hub.study("growing", small_study, rounds=20, sites={"min": 1, "deadline_s": 20})
    with hub.worker("east"):
        coordinator = hub.start(name)
        wait_for(lambda: runs_of(hub.home) and hub.newest().study.name == name
                 and len(hub.newest().records()) >= 2, coordinator)  # fmt: skip
        assert sorted(hub.newest().description.participants) == ["east"]
        with hub.worker("north"):
            wait_for(lambda: len(hub.newest().records()[-1].releases) == 2, coordinator)
            command = [sys.executable, "-m", "flows.cli", "site", "leave", name, ".", "--yes"]
            environment = {**os.environ, "SSL_CERT_FILE": str(hub.folder / "hub.pem"),
                           AUTH: credential("north", hub.url)}  # fmt: skip
            done = subprocess.run(
                command, cwd=hub.ward("north"), env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            said, _ = coordinator.communicate(timeout=600)
    assert coordinator.returncode == 0, said
    assert sorted(hub.newest().description.departed) == ["north"]
    assert list(hub.newest().records()[-1].releases) == ["east"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", hub.mlflow)
    monkeypatch.setenv("SSL_CERT_FILE", str(hub.folder / "hub.pem"))
    assert list(faults(hub.newest())) == []
    page = report(hub.newest()).decode()
    for told in ("it had not joined yet", "it has left the study"):
        assert told in page


@pytest.mark.slow
def test_whoever_has_the_password_can_run_nothing_at_a_hospital(hub: Hub, staffed: None) -> None:
    marker = hub.folder / "attacked"
    shell = f"touch {marker}"
    step = {"prefect.deployments.steps.run_shell_script": {"script": shell}}
    variables = {"command": shell, "env": {"BASH_ENV": shell, "PYTHONSTARTUP": shell}, "image": "evil"}
    ref = {"run": "no-such-run", "round": 1, "phase": "contribute", "attempt": 1}
    known = hub.deployment("site-round", "north")
    hub.ask("PATCH", f"deployments/{known['id']}", job_variables=variables, pull_steps=[step],
            entrypoint="os:system", path="/", enforce_parameter_schema=False)  # fmt: skip
    evil = hub.ask("POST", "flows/", name="evil")
    other = hub.ask("POST", "deployments/", name="evil", flow_id=evil["id"], work_pool_name="north",
                    entrypoint="os:system", pull_steps=[step], job_variables=variables)  # fmt: skip
    tried = [
        (known, ref, "FAILED"),
        (known, {**ref, "command": shell}, "FAILED"),
        (known, {**ref, "phase": "evaluate"}, "FAILED"),
        (known, {**ref, "run": "../../etc/passwd"}, "FAILED"),
        (other, ref, "FAILED"),
    ]
    for deployment, parameters, state in tried:
        started = hub.ask("POST", f"deployments/{deployment['id']}/create_flow_run",
                          parameters=parameters, job_variables=variables)  # fmt: skip
        assert hub.ended(started["id"])["type"] == state
    events = hub.ask("POST", "events/filter", filter={"event": {"name": ["wardround.site.ignored"]}})
    assert not marker.exists()
    assert not charges(hub.ward("north"), "no-such-run")
    ignored = {name for event in events["events"] for name in event["payload"]["ignored"]}
    assert {
        "the run's job variables",
        "the deployment's pull steps",
    } <= ignored
    said = (hub.folder / "north.log").read_text()
    assert "Ignored, because only installed code runs here" in said


@pytest.mark.slow
def test_hospitals_say_whether_they_could_train_a_study_and_nothing_is_recorded(
    hub: Hub, staffed: None, small_study
) -> None:
    name = hub.study("wanted", small_study, sites={"min": 2, "deadline_s": 60})
    dear = hub.study("dear", small_study, privacy={**small_study["privacy"], "epsilon": 900.0})
    said = {}
    for study in (name, dear):
        command = [sys.executable, "-m", "flows.cli", "check", f"{study}.yaml", "--json"]
        asked = {"PREFECT_API_URL": f"{hub.prefect}/api", "PREFECT_API_AUTH_STRING": PASSWORD}
        done = subprocess.run(
            command,
            cwd=hub.folder,
            env={**os.environ, **asked},
            capture_output=True,
            text=True,
            timeout=90,
        )
        said[study] = json.loads(done.stdout)["hospitals"]
        assert done.returncode == (0 if study == name else 1), done.stderr
    assert said[name] == {"east": "ready", "north": "ready"}
    assert "asks for epsilon 900" in said[dear]["north"]
    assert {run.study.name for run in started_runs(hub.home)} & {name, dear} == set()


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.marker}",))


@pytest.mark.slow
def test_a_forged_result_of_a_hospitals_run_is_neither_read_nor_believed(
    hub: Hub, staffed: None, small_study
) -> None:
    marker, result = hub.folder / "read", hub.folder / "result"
    payload = pickle.dumps(Evil(marker))
    metadata = {"storage_key": str(result), "serializer": {"type": "pickle", "picklelib": "pickle"},
                "expiration": None, "prefect_version": "3.8.8", "storage_block_id": None}  # fmt: skip
    result.write_text(json.dumps({"metadata": metadata, "result": payload.hex()}))
    members = yaml.safe_load((hub.folder / "federation.yaml").read_text())
    members["hospitals"] = {
        "east": members["hospitals"]["east"],
        "south": {"key": "0" * 64, "patients": 20},
    }
    (hub.folder / "forged-federation.yaml").write_text(yaml.safe_dump(members))
    pool = {"job_configuration": {"x": "x"}, "variables": {"type": "object", "properties": {}}}
    hub.ask("POST", "work_pools/", name="south", type="wardround", base_job_template=pool)
    flow = hub.ask("POST", "flows/", name="site-round")
    hub.ask("POST", "deployments/", name="south", flow_id=flow["id"], work_pool_name="south")
    name = hub.study("forged", small_study, rounds=1, sites={"min": 2, "deadline_s": 25})
    coordinator, forged = hub.start(name, "forged-federation.yaml"), 0
    while coordinator.poll() is None:
        wanted = {"flow_runs": {"name": {"any_": ["forged join 0 south"]}}}
        for run in hub.ask("POST", "flow_runs/filter", **wanted):
            if run["state"]["type"] == "SCHEDULED":
                state = {"type": "COMPLETED", "data": {"type": "reference", **metadata}}
                hub.ask("POST", f"flow_runs/{run['id']}/set_state", state=state, force=True)
                forged += 1
        time.sleep(0.5)
    said = coordinator.stdout.read()
    assert forged
    assert coordinator.returncode == 3
    assert "south: south: no answer within 25 s" in said
    assert not marker.exists()


@pytest.mark.slow
def test_a_cancelled_run_ends_the_hospitals_work_and_is_not_asked_for_again(
    hub: Hub, staffed: None, small_study
) -> None:
    training = {"steps": 4000, "lr": 0.1, "lot": "all"}
    privacy = {**small_study["privacy"], "epsilon": 40}
    quorum = {"min": 2, "deadline_s": 100}
    name = hub.study("long", small_study, rounds=1, training=training, privacy=privacy, sites=quorum)
    coordinator = hub.start(name)
    wanted = {"flow_runs": {"name": {"any_": [f"long contribute 1 {ward}" for ward in WARDS]}}}
    runs = [{}]
    while any(run.get("state", {}).get("type") != "RUNNING" for run in runs) or len(runs) < 2:
        runs = hub.ask("POST", "flow_runs/filter", **wanted)
        assert coordinator.poll() is None, coordinator.stdout.read()
        time.sleep(0.5)
    for run in runs:
        hub.ask("POST", f"flow_runs/{run['id']}/set_state", state={"type": "CANCELLING"})
    assert {hub.ended(run["id"])["type"] for run in runs} == {"CANCELLED"}
    said, _ = coordinator.communicate(timeout=60)
    assert coordinator.returncode == 3, said
    assert "its run was cancelled" in said
    assert len(hub.ask("POST", "flow_runs/filter", **wanted)) == 2
    assert charges(hub.ward("north"), hub.newest().name) == [1]


@pytest.mark.slow
def test_a_person_of_the_hospital_approves_in_prefects_form_with_the_hospitals_code_alone(
    hub: Hub, staffed: None, small_study, edit
) -> None:
    """East approves from afar, north at its own terminal."""
    for ward in WARDS:
        edit(hub.ward(ward) / "site.yaml", approve={"join": "manual", "export": "auto"})
    name = hub.study("asked", small_study, rounds=1, sites={"min": 2, "deadline_s": 120})

    def suspended(flow_run: str) -> dict[str, Any]:
        wanted = {"flow_runs": {"name": {"any_": [flow_run]}}}
        for _ in range(240):
            runs = hub.ask("POST", "flow_runs/filter", **wanted)
            if runs and runs[0]["state"]["name"] == "Suspended":
                return runs[0]
            time.sleep(0.5)
        raise TimeoutError(flow_run)

    def said(word: dict[str, str]) -> None:
        resumed = hub.ask("POST", f"flow_runs/{run['id']}/resume", run_input=word)
        assert resumed["status"] == "ACCEPT", resumed

    coordinator = hub.start(name)
    run = suspended("asked join 0 east")
    said({"code": "0123456789abcdef", "by": "an attacker"})
    time.sleep(6)
    run = suspended("asked join 0 east")
    (east,) = waiting(Hospital.open(hub.ward("east")))
    said({"code": east.codes["approved"], "by": "IT of east"})
    suspended("asked join 0 north")
    (north,) = waiting(Hospital.open(hub.ward("north")))
    environment = {**os.environ, "SSL_CERT_FILE": str(hub.folder / "hub.pem"),
                   AUTH: credential("north", hub.url)}  # fmt: skip
    command = [sys.executable, "-m", "flows.cli", "site", "approve", north.terms[:8], "."]
    done = subprocess.run(
        command, cwd=hub.ward("north"), env=environment, capture_output=True, text=True, timeout=100
    )
    assert "The answer is in the exchange" in done.stdout, done.stderr
    printed, _ = coordinator.communicate(timeout=600)
    assert coordinator.returncode == 0, printed
    assert sorted(hub.newest().description.participants) == ["east", "north"]
    assert "an attacker" not in "".join(
        path.read_text() for path in (hub.ward("east") / "state" / "approvals").iterdir()
    )


@pytest.mark.slow
def test_hospitals_behind_a_web_server_audit_what_they_trained(
    hub: Hub, staffed: None, small_study, edit
) -> None:
    del staffed
    policy = {"epsilon": 4, "shadows": 4, "plain_steps": 3, "canaries": 100}
    edit(hub.ward("north") / "site.yaml", audit=policy, approve={"join": "auto", "export": "auto"})
    edit(hub.ward("east") / "site.yaml", approve={"join": "auto", "export": "auto"})
    coordinator = hub.start(hub.study("audited", small_study, rounds=1))
    said, _ = coordinator.communicate(timeout=600)
    assert coordinator.returncode == 0, said
    command = [sys.executable, "-m", "flows.cli", "audit", "run", "--federation", "federation.yaml",
               "--steps", "5", "--canaries", "100", "--json"]  # fmt: skip
    environment = {
        **os.environ,
        "PREFECT_API_URL": f"{hub.prefect}/api",
        "PREFECT_API_AUTH_STRING": PASSWORD,
        "MLFLOW_TRACKING_URI": hub.mlflow,
    }
    done = subprocess.run(
        command, cwd=hub.folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    audit = json.loads(done.stdout.splitlines()[-1])
    assert set(audit["hospitals"]) == {"east", "north"}
    assert "mia_auc" in audit["hospitals"]["north"]["statement"]["figures"]
    assert audit["hospitals"]["east"]["statement"]["figures"] == {}
    assert len(list((hub.ward("north") / "state" / "audits").glob("*.json"))) == 1
