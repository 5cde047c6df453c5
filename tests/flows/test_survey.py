"""Surveys through a real Prefect server, to a real MLflow."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from flows.runs.paths import Home
from flows.runs.run import runs_of, surveys_of


def wardround(home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=600)


@pytest.fixture
def home(tmp_path: Path, small_wards, edit) -> Path:
    for number, ward in enumerate(sorted(small_wards(tmp_path / "wards").iterdir())):
        kinds = [{"kind": "suppressed", "smallest": 3}, {"kind": "noised", "epsilon": 2}, "withheld"]
        edit(ward / "site.yaml", statistics=kinds[number])
    return tmp_path


def records(home: Path) -> list[dict]:
    runs = surveys_of(Home(home), "small")
    return [json.loads((run.folder / "survey.json").read_bytes()) for run in runs]


@pytest.mark.slow
def test_a_second_survey_tells_what_has_moved_at_which_hospital(home: Path, study_file) -> None:
    study = study_file()
    first = wardround(home, "survey", study)
    assert first.returncode == 0, first.stderr
    assert "the first survey" in first.stdout
    for path in (home / "wards" / "east" / "imagesTr").iterdir():
        image = nib.load(path)
        brighter = np.asarray(image.dataobj) * 20 + 100
        nib.save(nib.Nifti1Image(brighter.astype(np.float32), image.affine), path)
    second = wardround(home, "survey", study)
    assert second.returncode == 0, second.stderr
    before, after = records(home)
    assert before["drift"] == {}
    assert after["drift"]["east"]["intensity"] > 0.25
    assert after["drift"]["east"]["scans"] == 0
    assert after["surveys"]["south"]["histograms"] == {}
    assert after["surveys"]["north"]["event"]["steps"] == 1
    assert "intensity" in second.stdout
    with sqlite3.connect(home / "mlruns" / "mlflow.db") as db:
        steps = db.execute("select step, value from metrics where key = 'drift/intensity'").fetchall()
    assert {step for step, _ in steps} == {1}
    assert not runs_of(Home(home))  # a survey is no training


@pytest.mark.slow
def test_surveys_come_again_on_schedule_until_they_are_ended(home: Path, study_file) -> None:
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "survey",
        str(study_file()),
        "--every-hours",
        "0.005",
    ]
    process = subprocess.Popen(command, cwd=home, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 200
        while len(records(home)) < 2 and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(1)
        assert len(records(home)) >= 2
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
