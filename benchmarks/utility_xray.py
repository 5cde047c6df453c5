"""What private training adds to a start on chest X-rays: AUC on the set's own validation part.

    python benchmarks/utility_xray.py --json > utility_xray.json

PneumoniaMNIST of the shared data. A fifth of its training part (by hash) is public; four hospitals that
differ in their share of the ill have the rest, with noise at each. The validation part is never used
for anything but the AUC.

| start        | first model                                                                  |
|--------------|------------------------------------------------------------------------------|
| untrained    | drawn from the seed; the rate of `studies/pneumonia.yaml`                    |
| public fifth | the public fifth; the rate follows from the noise                            |
| validated    | three quarters of the public fifth; the last quarter chooses the last model  |

Rows: `{"start", "privacy", "noise", "epsilon", "seed", "auroc", "start_auroc", "patients", "rate"}`.
"""

import argparse
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from heterogeneity import HOSPITALS, validation_part
from rows import print_rows, side_by_side
from simulation import DATA, ROOT, federate, quiet, scored

from flows.runs.paths import Home
from flows.starts.first_model import first_model
from sites.cohort import Cohort
from sites.datasets import medmnist
from sites.datasets.public_sets import PICTURES
from sites.local_models import CPU, network_for
from sites.study import Study

SOURCE = DATA / "pneumoniamnist" / "pneumoniamnist_trainval.npz"
SKEW, SEED = 0.5, 0
DELTA = 1e-5
EPSILONS = (2.0, 8.0, 20.0, None)
STARTS = ("untrained", "public fifth", "validated")
PUBLIC = {"kind": "public", "folder": "fifth", "steps": 400}
VALIDATED = {
    "start": [{**PUBLIC, "folder": "fifth-start"}],
    "validation": {"folder": "fifth-validation"},
}
FROM_PUBLIC = {"steps": 3, "lr": "auto", "schedule": "cosine", "lot": "all", "microbatch": 64}


@dataclass(frozen=True)
class Job:
    """One training: from a start, at an epsilon (None: without privacy), with a seed."""

    start: str
    epsilon: float | None
    seed: int


def is_public(number: int) -> bool:
    """Return whether a picture of the training part is public: a fifth of them, by hash."""
    return hashlib.sha256(f"public {number}".encode()).digest()[0] < 256 / 5


def is_validation(number: int) -> bool:
    """Return whether a picture chooses the last model: a quarter of the public ones, where wanted."""
    return is_public(number) and hashlib.sha256(f"chooses {number}".encode()).digest()[0] < 256 / 4


PARTS: Mapping[str, Callable[[int], bool]] = {
    "rest": lambda number: not is_public(number),
    "fifth": is_public,
    "fifth-start": lambda number: is_public(number) and not is_validation(number),
    "fifth-validation": is_validation,
}


def part_of(folder: Path, name: str) -> Path:
    """Return a file with a part of the training part."""
    with np.load(SOURCE) as arrays:
        chosen = [PARTS[name](k) for k in range(len(arrays["train_images"]))]
        path = folder / f"{name}.npz"
        np.savez(
            path,
            train_images=arrays["train_images"][chosen],
            train_labels=arrays["train_labels"][chosen],
        )
    return path


def study_of(job: Job) -> Study:
    """Return the study of a job."""
    name = "pneumonia-plain" if job.epsilon is None else "pneumonia"
    content: dict[str, Any] = yaml.safe_load((ROOT / "studies" / f"{name}.yaml").read_text())
    content |= {"seed": job.seed, "evaluation": {"every": 1000}}
    if job.epsilon is not None:
        content["privacy"] |= {"epsilon": job.epsilon, "delta": DELTA, "accountants": ["rdp"]}
    if job.start != "untrained":
        content |= VALIDATED if job.start == "validated" else {"start": [PUBLIC]}
        if job.epsilon is not None:
            content |= {"rounds": 3, "training": FROM_PUBLIC}
        else:
            content |= {"rounds": 20, "training": {**content["training"], "lr": 0.03}}
    return Study.model_validate(content)


def row_of(job: Job, home: Path) -> dict[str, Any]:
    """Train one job and return its row."""
    quiet()
    study = study_of(job)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for shared in ("public", ".wardround/starts"):
            (folder / shared).parent.mkdir(exist_ok=True)
            (folder / shared).symlink_to(home / shared)
        rest = part_of(folder, "rest")
        wards = medmnist.make_hospitals(
            rest, folder / "wards", HOSPITALS, PICTURES["pneumonia"], skew=SKEW, seed=SEED
        )
        for ward in wards:
            policy = yaml.safe_load((ward / "site.yaml").read_text())
            policy |= {"evaluation_fraction": 1e-9, "budget": {"epsilon": 100.0, "delta": DELTA}}
            (ward / "site.yaml").write_text(yaml.safe_dump(policy))
        run = federate(study, wards, folder)
        first, last = (auroc(study, run.model(run.records()[k])) for k in (0, -1))
        members, rate = run.description.participants.values(), run.rate
    return {
        "start": job.start,
        "privacy": "none" if job.epsilon is None else "patient",
        "noise": "none" if job.epsilon is None else "local",
        "epsilon": job.epsilon,
        "seed": job.seed,
        "auroc": last,
        "start_auroc": first,
        "patients": sum(member.statement.declared_training for member in members),
        "rate": rate,
    }


def auroc(study: Study, params: Any) -> float:  # parameters
    """Return a model's AUC on the validation part."""
    network = network_for(study.network, study, CPU, params)
    return scored(study, network, validation_part(study, Cohort((), ())))["auroc"]


def jobs() -> Iterator[Job]:
    """Yield all jobs."""
    for seed in range(3):
        for start in STARTS:
            for epsilon in EPSILONS:
                yield Job(start, epsilon, seed)


def prepared(home: Path) -> None:
    """Write the public fifth and its parts, as folders of pictures with a list."""
    (home / ".wardround" / "starts").mkdir(parents=True)
    (home / "public").mkdir()
    for name in ("fifth", "fifth-start", "fifth-validation"):
        source = part_of(home, name)
        (ward,) = medmnist.make_hospitals(
            source, home / "made" / name, 1, PICTURES["pneumonia"], skew=SKEW, seed=SEED
        )
        ward.rename(home / "public" / name)


def make_start(job: Job, home: Path) -> None:
    """Make a job's first model, which the folder of all jobs then remembers."""
    quiet()
    first_model(study_of(job), Home(home))


def main() -> None:
    """Run all jobs on the machine's cores and print their rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--starts", nargs="*", default=STARTS, choices=STARTS)
    parser.add_argument("--epsilons", nargs="*", type=float, help="by default all, and without privacy")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        prepared(home)
        wanted = [job for job in jobs() if job.start in asked.starts]
        if asked.epsilons:
            wanted = [job for job in wanted if job.epsilon in asked.epsilons]
        starts = {(job.start, job.seed): job for job in wanted if job.start != "untrained"}
        rows = side_by_side(
            [partial(row_of, job, home) for job in wanted],
            asked.workers,
            first=[partial(make_start, job, home) for job in starts.values()],
        )
        print_rows(rows, as_json=asked.json)


if __name__ == "__main__":
    main()
