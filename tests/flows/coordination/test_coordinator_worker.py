"""The coordinator's worker: schedules start trainings, and nobody starts anything else."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from flows.runs.paths import Home
from flows.servers.environment import mlflow_server, prefect_server, prefect_settings
from flows.servers.loopback import running

ROOT = Path(__file__).parents[3]


@pytest.fixture
def home(tmp_path: Path, small_study) -> Path:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "small.yaml").write_text(yaml.safe_dump(small_study))
    return tmp_path


def test_a_run_can_name_a_study_of_the_folder_and_nothing_else(home: Path) -> None:
    """In a process of its own: Prefect reads its environment when it is imported."""
    wrong = [
        {},
        {"study": "other"},
        {"study": "../studies/small"},
        {"study": "small", "command": "x"},
        {"command": "small"},
        {"study": ["small"]},
        {"study": "small; touch x"},
        {"only_resume": True},
    ]
    code = (
        "import json, sys; from pathlib import Path; from flows.runs.paths import Home\n"
        "from flows.coordination.coordinator_worker import CoordinatorWorker\n"
        "worker = CoordinatorWorker(Home(Path.cwd()))\n"
        "assert str(worker.study_in({'study': 'small'})) == 'studies/small.yaml'\n"
        "for each in json.loads(sys.argv[1]):\n"
        "    try: print(worker.study_in(each))\n"
        "    except ValueError as error: print('refused:', error)\n"
    )
    environment = {**os.environ, "PREFECT_HOME": str(home / "prefect")}
    command = [sys.executable, "-c", code, json.dumps(wrong)]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=90)
    said = done.stdout.splitlines()
    assert len(said) == len(wrong), done.stderr
    assert all(line.startswith("refused: Expected the ") for line in said)


@pytest.mark.slow
def test_what_prefect_yaml_puts_up_is_scheduled_and_run_by_the_coordinators_worker(home: Path) -> None:
    deployed = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    (deployment,) = deployed["deployments"]
    deployment["parameters"] = {"study": "small"}
    deployment["schedules"][0] |= {"cron": "0 * * * *", "active": True}
    (home / "prefect.yaml").write_text(yaml.safe_dump(deployed))
    federation = {
        "exchange": str(home / "exchange"),
        "hospitals": {"nobody": {"key": "0" * 64, "patients": 20}},
    }
    (home / "federation.yaml").write_text(yaml.safe_dump(federation))
    with running(prefect_server(Home(home))) as prefect, running(mlflow_server(Home(home))) as mlflow:
        api = f"{prefect}/api"

        def ask(method: str, place: str, **content: Any) -> Any:
            sent = None if method == "GET" else content
            reply = httpx.request(method, f"{api}/{place}", json=sent, timeout=30)
            reply.raise_for_status()
            return reply.json()

        environment = {**os.environ, **prefect_settings(Home(home)), "PREFECT_API_URL": api,
                       "MLFLOW_TRACKING_URI": mlflow, "PYTHONPATH": str(ROOT)}  # fmt: skip
        coordinate = [sys.executable, "-m", "flows.cli", "coordinate"]
        worker = subprocess.Popen(coordinate, cwd=home, env=environment)
        try:
            while not ask("POST", "work_pools/filter"):
                time.sleep(0.5)
                assert worker.poll() is None
            command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
            done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            put_up = ask("GET", "deployments/name/train/hippocampus")
            assert put_up["concurrency_limit"] == 1 or put_up["global_concurrency_limit"]["limit"] == 1
            assert len(ask("POST", "automations/filter")) == 1
            wanted = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
            for _ in range(60):
                if ask("POST", "flow_runs/filter", **wanted):
                    break
                time.sleep(1)
            else:
                raise AssertionError("nothing was scheduled")
            run = ask("POST", f"deployments/{put_up['id']}/create_flow_run")
            while (state := ask("GET", f"flow_runs/{run['id']}")["state"])["type"] not in (
                "FAILED",
                "COMPLETED",
                "CRASHED",
            ):
                time.sleep(1)
        finally:
            worker.kill()
    (log,) = (home / ".wardround" / "logs").glob("small-*.log")
    assert (state["type"], "ended with 3" in state["message"]) == ("FAILED", True), state
    assert "Expected at least 2 hospitals to start a run" in log.read_text()


def test_a_training_ends_with_the_worker_that_started_it(home: Path) -> None:
    """However the worker has ended: standard input closes. Nobody answers the training here."""
    federation = {
        "exchange": str(home / "exchange"),
        "hospitals": {"nobody": {"key": "0" * 64, "patients": 20}},
    }
    (home / "federation.yaml").write_text(yaml.safe_dump(federation))
    nowhere = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "flows.cli", "run", "studies/small.yaml", "--attached"]
    training = subprocess.Popen(
        [*command, "--federation", "federation.yaml"], cwd=home, env={**os.environ, **nowhere},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    line = training.stdout.readline()
    assert line.startswith("run small-")
    assert training.poll() is None
    training.stdin.close()
    assert training.wait(timeout=20) == 1


def test_a_time_of_a_schedule_that_prefect_serves_twice_trains_once(home: Path) -> None:
    """As after a redeployment while the scheduler ticks; other times and the same run again do train."""
    code = (
        "import anyio, json, sys; from datetime import datetime, timezone; from pathlib import Path\n"
        "from uuid import uuid4; from prefect.client.schemas.objects import FlowRun\n"
        "from flows.coordination.coordinator_worker import CoordinatorWorker\n"
        "from flows.runs.paths import Home\n"
        "worker, deployment = CoordinatorWorker(Home(Path.cwd())), uuid4()\n"
        "def run(hour, **changes):\n"
        "    due = datetime(2026, 11, 28, hour, tzinfo=timezone.utc)\n"
        "    fields = dict(id=uuid4(), flow_id=uuid4(), deployment_id=deployment, auto_scheduled=True,\n"
        "                  parameters={'study': 'small'}, expected_start_time=due)\n"
        "    return FlowRun(**{**fields, **changes})\n"
        "first = run(1)\n"
        "served = worker._served_before\n"
        "for each in (first, run(1), first, run(2), run(1, auto_scheduled=False)):\n"
        "    print(repr(served(each) == str(first.id)))\n"
        "said = anyio.run(worker.work, 'train', run(1)).message\n"
        "print(said == f'This time of the schedule was served by the flow run {first.id}.')\n"
    )
    environment = {**os.environ, "PREFECT_HOME": str(home / "prefect")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=home, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.stdout.split() == ["False", "True", "False", "False", "False", "True"], done.stderr
