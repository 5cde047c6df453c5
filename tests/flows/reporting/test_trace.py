"""The trace of a run names what each process did, and is left nowhere else."""

import json
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

COMMAND = [sys.executable, "-m", "flows.cli", "run"]


def test_a_profiled_run_has_the_spans_of_the_coordinator_and_of_each_hospital(
    tmp_path: Path, small_wards, study_file
) -> None:
    wards = small_wards(tmp_path / "wards")
    for ward in wards.iterdir():
        shutil.rmtree(ward / "state", ignore_errors=True)  # a folder that was never used
    study = study_file(rounds=1)
    command = [*COMMAND, str(study), "--test-noise", "7", "--profile", "trace.json"]
    subprocess.run(command, cwd=tmp_path, check=True)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    name_of = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    names = defaultdict(set)
    for event in events:
        if event["ph"] == "X":
            names[name_of[event["pid"]]].add(event["name"])
            assert event["dur"] >= 0 and event["args"]["cpu_ms"] >= 0
    hospitals = {ward.name for ward in wards.iterdir()}
    assert set(names) == {"coordinator", *hospitals}
    assert names["coordinator"] >= {"ask", "wait", "verify", "aggregate", "log", "report"}
    for hospital in hospitals:
        assert names[hospital] >= {"order", "fetch", "load", "train", "distil", "export"}
    # a new key decides who evaluates, at a small hospital perhaps too few
    assert any("evaluate" in names[hospital] for hospital in hospitals)
    assert not list(tmp_path.rglob("spans.jsonl"))


def test_a_remote_federation_has_no_profile(tmp_path: Path, study_file) -> None:
    command = [*COMMAND, str(study_file()), "--federation", "federation.yaml", "--profile", "x.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "how long a hospital takes" in " ".join(done.stderr.split())
    assert list(tmp_path.glob("x.json")) == []
