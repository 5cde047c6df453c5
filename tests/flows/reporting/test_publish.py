"""What is on record is told in MLflow, once more where its store is a new one."""

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from homes import moved, put_back
from mlflow.tracking import MlflowClient
from mlflow.tracking._tracking_service import utils
from puppets import Federation

from flows.decisions.chain import record_verdict
from flows.decisions.people import People, Person
from flows.decisions.verdicts import signed_verdict, terms_of
from flows.release import champion, evidence
from flows.reporting.publish import backfill, pages_of, publish_decisions_page
from flows.rounds import membership
from flows.rounds.statements import SILENT
from flows.runs import artifacts
from flows.runs.artifacts import PAPERS, signed_for
from flows.runs.paths import Home
from flows.runs.record_files import record_path
from flows.runs.run import Run, StoreFailed, runs_of
from flows.servers.environment import mlflow_server
from flows.servers.loopback import running
from flows.tracking import registry
from flows.tracking.check_metrics import metric_faults
from flows.tracking.tracking import Tracking
from flows.verification.verify import faults, lineage_faults
from models.files import sha256_of
from privacy.signing import public_hex
from sites.yaml_files import ConfigError

COMMAND = [sys.executable, "-m", "flows.cli", "run", "small.yaml", "--test-noise", "7"]
PEOPLE = {"ada": "clinician", "bo": "officer"}
KEYS = {name: Ed25519PrivateKey.generate() for name in PEOPLE}


def approved(run: Run) -> Run:
    """Return a run whose newest model both roles have approved."""
    people = People(people={n: Person(role=r, key=public_hex(KEYS[n])) for n, r in PEOPLE.items()})
    (run.home.folder / "people.yaml").write_text(yaml.safe_dump(people.model_dump()))
    for name, role in PEOPLE.items():
        text = signed_verdict(terms_of(run, run.records()[-1]), "approved", name, role, KEYS[name], 9)
        record_verdict(run, text, people)
    return run


