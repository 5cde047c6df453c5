"""Runs side by side, at the terminal and from Python."""

import json
from pathlib import Path

import numpy as np
import pytest
from homes import moved
from typer.testing import CliRunner

import wardround
from flows.cli.main import app
from flows.runs.comparison import differences
from flows.runs.run import Run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Run:
    return moved(finished, tmp_path / "home")


def test_a_list_has_each_run_with_what_its_records_state(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.home.folder)
    (line,) = json.loads(CliRunner().invoke(app, ["runs", "--json"]).stdout)
    last = run.records()[-1]
    assert (line["run"], line["rounds"], line["is_finished"]) == (run.name, "2 of 2", True)
    assert line["epsilon"] == max(r.statement.epsilon for r in last.releases.values())
    assert (line["metric"], line["now"]) == ("dice", last.quality["dice"])
    assert run.name in CliRunner().invoke(app, ["runs"], env={"COLUMNS": "200"}).stdout


def test_two_runs_differ_in_the_keys_and_results_that_differ_and_no_others(run: Run) -> None:
    assert differences(run, run) == []
    study = run.study.model_copy(update={"rounds": 7})
    other = Run(run.folder, run.home, run.description.model_copy(update={"study": study}))
    (only,) = differences(run, other)
    assert (only.what, only.first, only.second) == ("study.rounds", 2, 7)


def test_a_run_is_a_data_frame_of_hospitals_and_rounds(run: Run) -> None:
    table = wardround.rounds(run.name, run.home.folder)
    assert len(table) == 9  # three hospitals before training and in two rounds
    last = table[(table["round"] == 2) & (table["hospital"] == "north")].iloc[0]
    record = run.records()[-1]
    assert last["dice"] == record.metrics["north"]["dice"]
    assert last["epsilon"] == record.releases["north"].statement.epsilon
    assert list(wardround.runs(run.home.folder)["run"]) == [run.name]
    assert wardround.compare(run.name, run.name, run.home.folder).empty


def test_a_model_is_loaded_with_its_network_and_preprocessing(run: Run) -> None:
    model = wardround.load_model(run.name, run.home.folder)
    image = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
    found = model.probabilities(image, spacing_mm=(1.0, 1.0, 1.0))
    assert tuple(found.shape) == (3, 16, 16, 16)
    assert found.sum(0).numpy() == pytest.approx(np.ones((16, 16, 16)), abs=1e-5)
    due = run.model(run.records()[-1])
    own = dict(model.network.named_parameters())
    assert all(np.array_equal(own[name].detach().numpy(), due[name].numpy()) for name in due)
