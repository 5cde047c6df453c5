"""Large models: the average of many releases beside plain numpy, robust rules, and a model's way around.

    python benchmarks/large_models.py --json > large_models.json

Releases are hard links of four different files of one size. "numpy" reads the same files and adds them
up in float64, in one process, as plainly as it can be written. "whole round" publishes a model, fetches
it as a hospital does, releases a change, fetches that as the coordinator does, averages and publishes
the next.

Rows: `{"what", "releases", "parameters", "seconds", "peak_mib", "of_numpy"}`: the time and the peak
memory of a process that does only this; the speed as a share of numpy's in the same run.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rows import print_rows
from safetensors import safe_open

from models import checkpoints, robust
from models import params as P
from models.checkpoints import StoredParams
from sites.exchange.exchange import COORDINATOR, Exchange
from sites.exchange.outbox import Outbox

DIFFERENT, TENSORS = 4, 10


def write_releases(folder: Path, count: int, parameters: int) -> None:
    """Write four different releases, and hard links of them up to `count`."""
    rng = torch.Generator().manual_seed(0)
    rows = parameters // TENSORS // 1000
    for number in range(min(DIFFERENT, count)):
        tensors = {f"w{k}": torch.randn(rows, 1000, generator=rng) for k in range(TENSORS)}
        checkpoints.write(folder / f"{number:04d}", tensors)
    for number in range(DIFFERENT, count):
        os.link(folder / f"{number % DIFFERENT:04d}", folder / f"{number:04d}")


def stored(folder: Path) -> list[StoredParams]:
    """Return the releases in a folder."""
    return [StoredParams(path) for path in sorted(folder.glob("0*"))]


def by_numpy(folder: Path) -> None:
    """Read all files and add them up."""
    total: dict[str, Any] = {}
    for path in sorted(folder.glob("0*")):
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118  # a file, no dict
                value = file.get_tensor(name)
                if name in total:
                    total[name] += value
                else:
                    total[name] = value.astype(np.float64)


def average(folder: Path) -> None:
    """Average as FedAvg does."""
    P.weighted_mean((1.0 + k, params) for k, params in enumerate(stored(folder)))


def whole_round(folder: Path) -> None:
    """Take one model and one release through a round, as the two sides do."""
    (release,) = stored(folder)
    exchange, outbox = Exchange(str(folder / "exchange")), Outbox(folder / "outbox")
    model = folder / "model.safetensors"
    sha256 = checkpoints.write(model, release)
    exchange.put_object(model, COORDINATOR)
    at_hospital = folder / "fetched.safetensors"
    exchange.fetch_object(sha256, COORDINATOR, at_hospital, 2**34)
    params = checkpoints.read(at_hospital, sha256)
    if not P.all_finite(params):
        raise SystemExit("the model is not finite")
    sent = outbox.put_tensors(lambda path: checkpoints.save_to(path, params))
    exchange.put_object(outbox.tensors(sent), "north")
    taken = folder / "taken.safetensors"
    exchange.fetch_object(sent, "north", taken, 2**34)
    change = checkpoints.read(taken, sent)
    mean = P.weighted_mean([(1.0, change)])
    checkpoints.write(folder / "next.safetensors", P.add(checkpoints.read(model, sha256), mean))


JOBS: dict[str, Callable[[Path], object]] = {
    "numpy": by_numpy,
    "average": average,
    "coordinate median": lambda folder: robust.median(stored(folder)),
    "trimmed mean": lambda folder: robust.trimmed_mean(stored(folder), 1),
    "krum": lambda folder: robust.krum(stored(folder), 1),
    "whole round": whole_round,
}


def measured(what: str, folder: Path) -> tuple[float, float]:
    """Return the seconds and peak MiB of a process that does one job."""
    command = [sys.executable, __file__, "--job", what, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return found["seconds"], found["peak_mib"]


def do(what: str, folder: Path) -> None:
    """Do one job and print what it took."""
    torch.set_num_threads(1)
    started = time.monotonic()
    JOBS[what](folder)
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mib": peak}))


def rows(releases: int, parameters: int, largest: int) -> Iterator[dict[str, Any]]:
    """Yield the rows: averages and rules over many releases, then a round of one large model."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_releases(folder, releases, parameters)
        plain, _ = measured("numpy", folder)  # the files are in memory from now on
        for what in ("numpy", "average", "coordinate median", "trimmed mean", "krum"):
            seconds, peak = measured(what, folder)
            plain = seconds if what == "numpy" else plain
            yield row(what, releases, parameters, seconds, peak, plain / seconds)
    with tempfile.TemporaryDirectory() as temporary:
        write_releases(Path(temporary), 1, largest)
        seconds, peak = measured("whole round", Path(temporary))
        yield row("whole round", 1, largest, seconds, peak, None)


def row(
    what: str, releases: int, parameters: int, seconds: float, peak_mib: float, share: float | None
) -> dict[str, Any]:
    """Return a row."""
    return {
        "what": what,
        "releases": releases,
        "parameters": parameters,
        "seconds": round(seconds, 1),
        "peak_mib": round(peak_mib),
        "of_numpy": None if share is None else round(share, 2),
    }


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    parser.add_argument("--releases", type=int, default=100)
    parser.add_argument("--parameters", type=int, default=100_000_000)
    parser.add_argument("--largest", type=int, default=825_000_000)
    parser.add_argument("--job", choices=list(JOBS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.job:
        do(asked.job, asked.folder)
        return
    print_rows(rows(asked.releases, asked.parameters, asked.largest), as_json=asked.json)


if __name__ == "__main__":
    main()
