"""Private steps of one hospital by its own process, and by workers of its own Dask cluster.

    python benchmarks/cluster.py --json

One made-up hospital, all patients in each step, one torch thread a process. Each row is the median
of some repeats in one run, and says whether the model is that of one process to the bit. To begin is to
reach the cluster and to send the patients' scans.

Rows: `{"workers", "patients", "begin_seconds", "step_seconds", "speedup", "same_bits"}`; without workers
the hospital's process is alone.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from distributed import LocalCluster
from rows import print_rows
from simulation import make_keys, quiet

from models import params as P
from models.networks.segmentation import UNetConfig
from models.objectives import build_task
from models.settings.images import PreprocessingConfig
from models.settings.tasks import SegmentationConfig
from privacy.mechanisms import ClipConfig, Mechanism
from privacy.noise.source import NoiseSource
from sites.cohort import Patient
from sites.datasets.phantoms import SCANNERS, make_wards
from sites.hospital import Hospital
from sites.imaging.reading import reader
from sites.policy.cluster import ClusterConfig
from sites.training.cluster import TrainingOnWorkers, spread
from sites.training.config import TrainingConfig
from sites.training.dp_sgd import train_privately
from sites.training.examples import prepare
from sites.training.lot_sums import OwnSums

TASK = SegmentationConfig(kind="segmentation", dims=3, labels={1: "head", 2: "tail"})
IMAGES = PreprocessingConfig(shape=(32, 48, 32))
NETWORK = UNetConfig(name="UNet", channels=(16, 32, 64), num_res_units=1)
CONFIG = TrainingConfig(steps=1, lr=0.1, lot="all", microbatch=4)
PATIENTS = 32
"""Patients of the hospital."""


def patients_in(folder: Path) -> Sequence[Patient]:
    """Return made-up patients, in memory."""
    (ward,) = make_wards(folder, 0, [replace(SCANNERS[0], patients=PATIENTS)])
    make_keys([ward])
    hospital = Hospital.open(ward)
    read = reader(ward, TASK, IMAGES)
    return [Patient(case.patient, (read(case),)) for case in hospital.cases]


def steps(
    patients: Sequence[Patient], cluster: LocalCluster | None, repeats: int
) -> tuple[float, float, P.Params]:
    """Return the seconds to begin and of a step, and the model after `repeats` steps."""
    torch.manual_seed(0)
    task = build_task(TASK)
    network = NETWORK.build(3, TASK.out_channels, 1)
    own = OwnSums(task, prepare(patients, IMAGES, torch.device("cpu"), 0), CONFIG)
    told = TrainingOnWorkers(network, task, CONFIG, IMAGES, 0, "cpu", 1)
    mechanism = Mechanism(ClipConfig(kind="normalised", norm=1.0), 1.0, 1.0, 1, divisor=len(patients))
    started, taken = time.perf_counter(), []
    address = cluster and ClusterConfig(scheduler=cluster.scheduler_address)
    with spread(address, told, patients, own) if address else nullcontext(own) as sums:
        begun = time.perf_counter() - started
        for step in range(repeats):
            before = time.perf_counter()
            train_privately(
                network, task, own.examples, CONFIG, mechanism, NoiseSource.for_test(step, ""), None,
                lambda *_: None, sums=sums,
            )  # fmt: skip
            taken.append(time.perf_counter() - before)
    return begun, statistics.median(taken), P.of(network)


def rows(workers: Sequence[int], repeats: int) -> Iterator[dict[str, Any]]:
    """Yield a row without workers, and one for each number of them."""
    quiet()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        patients = patients_in(Path(folder))
        _, alone, right = steps(patients, None, repeats)
        yield _row(0, 0.0, alone, alone, same=True)
        for count in workers:
            with LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=None) as cluster:
                begun, step, found = steps(patients, cluster, repeats)
            same = all(torch.equal(found[name], right[name]) for name in right)
            yield _row(count, begun, step, alone, same=same)


def _row(workers: int, begun: float, step: float, alone: float, *, same: bool) -> dict[str, Any]:
    return {
        "workers": workers, "patients": PATIENTS, "begin_seconds": round(begun, 2),
        "step_seconds": round(step, 3), "speedup": round(alone / step, 2), "same_bits": same,
    }  # fmt: skip


def main() -> None:
    """Print a row for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=7)
    asked = parser.parse_args()
    print_rows(rows(asked.workers, asked.repeats), as_json=asked.json)


if __name__ == "__main__":
    main()
