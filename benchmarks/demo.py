"""The demo on several seeds: seconds, peak memory, Dice before and after at each hospital, epsilon.

Each seed gets its own made-up patients, first model and noise, in a folder of its own. Peak memory
is the proportional set size, summed over the command and all processes that it starts.

    python benchmarks/demo.py --seeds 0 1 2 --json
    python benchmarks/demo.py --seeds 0 --json > docs/demo.json   # README shows it
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from processes import memory_bytes

from flows.runs.paths import Home
from flows.runs.run import runs_of


def measure(seed: int, folder: Path) -> dict[str, Any]:
    """Run the demo of one seed in `folder` and return its row."""
    started = time.monotonic()
    command = [sys.executable, "-m", "flows.cli", "demo", "--seed", str(seed)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        peak = 0
        while process.poll() is None:
            peak = max(peak, memory_bytes(process.pid))
            time.sleep(0.25)
    seconds = time.monotonic() - started
    if process.returncode:
        raise SystemExit((folder / "log").read_text())
    run = runs_of(Home(folder))[-1]
    first, *rounds = run.records()
    last = rounds[-1]
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "peak_mib": round(peak / 2**20),
        "dice_before": round(first.quality["dice"], 4),
        "dice_after": round(last.quality["dice"], 4),
        "rise": round(last.quality["dice"] - first.quality["dice"], 4),
        "sites": {
            site: {
                "dice_before": _dice(first.metrics, site),
                "dice_after": _dice(last.metrics, site),
                "epsilon": round(release.statement.epsilon or 0, 3),
                "patients": run.description.everybody[site].statement.declared_patients,
                "bytes": sum(each.releases[site].statement.payload_bytes for each in rounds),
            }
            for site, release in last.releases.items()
        },
    }


def _dice(metrics: dict[str, dict[str, float]], site: str) -> float | None:
    value = metrics.get(site, {}).get("dice")
    return None if value is None else round(value, 4)


def main() -> None:
    """Print a row for each seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", action="store_true", help="one JSON list")
    parser.add_argument("--keep", type=Path, help="an empty folder in which the runs stay, by seed")
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            kept = arguments.keep / str(seed) if arguments.keep else Path(folder)
            kept.mkdir(parents=True, exist_ok=True)
            rows.append(measure(seed, kept))
        if not arguments.json:
            print(rows[-1])
    if arguments.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
