"""What federated training loses against the same patients in one place, without privacy.

    python benchmarks/plain.py --json > plain.json

`studies/hippocampus-plain.yaml` as it stands, on the hospitals of `wardround data hippocampus`. Both
trainings begin with the same model and are measured on the hospitals' evaluation patients, who never
train. In one place it is the same recipe over as many scans: steps of the same lot, four times as many
of them, as there are four hospitals.

Rows: `{"training", "seed", "dice", "anterior", "posterior", "patients", "seconds"}`.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rows import print_rows, side_by_side
from simulation import DATA, ROOT, Remembering, copied, federate, make_keys, quiet, scored, trained_alone

from flows.runs.paths import Home
from flows.starts.first_model import first_model
from sites.cohort import Cohort
from sites.datasets import decathlon
from sites.local_models import CPU, network_for
from sites.study import Study

HOSPITALS = 4


def study_of(seed: int) -> Study:
    """Return the study, without evaluations between, which cost the same for both."""
    content = yaml.safe_load((ROOT / "studies" / "hippocampus-plain.yaml").read_text())
    return Study.model_validate({**content, "seed": seed, "evaluation": {"every": 1000}})


def row_of(training: str, seed: int, home: Path) -> dict[str, Any]:
    """Train in one of the two ways and return the row."""
    quiet()
    study, started = study_of(seed), time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / ".wardround").mkdir()
        (folder / ".wardround" / "starts").symlink_to(home / ".wardround" / "starts")
        wards = copied(home / "wards", folder / "wards")
        cohorts = [Remembering.open(ward).cohort(study) for ward in wards]
        if training == "federated":
            run = federate(study, wards, folder)
            network = network_for(study.network, study, CPU, run.model(run.records()[-1]))
        else:
            network = trained_alone(_longer(study), cohorts, folder=folder)
        return {
            "training": training,
            "seed": seed,
            **_dice(study, network, cohorts),
            "patients": sum(len(cohort.training) for cohort in cohorts),
            "seconds": round(time.perf_counter() - started),
        }


def _longer(study: Study) -> Study:
    steps = study.training.steps * HOSPITALS
    training = study.training.model_copy(update={"steps": steps})
    return study.model_copy(update={"training": training})


def _dice(study: Study, network: Any, cohorts: Sequence[Cohort]) -> dict[str, float]:
    patients = [patient for cohort in cohorts for patient in cohort.evaluation]
    found = scored(study, network, patients)
    return {name.rpartition("/")[2]: found[name] for name in ("dice", "dice/anterior", "dice/posterior")}


def main() -> None:
    """Train in both ways at once and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    parser.add_argument("--workers", type=int, default=2, help="trainings at the same time")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        (home / ".wardround" / "starts").mkdir(parents=True)
        wards = decathlon.make_hospitals(DATA / "hippocampus", home / "wards", HOSPITALS, seed=0)
        make_keys(wards)
        for seed in asked.seeds:
            first_model(study_of(seed), Home(home))  # once, for both
        ways = [(way, seed) for seed in asked.seeds for way in ("federated", "pooled")]
        rows = side_by_side([partial(row_of, way, seed, home) for way, seed in ways], asked.workers)
        print_rows(rows, as_json=asked.json)


if __name__ == "__main__":
    main()
