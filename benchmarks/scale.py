"""Many hospitals on one machine: `wardround run` with their ledgers, releases, signatures, and servers.

    python benchmarks/scale.py --json > scale.json

Each hospital has its own folder, keys, policy and ledger; scans are shared by hard links. A round is one
private step over a few phantoms at each hospital, so that what it costs is the federation's own. The
last model is scored everywhere, as is the first one.

Rows: `{"hospitals", "seconds_per_hospital_round", "coordinator_mib", "hospital_processes",
"wall_seconds"}`: the time from the first record to the last one, over hospitals and rounds; the
coordinator's peak memory; the most processes of hospitals at a time; the whole command.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from processes import descendants
from rows import print_rows
from simulation import ROOT

from flows.runs.paths import Home
from flows.runs.run import runs_of
from sites.datasets.phantoms import SCANNERS, make_wards

SIZES = (4, 20, 100, 1000)
ROUNDS, PATIENTS, DIFFERENT = 2, 10, 4


def study_of(hospitals: int) -> dict[str, Any]:
    """Return the study: private, one step a round."""
    return {
        "name": "scale",
        "task": {"kind": "segmentation", "dims": 3, "labels": {1: "head", 2: "tail"}},
        "network": {"name": "UNet", "channels": [4, 8]},
        "rounds": ROUNDS,
        "sites": {"min": hospitals, "deadline_s": 3600},
        "preprocessing": {"shape": [24, 24, 24], "intensity": "z_score"},
        "training": {"steps": 1, "lr": 0.1, "lot": "all"},
        "privacy": {
            "mode": "local", "unit": "patient", "epsilon": 8, "delta": 1e-3,
            "clip": {"kind": "normalised", "norm": 1.0}, "accountants": ["rdp"],
        },
        "export": "weights",
        "strategy": {"name": "fed_avg"},
        "evaluation": {"every": 1000},
    }  # fmt: skip


def made(folder: Path, hospitals: int) -> None:
    """Write the hospitals and the study."""
    scanners = [replace(SCANNERS[0], name=f"made-{k}", patients=PATIENTS) for k in range(DIFFERENT)]
    sources = make_wards(folder / "sources", 0, scanners)
    for number in range(hospitals):
        source, ward = sources[number % DIFFERENT], folder / "wards" / f"site-{number:04d}"
        shutil.copytree(source, ward, copy_function=os.link, ignore=shutil.ignore_patterns("state"))
        policy = yaml.safe_load((source / "site.yaml").read_text())
        policy |= {"name": ward.name, "min_patients": 3, "min_evaluation_patients": 1}
        policy |= {"declared_patients": PATIENTS, "budget": {"epsilon": 8.0, "delta": 1e-3}}
        (ward / "site.yaml").unlink()
        (ward / "site.yaml").write_text(yaml.safe_dump(policy))
    (folder / "study.yaml").write_text(yaml.safe_dump(study_of(hospitals)))


def row_of(hospitals: int) -> dict[str, Any]:
    """Run one federation and return its row."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made(folder, hospitals)
        started, most = time.monotonic(), 0
        command = [sys.executable, "-m", "flows.cli", "run", "study.yaml"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
            peak = 0
            while process.poll() is None:
                most = max(most, _hospitals_below(process.pid))
                peak = max(peak, _peak_bytes(process.pid))
                time.sleep(0.25)
        wall = time.monotonic() - started
        if process.returncode:
            raise SystemExit((folder / "log").read_text(errors="replace")[-3000:])
        first, *_, last = runs_of(Home(folder))[-1].records()
        seconds = (last.finished_ms - first.finished_ms) / 1000
    return {
        "hospitals": hospitals,
        "seconds_per_hospital_round": round(seconds / (hospitals * ROUNDS), 4),
        "coordinator_mib": round(peak / 2**20),
        "hospital_processes": most,
        "wall_seconds": round(wall, 1),
    }


def _hospitals_below(pid: int) -> int:
    """Return the number of hospitals' processes: forks of the template, the command's own fork."""
    count = 0
    for each in descendants(pid):
        try:
            working = Path(f"/proc/{each}/cwd").readlink()
        except OSError:
            continue
        count += working.parent.name == "wards"
    return count


def _peak_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def rows(sizes: list[int]) -> Iterator[dict[str, Any]]:
    """Yield a row for each number of hospitals."""
    for hospitals in sizes:
        yield row_of(hospitals)


def main() -> None:
    """Print a row for each number of hospitals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    parser.add_argument("--hospitals", type=int, nargs="+", default=list(SIZES))
    asked = parser.parse_args()
    print_rows(rows(asked.hospitals), as_json=asked.json)


if __name__ == "__main__":
    main()
