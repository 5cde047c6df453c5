"""The flow of a release, which waits for people."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from deciders import KEYS, say, with_people
from homes import put_back
from mlflow.tracking import MlflowClient

from flows.decisions import chain
from flows.decisions.verdicts import signed_verdict, terms_of
from flows.release import champion, evidence, reviews
from flows.reporting.publish import publish_decisions_page
from flows.runs.run import Run, StoreFailed
from flows.servers.environment import prefect_server
from flows.servers.loopback import running
from flows.tracking import registry
from flows.tracking.tracking import Tracking
from flows.verification.verify import faults


@pytest.fixture
def run(finished: Path, with_mlflow: tuple[Path, str]) -> Run:
    """A finished run about which nobody has decided."""
    return with_people(put_back(finished, with_mlflow[0]))


@pytest.fixture
def mlflow(with_mlflow: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", with_mlflow[1])
    return MlflowClient(with_mlflow[1])


def test_a_store_that_is_not_there_is_told_in_one_message(run: Run, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    record = run.records()[-1]
    for ask, named in (
        (lambda: publish_decisions_page(run), "MLflow did not store all of the report of"),
        (lambda: Tracking(run), "MLflow did not store all of the experiment of small"),
        (lambda: registry.champion("small"), "MLflow did not return the champion of small"),
        (
            lambda: registry.write_approved(run, record, {}, b""),
            "MLflow did not store all of the released",
        ),
    ):
        with pytest.raises(StoreFailed, match=named):
            ask()
    assert "MLflow can't be read" in next(faults(run))


@pytest.mark.slow
def test_the_flow_waits_for_people_who_decide_in_the_form_or_at_the_terminal(
    run: Run, mlflow: MlflowClient
) -> None:
    home, record = run.home.folder, run.records()[-1]
    command = [sys.executable, "-m", "flows.cli", "promote", "--wait-s", "200"]
    with running(prefect_server(run.home)) as prefect:
        waiting = subprocess.Popen(
            command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        flow_run = paused(f"{prefect}/api", f"promote {run.name} {record.round}", waiting)
        text = signed_verdict(terms_of(run, record), "approved", "ada", "clinician", KEYS["ada"], 30)
        fill_in(f"{prefect}/api", flow_run, "what is no verdict")
        again = paused(f"{prefect}/api", f"promote {run.name} {record.round}", waiting, after=1)
        fill_in(f"{prefect}/api", again, text)
        paused(f"{prefect}/api", f"promote {run.name} {record.round}", waiting, after=2)
        reviews.decide(run, record, "approved", "bo", KEYS["bo"], "")
        said, _ = waiting.communicate(timeout=600)
    assert waiting.returncode == 0, said
    assert "Released: version 1 is the champion." in said
    assert [d.verdict.person for d in chain.decisions(run) if d.verdict] == ["ada", "bo"]


@pytest.mark.slow
@pytest.mark.parametrize("wait_s", ["0", "2.5"])
def test_a_gate_for_which_nobody_decides_in_time_names_who_is_missing(
    run: Run, mlflow: MlflowClient, wait_s: str
) -> None:
    command = [sys.executable, "-m", "flows.cli", "promote", "--wait-s", wait_s]
    done = subprocess.run(command, cwd=run.home.folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 3
    assert "Not released. The approval of these is missing: clinician, officer." in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_revocation_in_the_form_of_another_model_takes_the_champion_back(
    run: Run, mlflow: MlflowClient
) -> None:
    home, record = run.home.folder, run.records()[-1]
    for name in KEYS:
        say(run, record, name)
    champion.release_model(run, record, evidence.gather(run, record))
    command = [sys.executable, "-m", "flows.cli", "promote", "--round", "1", "--wait-s", "200"]
    with running(prefect_server(run.home)) as prefect:
        waiting = subprocess.Popen(
            command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        times = len(chain.decisions(run))
        flow_run = paused(f"{prefect}/api", f"promote {run.name} 1", waiting, after=times)
        text = signed_verdict(terms_of(run, record), "revoked", "bo", "officer", KEYS["bo"], 30)
        fill_in(f"{prefect}/api", flow_run, text)
        paused(f"{prefect}/api", f"promote {run.name} 1", waiting, after=times + 1)
        assert registry.champion("small") == ""
        waiting.terminate()
        waiting.wait(60)
    assert list(faults(run)) == []


def test_a_prefect_that_can_not_be_reached_is_told_in_one_message(
    run: Run, mlflow: MlflowClient
) -> None:
    environment = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    command = [sys.executable, "-m", "flows.cli", "promote"]
    done = subprocess.run(
        command, cwd=run.home.folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 4 and "Traceback" not in done.stderr
    assert "PREFECT_API_URL: http://127.0.0.1:9/api can't be reached" in done.stderr


def paused(api: str, name: str, process: subprocess.Popen, after: int = 0) -> str:
    """Return the id of the flow run of a name once it waits for its form for another time."""
    import httpx

    for _ in range(600):
        assert process.poll() is None, process.stdout.read()
        found = httpx.post(
            f"{api}/flow_runs/filter", json={"flow_runs": {"name": {"any_": [name]}}}
        ).json()
        for each in found:
            details = (each["state"] or {}).get("state_details") or {}
            if each["state_type"] == "PAUSED" and details.get("pause_key") == f"people-{after}":
                return str(each["id"])
        time.sleep(0.2)
    raise TimeoutError(name)


def fill_in(api: str, flow_run: str, signed: str) -> None:
    import httpx

    reply = httpx.post(f"{api}/flow_runs/{flow_run}/resume", json={"run_input": {"signed": signed}})
    reply.raise_for_status()
    assert reply.json()["status"] == "ACCEPT", reply.text
