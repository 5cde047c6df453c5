"""Whole federations of hospitals that are unlike: predictions of own architectures, own last layers."""

import subprocess
import sys
from pathlib import Path

import pytest

from flows.runs.paths import Home
from flows.runs.run import Run, runs_of
from flows.servers.environment import mlflow_server
from flows.servers.loopback import running
from sites.hospital import Hospital

COMMAND = [sys.executable, "-m", "flows.cli", "run", "small.yaml", "--test-noise", "7"]


@pytest.fixture
def train(tmp_path: Path, small_wards, study_file, edit):
    """A function that trains a study; the hospital `east` has a policy of its own."""

    def trained(policy: dict[str, object], **changes: object) -> Run:
        for ward in small_wards(tmp_path / "wards").iterdir():
            edit(ward / "site.yaml", plain_studies="allow", **(policy if ward.name == "east" else {}))
        study_file(**changes)
        done = subprocess.run(COMMAND, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return runs_of(Home(tmp_path))[-1]

    return trained


@pytest.mark.slow
def test_hospitals_of_any_architecture_and_speed_teach_one_student_by_their_answers(train) -> None:
    run = train(
        {"teacher": {"name": "SegResNet"}, "device": {"kind": "cpu", "most_steps": 1}},
        export="predictions",
        start={"kind": "synthetic", "steps": 20, "images": 16},
        training={"steps": 2, "fewest_steps": 1, "lr": 0.1, "lot": "all"},
        distillation={"transfer": "synthetic", "steps": 20, "images": 16},
        evaluation={"teachers": True},
    )
    first, *_, last = run.records()
    steps = {site: run.description.member(site, 1).statement.steps for site in last.releases}
    assert steps == {"east": 1, "north": 2, "south": 2}
    assert all(r.statement.event.steps == steps[site] for site, r in last.releases.items())
    assert last.model_sha256 != first.model_sha256
    assert "teacher/dice" in last.metrics["east"]
    for site, accepted in last.releases.items():
        outbox, release = Hospital.open(run.home.folder / "wards" / site).outbox, accepted.statement
        assert len(outbox.tensors(release.payload_sha256).read_bytes()) == release.payload_bytes


@pytest.mark.slow
def test_a_registered_model_says_that_layers_of_it_stayed_at_the_hospitals(train) -> None:
    run = train(
        {}, strategy={"name": "fed_per"}, privacy={"mode": "none"}, export="weights", distillation=None
    )
    local = [name for name in run.model(run.records()[-1]) if run.study.bound_strategy().is_local(name)]
    with running(mlflow_server(run.home)) as url:
        from mlflow.tracking import MlflowClient

        versions = MlflowClient(url).search_model_versions("name = 'small-candidates'")
    assert len(versions) == 2
    for version in versions:
        assert all(name in version.tags["wardround.local_layers"] for name in local)
