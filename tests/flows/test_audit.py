"""An audit of a run: through Prefect, at the hospitals, into MLflow, the report and the gate."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from homes import moved
from mlflow.tracking import MlflowClient

from flows.audits.records import audits_of, path_of
from flows.audits.sacro import attack_report
from flows.release import evidence
from flows.runs.paths import Home
from flows.runs.record_files import BrokenRun
from flows.runs.run import Run, runs_of
from flows.servers.environment import mlflow_server
from flows.servers.loopback import running

POLICY = {"epsilon": 4, "shadows": 4, "plain_steps": 3, "canaries": 200}


def wardround(home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory, untouched: Path) -> tuple[Run, str]:
    """A run that was trained and audited: one hospital withholds its part; and what the command said."""
    home = tmp_path_factory.mktemp("audited") / "home"
    shutil.copytree(untouched, home)
    for name in ("north", "south"):
        path = home / "wards" / name / "site.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"audit": POLICY}))
    trained = wardround(home, "run", "small.yaml")
    assert trained.returncode == 0, trained.stdout + trained.stderr
    done = wardround(home, "audit", "run", "--steps", 5, "--canaries", 200, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return runs_of(Home(home))[-1], done.stdout


@pytest.mark.slow
def test_an_audit_is_recorded_reported_and_verified(audited: tuple[Run, str]) -> None:
    run, printed = audited
    (audit,) = audits_of(run)
    assert json.loads(printed)["model_sha256"] == audit.model_sha256 == run.records()[-1].model_sha256
    assert audit.alarms == []
    assert set(audit.figures) == {"north", "south"}
    assert 0 < audit.epsilon_lower <= run.study.privacy.epsilon
    shares = [audit.figures[site]["provenance"] for site in ("north", "south")]  # they compare models
    assert audit.scans.guesses == 10 and audit.scans.right == round(5 * sum(shares))
    assert audit.scans.chance == 0.5
    home = run.home.folder
    checked = wardround(home, "verify", run.name)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    with running(mlflow_server(run.home)) as url:
        client = MlflowClient(url)
        experiment = client.get_experiment_by_name(run.study.name)
        lines = {
            line.data.tags["wardround.site"]: line
            for line in client.search_runs([experiment.experiment_id])
        }
        worst = max(each["mia_auc"] for each in audit.figures.values())
        assert lines["GLOBAL"].data.metrics["audit/mia_auc"] == pytest.approx(worst)
        assert lines["GLOBAL"].data.metrics["audit/epsilon_lower"] == pytest.approx(audit.epsilon_lower)
        assert lines["north"].data.metrics["audit/mia_auc"] == pytest.approx(
            audit.figures["north"]["mia_auc"]
        )
        assert "audit/mia_auc" not in lines["east"].data.metrics
        page = client.download_artifacts(lines["GLOBAL"].info.run_id, "report.html", None)
        words = Path(page).read_text()
    assert "An audit of the model after round 2" in words
    assert "withheld by the hospital" in words
    assert "data:image/png;base64," in words
    assert (home / "wards" / "north" / "state" / "audits").is_dir()
    assert not (home / "wards" / "east" / "state" / "audits").exists()


@pytest.mark.slow
def test_the_gate_takes_the_worst_end_and_asks_every_hospital(audited: tuple[Run, str]) -> None:
    run, _ = audited
    alone = run.records()[-1]
    assert evidence._attacked(run, alone) == (None, "east did not publish it")
    sites = {s: h for s, h in alone.hospitals.items() if s != "east"}
    without = alone.model_copy(update={"hospitals": sites})
    records = [r.model_copy(update={"hospitals": {s: h for s, h in r.hospitals.items() if s != "east"}})
               for r in run.records()]  # fmt: skip

    class Two(Run):
        def records(self):
            return records

    two = Two(run.folder, run.home, run.description)
    (audit,) = audits_of(run)
    worst = max(each["high/mia_auc"] for each in audit.figures.values())
    value, why = evidence._attacked(two, without)
    assert (value, why) == (pytest.approx(worst), "")


@pytest.mark.slow
def test_a_round_is_audited_once_and_published_again(audited: tuple[Run, str]) -> None:
    run, _ = audited
    before = (run.folder / path_of(2)).read_bytes()
    again = wardround(run.home.folder, "audit", "run", "--steps", 7, "--json")
    assert again.returncode == 0, again.stderr
    assert (run.folder / path_of(2)).read_bytes() == before
    assert wardround(run.home.folder, "verify", run.name).returncode == 0


@pytest.mark.slow
def test_an_audit_that_somebody_changed_counts_for_nothing(audited: tuple[Run, str]) -> None:
    run, _ = audited
    path = run.folder / path_of(2)
    right = path.read_bytes()
    try:
        path.write_bytes(right.replace(b'"holds": true', b'"holds":true '))
        with pytest.raises(BrokenRun, match="that the coordinator has signed"):
            audits_of(run)
    finally:
        path.write_bytes(right)


@pytest.mark.slow
def test_the_report_for_output_checkers_has_sacro_mls_shape(audited: tuple[Run, str]) -> None:
    run, _ = audited
    (audit,) = audits_of(run)
    report = json.loads(attack_report(audit))
    for entry in report.values():
        assert {"log_id", "log_time", "metadata", "attack_experiment_logger"} <= entry.keys()
        assert entry["metadata"]["attack_name"]
        assert entry["attack_experiment_logger"]["attack_instance_logger"]
    members = next(e for name, e in report.items() if name.startswith("Membership"))
    assert (
        members["attack_experiment_logger"]["attack_instance_logger"]["north"]["AUC"]
        == (audit.figures["north"]["mia_auc"])
    )


def test_a_run_without_a_trained_model_is_not_audited(finished: Path, tmp_path: Path) -> None:
    run = moved(finished, tmp_path / "home")
    done = wardround(run.home.folder, "audit", "run", "--round", 7)
    assert done.returncode == 2
    assert "Expected a round from 1 to 2" in done.stderr


def test_a_study_without_privacy_has_no_mechanism_to_check(tmp_path: Path, study_file) -> None:
    study = study_file(privacy={"mode": "none"})
    done = wardround(tmp_path, "audit", "mechanism", study)
    assert done.returncode == 2
    assert "promises none" in done.stderr