@pytest.fixture
def run(finished: Path, with_mlflow: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """An approved run whose MLflow runs."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", with_mlflow[1])
    return approved(put_back(finished, with_mlflow[0]))


@pytest.mark.slow
def test_a_new_store_gets_all_that_is_on_record_and_then_what_is_released(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = approved(moved(finished, tmp_path / "home"))
    record = run.records()[-1]
    with running(mlflow_server(run.home)) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        champion.release_model(run, record, evidence.gather(run, record))
        assert list(faults(run)) == []
    wait_until_stopped(url)
    shutil.rmtree(run.home.folder / "mlruns")
    utils._artifact_repos_cache.clear()
    with running(mlflow_server(run.home)) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        assert "`wardround relog` logs what is missing" in next(faults(run))
        with pytest.raises(StoreFailed, match=f"`wardround relog {run.name}` logs the recorded rounds"):
            publish_decisions_page(run)
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", "relog"],
            cwd=run.home.folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and f"MLflow has all of {run.name}: {url}/#/exp" in done.stdout
        assert list(lineage_faults(run)) == []
        assert registry.champion("small") == ""
        assert (
            champion.release_model(run, record, evidence.gather(run, record))
            == "1"
            == registry.champion("small")
        )
        assert list(faults(run)) == []
        (parent,) = MlflowClient(url).search_runs(
            [MlflowClient(url).get_experiment_by_name("small").experiment_id],
            "tags.`wardround.site` = 'GLOBAL'",
        )
        assert parent.info.status == "FINISHED"


def wait_until_stopped(url: str) -> None:
    for _ in range(300):
        try:
            httpx.get(url)
        except httpx.ConnectError:
            return
        time.sleep(0.1)
    raise TimeoutError(url)


def test_only_the_rounds_that_mlflow_may_lack_are_told_again(run: Run) -> None:
    records = run.records()
    tracking = Tracking(run)
    assert tracking.unlogged(records) == records[-1:]  # it may be there in part
    assert tracking.unlogged(records[:2]) == records[:2]  # what MLflow names is none of these


def test_a_run_that_mlflow_calls_finished_before_its_last_round_is_named(run: Run) -> None:
    said = list(metric_faults(run, run.records()[:2]))
    for name in ("GLOBAL", "north"):
        assert f"MLflow calls the run of {name} finished, the newest record is of round 1" in said


@pytest.mark.slow
def test_a_store_in_which_another_coordinator_has_a_study_of_this_name_is_left_alone(
    finished: Path, untouched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = moved(finished, tmp_path / "home")
    with running(mlflow_server(run.home)) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        before = told_in(url)
    wait_until_stopped(url)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    other = tmp_path / "another"
    shutil.copytree(untouched, other)
    shutil.copytree(run.home.folder / "mlruns", other / "mlruns", dirs_exist_ok=True)
    tried = subprocess.run(COMMAND, cwd=other, capture_output=True, text=True, timeout=600, check=False)
    assert tried.returncode == 2 and "Traceback" not in tried.stderr
    assert "small: expected an experiment of this coordinator's in MLflow" in tried.stderr
    assert run.public_key in tried.stderr and not runs_of(Home(other))
    with running(mlflow_server(Home(other))) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        assert told_in(url) == before


def test_a_coordinator_goes_on_with_its_study_with_another_key(
    run: Run, with_mlflow: tuple[Path, str]
) -> None:
    former = run.home.state / "keys" / "former"
    assert Tracking(run)
    run.home.coordinator_key.unlink()
    with pytest.raises(ConfigError, match=f"public key {run.public_key}"):
        Tracking(run.again())
    former.mkdir(parents=True, exist_ok=True)
    (former / f"{run.public_key}.pub").touch()
    assert Tracking(run.again()).page.startswith(with_mlflow[1])
    experiment = MlflowClient().get_experiment_by_name("small")
    assert experiment.tags["wardround.coordinator"] == run.again().public_key != run.public_key


def test_officers_and_regulators_find_their_papers_beside_the_report_once_all_rounds_are_recorded(
    run: Run, tmp_path: Path
) -> None:
    client = MlflowClient()
    publish_decisions_page(run)
    (parent,) = client.search_runs(
        [client.get_experiment_by_name("small").experiment_id], "tags.`wardround.site` = 'GLOBAL'"
    )
    officers = Path(client.download_artifacts(parent.info.run_id, PAPERS["dpo"], str(tmp_path)))
    assert "ada (clinician)" in officers.read_text()  # decisions are in it
    regulators = Path(client.download_artifacts(parent.info.run_id, PAPERS["regulator"], str(tmp_path)))
    assert "CLAIM" in regulators.read_text()
    assert signed_for(run)[PAPERS["dpo"]] == sha256_of(officers.read_bytes())
    assert list(metric_faults(run, run.records())) == []


def test_before_the_last_round_there_is_the_report_alone(finished: Path, tmp_path: Path) -> None:
    run = moved(finished, tmp_path / "home")
    assert sorted(pages_of(run)) == sorted([artifacts.REPORT, *PAPERS.values()])
    record_path(run.folder, run.study.rounds).unlink()
    assert list(pages_of(run)) == [artifacts.REPORT]


def told_in(url: str) -> list[dict[str, object]]:
    client = MlflowClient(url)
    every = client.search_runs([each.experiment_id for each in client.search_experiments()])
    return [each.to_dictionary() for each in every]


def test_what_is_gone_from_a_store_is_told_again_and_what_is_there_stays(run: Run) -> None:
    client = MlflowClient()
    publish_decisions_page(run)
    lost = next((run.home.folder / "mlruns").rglob("rounds/round-001.json"))
    lost.unlink()
    client.delete_model_version("small-candidates", "1")
    assert list(faults(run))
    with Tracking(run) as tracking:
        backfill(run, tracking, run.records())
    assert list(faults(run)) == []
    assert client.get_model_version_by_alias("small-candidates", "candidate").version == "2"
    experiment = client.get_experiment_by_name("small").experiment_id
    (parent,) = client.search_runs([experiment], "tags.`wardround.site` = 'GLOBAL'")
    assert len(client.get_metric_history(parent.info.run_id, "val/dice")) == len(run.records())


def test_whoever_tells_waits_for_whoever_tells_already(run: Run) -> None:
    other = threading.Thread(target=publish_decisions_page, args=(run,))
    with artifacts.artifact_lock(run):
        other.start()
        other.join(3)
        assert other.is_alive()
    other.join(60)
    assert not other.is_alive()


@pytest.mark.slow
def test_a_picture_whose_signatures_were_interrupted_is_signed_for_the_next_time(run: Run) -> None:
    for lost in (".webp.json", ".png.json", ".json"):
        (run.folder / "finished").unlink(missing_ok=True)
        for signed in (run.folder / "artifacts").glob(f"images*step%2B2%2B*{lost}"):
            signed.unlink()
        assert "has not signed a picture of round 2" in next(faults(run))
        with Tracking(run) as tracking:
            backfill(run, tracking, run.records())
        assert list(lineage_faults(run)) == []
    pictures = list((run.home.folder / "mlruns").rglob("*step+2*.png"))
    assert len(pictures) == 1  # none was drawn once more


@pytest.mark.slow
def test_a_hospital_that_joins_while_a_run_trains_fits_from_then_on(
    tmp_path: Path, study_with, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = Federation(tmp_path, study_with(rounds=4))
    known = federation.run.description.participants
    there = {site: member for site, member in known.items() if site != "south"}
    run = federation.run.with_participants(there, {"south": SILENT})
    with running(mlflow_server(run.home)) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        with Tracking(run) as tracking:
            backfill(run, tracking, run.records())
            federation.accept("south", 1)
            joined = membership.before_round(run, 1, 1)
            assert "south" in joined.description.participants
            tracking.follow(joined)
            assert list(metric_faults(joined, joined.records())) == []
