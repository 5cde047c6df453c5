"""Released models in MLflow's registry."""

from pathlib import Path

import pytest
from deciders import KEYS, say, with_people
from homes import put_back
from mlflow.tracking import MlflowClient

from flows.decisions.chain import NotReleased
from flows.release import champion, evidence
from flows.runs.run import Run
from flows.tracking import registry
from flows.verification.verify import faults


@pytest.fixture
def run(finished: Path, with_mlflow: tuple[Path, str]) -> Run:
    """A finished run about which nobody has decided."""
    return with_people(put_back(finished, with_mlflow[0]))


@pytest.fixture
def mlflow(with_mlflow: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", with_mlflow[1])
    return MlflowClient(with_mlflow[1])


def test_a_release_that_a_new_store_lacks_is_written_there_again(run: Run, mlflow: MlflowClient) -> None:
    record = run.records()[-1]
    for name in KEYS:
        say(run, record, name)
    champion.release_model(run, record, evidence.gather(run, record))
    mlflow.delete_registered_model("small-approved")
    assert "MLflow lacks version 1" in next(faults(run))
    assert (
        champion.release_model(run, record, evidence.gather(run, record))
        == "1"
        == registry.champion("small")
    )
    assert list(faults(run)) == []


def test_what_is_released_is_written_from_the_run_and_not_from_the_candidate(
    run: Run, mlflow: MlflowClient, tmp_path: Path
) -> None:
    record = run.records()[-1]
    for name in KEYS:
        say(run, record, name)
    proof = evidence.gather(run, record)
    for path in (run.home.folder / "mlruns").rglob("MLmodel"):
        path.write_text(path.read_text().replace("flows.served_model", "os"))
    assert champion.release_model(run, record, proof) == "1"
    (tmp_path / "released").mkdir()
    files = registry.fetch("small-approved", "champion", tmp_path / "released").folder
    assert "flows.served_model" in (files / "MLmodel").read_text()
    with pytest.raises(NotReleased, match="loads other code than what is installed"):
        evidence.check_evidence(evidence.gather(run, record))
