"""One study in Flower and in Wardround, one after the other, each from nothing.

    python benchmarks/peers.py --json > peers.json

The same network trains the same steps on the same phantoms at the same hospitals, and each round's model
is scored at each hospital (`benchmarks/peers/`). Each system runs as its users start it on one machine:
Flower's simulation (Ray), `wardround run` with its servers, ledgers, signatures and MLflow. "served" is
`wardround run` while another user of the folder keeps its servers running. Flower has an environment of
its own, made in `--environments` on demand (gigabytes from PyPI).

Rows: `{"system", "hospitals", "rounds", "wall_seconds", "training_seconds", "cpu_seconds"}` of the
whole command, with all processes that it starts; the training alone is summed over hospitals and rounds.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from processes import processor_seconds
from rows import print_rows
from simulation import ROOT

from flows.runs.paths import Home
from flows.servers.environment import own_servers
from sites.datasets.phantoms import SCANNERS, make_wards
from sites.setup.wards import introduce

PEERS = Path(__file__).parent / "peers"
PACKAGES = {"flower": ["flwr[simulation]==1.42.0"]}
COMMON = ["torch==2.13.0", "monai==1.6.1", "nibabel==5.4.2"]
SIZES = ((4, 3), (20, 2))
STEPS, PATIENTS = 40, 16
SYSTEMS = ("flower", "wardround", "wardround, served")


def study_of(hospitals: int, rounds: int) -> dict[str, Any]:
    """Return the study, which `benchmarks/peers/learner.py` repeats for the peers."""
    return {
        "name": "peers",
        "task": {"kind": "segmentation", "dims": 3, "labels": {1: "head", 2: "tail"}},
        "network": {"name": "UNet", "channels": [8, 16, 32]},
        "rounds": rounds,
        "sites": {"min": hospitals, "deadline_s": 600},
        "preprocessing": {"shape": [24, 24, 24], "intensity": "z_score", "augmentation": None},
        "training": {"steps": STEPS, "lr": 0.05, "lot": 4},
        "privacy": {"mode": "none"},
        "export": "weights",
        "strategy": {"name": "fed_avg"},
    }


def made(folder: Path, hospitals: int, rounds: int) -> Path:
    """Write the hospitals and the study; return the hospitals' folder."""
    wards = folder / "wards"
    names = [f"site-{number:03d}" for number in range(hospitals)]
    scanners = [replace(SCANNERS[1], name=name, patients=PATIENTS) for name in names]
    for ward in make_wards(wards, 0, scanners):
        policy = yaml.safe_load((ward / "site.yaml").read_text())
        policy |= {"plain_studies": "allow", "min_patients": 5, "min_evaluation_patients": 1}
        policy |= {"declared_patients": 10}
        (ward / "site.yaml").write_text(yaml.safe_dump(policy))
    introduce(sorted(wards.iterdir()))
    (folder / "study.yaml").write_text(yaml.safe_dump(study_of(hospitals, rounds)))
    return wards


def environment_of(system: str, environments: Path) -> Path:
    """Return the Python of a peer's environment, made if there is none."""
    folder = environments / system
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, *COMMON, *PACKAGES[system]], check=True)
        (folder / "complete").touch()
    return python


def command_of(system: str, environments: Path) -> Sequence[str]:
    """Return the command line of a system."""
    if system == "flower":
        return [str(environment_of(system, environments)), str(PEERS / "flower_app.py")]
    return [sys.executable, "-m", "flows.cli", "run", "study.yaml", "--profile", "trace.json"]


def row_of(system: str, hospitals: int, rounds: int, environments: Path) -> dict[str, Any]:
    """Run one system on one study and return its row."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wards, notes = made(folder, hospitals, rounds), folder / "notes"
        notes.mkdir()
        command = command_of(system, environments)
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{PEERS}", "RAY_DEDUP_LOGS": "0",
            "PEERS_WARDS": str(wards), "PEERS_ROUNDS": str(rounds), "PEERS_STEPS": str(STEPS),
            "PEERS_NOTES": str(notes),
        }  # fmt: skip
        served: AbstractContextManager[Any] = nullcontext()
        if system.endswith("served"):
            served = own_servers(Home(folder))
        with served as servers:
            if servers:
                servers.ready()
            wall, cpu = measured(command, folder, environment)
        training = sum(json.loads(path.read_text()) for path in notes.glob("*.json"))
        if (folder / "trace.json").exists():
            events = json.loads((folder / "trace.json").read_text())["traceEvents"]
            training = sum(event["dur"] for event in events if event["name"] == "train") / 1e6
    return {
        "system": system,
        "hospitals": hospitals,
        "rounds": rounds,
        "wall_seconds": round(wall, 1),
        "training_seconds": round(training, 1),
        "cpu_seconds": round(cpu, 1),
    }


def measured(
    command: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> tuple[float, float]:
    """Return a command's wall time, and the processor time meanwhile of all processes below this one.

    The processor time is sampled, so a process loses up to the last tenth of a second of its own.
    """
    before, spent = processor_seconds(os.getpid()), dict[int, float]()
    started = time.monotonic()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=dict(environment), stdout=log, stderr=log)
        while process.poll() is None:
            spent |= processor_seconds(os.getpid())
            time.sleep(0.1)
    wall = time.monotonic() - started
    if process.returncode:
        raise SystemExit((folder / "log").read_text(errors="replace")[-3000:])
    return wall, sum(seconds - before.get(pid, 0.0) for pid, seconds in spent.items())


def _adopt_orphans() -> None:
    """Have the system hand this process what its children leave behind (PR_SET_CHILD_SUBREAPER)."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def rows(repeats: int, systems: Sequence[str], environments: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows, the systems in turn."""
    for system in systems:
        if system in PACKAGES:
            environment_of(system, environments)  # before anything is timed
    for hospitals, rounds in SIZES:
        for _ in range(repeats):
            for system in systems:
                yield row_of(system, hospitals, rounds, environments)


def main() -> None:
    """Print a row for each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--environments", type=Path, default=Path(".peers"))
    asked = parser.parse_args()
    _adopt_orphans()
    found = rows(asked.repeats, asked.systems, asked.environments.resolve())
    print_rows(found, as_json=asked.json)


if __name__ == "__main__":
    main()
