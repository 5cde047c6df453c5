"""The import contracts catch what they are there for: an import is planted in a copy of the rooms."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("flows", "sites", "privacy", "models")

PLANTED = {
    "models/params.py": ("from privacy import signing", "Imports run down"),
    "sites/hospital.py": ("import prefect", "Only flows knows Prefect and MLflow"),
    "flows/decisions/release_status.py": ("import mlflow", "MLflow only in tracking"),
    "flows/served_model.py": ("import mlflow.pyfunc", "MLflow only in tracking"),
    "flows/verification/verify.py": ("from prefect import flow", "Prefect only in flows, workers"),
    "flows/rounds/aggregation.py": ("from sites.update import Update", "A raw update stays inside"),
    "flows/federate.py": ("from sites.training import dp_sgd", "A raw update stays inside"),
    "flows/runs/run.py": ("from flows.rounds import statements", "No circle between rooms"),
}


def broken(folder: Path) -> str:
    """Return what import-linter prints about the rooms in a folder."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    for room in ROOMS:
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize("module", PLANTED)
def test_an_import_that_a_contract_forbids_breaks_it(copied: Path, module: str) -> None:
    line, contract = PLANTED[module]
    path = copied / module
    path.write_text(f"{path.read_text()}\n{line}\n")
    verdicts = [row for row in broken(copied).splitlines() if " BROKEN" in row]
    assert any(row.startswith(contract) for row in verdicts), verdicts


def test_the_rooms_as_they_are_keep_every_contract(copied: Path) -> None:
    found = broken(copied)
    assert "0 broken" in found and "BROKEN" not in found
