"""Comparison of every strategy among unlike hospitals with training alone and on all patients together.

    python benchmarks/heterogeneity.py --json

Settings: hippocampus scans sorted by the range of their intensities, a quarter for each of four
hospitals; chest X-rays whose labels a Dirichlet draw of concentration 0.1 or 0.5 deals to four.
A hospital alone takes as many steps as it does in the federation; with all patients together a
step sees four times the patients. A score is the Dice of a hospital's own evaluation patients, or the
AUROC on the set's own validation part (under 0.1 a hospital has hardly a patient of one class). Where a
strategy leaves each hospital with a model of its own, that one is scored at that hospital.

`predictions`: four architectures, of which only predictions leave, on scans that no hospital has.
FedBN is left out on hippocampus, where MONAI's UNet has no norm layers that learn, and Krum, which
needs five hospitals (`benchmarks/robustness.py`).
"""

import argparse
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from simulation import (
    DATA,
    HIPPOCAMPUS,
    Remembering,
    copied,
    federate,
    make_keys,
    quiet,
    scored,
    trained_alone,
)

from flows.rounds.statements import order
from flows.runs.run import Run
from models.params import Params
from models.settings.images import PreprocessingConfig
from models.strategies import STRATEGIES
from sites.cohort import Cohort, Patient
from sites.datasets import decathlon, medmnist
from sites.datasets.public_sets import PICTURES
from sites.hospital import Hospital
from sites.imaging.images import read_image
from sites.imaging.intake import Scan
from sites.imaging.preprocessing import fixed_pair, prepare
from sites.imaging.profile import profile_of
from sites.imaging.reading import Reading
from sites.local_models import CPU, network_for, stored_params
from sites.study import Study

ALONE, TOGETHER, PREDICTIONS = "alone", "together", "predictions"
HOSPITALS = 4
ARGUMENTS: Mapping[str, Mapping[str, float]] = {
    "fed_avg_m": {"momentum": 0.5},
    "fed_adam": {"lr": 0.01},
    "fed_yogi": {"lr": 0.01},
    "fed_adagrad": {"lr": 0.03},
}
"""Strategies with other arguments than their defaults."""
TEACHERS: Sequence[Mapping[str, object]] = (
    {"name": "UNet", "channels": [8, 16, 32]},
    {"name": "UNet", "channels": [16, 32, 64], "num_res_units": 1},
    {"name": "DynUNet", "filters": [8, 16, 32]},
    {"name": "SegResNet", "init_filters": 8},
)
"""The networks of the hospitals where predictions leave."""
PNEUMONIA: dict[str, Any] = {
    **HIPPOCAMPUS,
    "name": "pneumonia",
    "task": {"kind": "classification", "dims": 2, "labels": {0: "normal", 1: "pneumonia"}},
    "network": {"name": "resnet10", "width": 16},
    "preprocessing": {"shape": [32, 32]},
    "training": {"steps": 10, "lr": 0.05, "lot": 32, "microbatch": 32, "schedule": "cosine"},
}
PUBLIC = 0.2
"""The share of the hippocampus set's patients who are in no hospital: the public images."""


@dataclass(frozen=True)
class Setting:
    """Hospitals, a study for them, and the patients on whom a model is evaluated."""

    name: str
    study: Mapping[str, Any]
    metric: str
    make: Callable[[Path], None]
    judges: Callable[[Study, Cohort], Sequence[Patient]]


def _hippocampus(folder: Path) -> None:
    """Make four hospitals of most patients, and a public set of the others' images."""
    source, kept = DATA / "hippocampus", folder / "source"
    scans_of: dict[str, list[str]] = {}
    for line in (source / "subjects.csv").read_text().splitlines()[1:]:
        case, subject, *_ = line.split(",")
        scans_of.setdefault(subject, []).append(case)
    drawn = np.random.default_rng(0).permutation(sorted(scans_of))
    public = set(drawn[: round(PUBLIC * len(drawn))].tolist())
    out = {case for subject in public for case in scans_of[subject]}
    described = json.loads((source / "dataset.json").read_text())
    described["training"] = [
        pair
        for pair in described["training"]
        if Path(pair["image"]).name.removesuffix(".nii.gz") not in out
    ]
    kept.mkdir(parents=True)
    (kept / "dataset.json").write_text(json.dumps(described))
    shutil.copy(source / "subjects.csv", kept)
    for part in ("imagesTr", "labelsTr"):
        shutil.copytree(source / part, kept / part)
    for ward in decathlon.make_hospitals(kept, folder / "wards", HOSPITALS, 0, skew="intensity"):
        policy = yaml.safe_load((ward / "site.yaml").read_text())
        policy |= {"networks": ["UNet", "SegResNet", "DynUNet"], "metrics": "withheld"}
        (ward / "site.yaml").write_text(yaml.safe_dump(policy))
    config = PreprocessingConfig(shape=(32, 48, 32))
    images = []
    for case in sorted(out):
        image = read_image(source, f"imagesTr/{case}.nii.gz")
        scan = Scan(image.voxels[np.newaxis], np.zeros((), np.int64), image.spacing_mm)
        images.append(fixed_pair(prepare(scan, config), config)[0][0].numpy())
    np.savez_compressed(folder / "public.npz", images=np.stack(images))


SEEDS = {0.1: 3, 0.5: 0}
"""Of the Dirichlet draws: the first after which every hospital has enough patients to take part."""


def _pneumonia(concentration: float, folder: Path) -> None:
    source = DATA / "pneumoniamnist" / "pneumoniamnist_trainval.npz"
    medmnist.make_hospitals(
        source,
        folder / "wards",
        HOSPITALS,
        PICTURES["pneumonia"],
        skew=concentration,
        seed=SEEDS[concentration],
    )


def _own(_: Study, cohort: Cohort) -> Sequence[Patient]:
    return cohort.evaluation


def validation_part(study: Study, _: Cohort) -> Sequence[Patient]:
    """Return the patients of the set's own validation part."""
    arrays = np.load(DATA / "pneumoniamnist" / "pneumoniamnist_trainval.npz")

    def patient(image: NDArray[np.uint8], label: int) -> Patient:
        scan = Scan(image[np.newaxis].astype(np.float32), np.asarray(label), (1.0, 1.0))
        ready = prepare(scan, study.preprocessing)
        return Patient("of the validation part", (Reading(profile_of(scan), (), lambda: ready),))

    return list(map(patient, arrays["val_images"], arrays["val_labels"].ravel().tolist()))


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("hippocampus", HIPPOCAMPUS, "dice", _hippocampus, _own),
        Setting("pneumonia-0.5", PNEUMONIA, "auroc", partial(_pneumonia, 0.5), validation_part),
        Setting("pneumonia-0.1", PNEUMONIA, "auroc", partial(_pneumonia, 0.1), validation_part),
    )
}


def measure(name: str, what: str, folder: Path, rounds: int) -> dict[str, float]:
    """Return the score at each hospital of a setting after one way of training."""
    quiet()
    setting = SETTINGS[name]
    changes: dict[str, Any] = {"rounds": rounds}
    if what in STRATEGIES:
        changes["strategy"] = {"name": what, **ARGUMENTS.get(what, {})}
    with tempfile.TemporaryDirectory() as scratch:
        wards = copied(folder / name / "wards", Path(scratch) / "wards")
        if what == PREDICTIONS:
            changes |= _with_predictions(folder / name / "public.npz", wards, Path(scratch))
        study = Study.model_validate({**setting.study, **changes})
        hospitals = [Remembering.open(ward) for ward in wards]
        cohorts = [hospital.cohort(study) for hospital in hospitals]
        judges = [setting.judges(study, cohort) for cohort in cohorts]
        if what == ALONE:
            networks = [trained_alone(study, [cohort]) for cohort in cohorts]
        elif what == TOGETHER:
            networks = [trained_alone(study, cohorts, lots=len(cohorts))] * len(cohorts)
        else:
            run = federate(study, wards, Path(scratch))
            networks = [_model_at(run, hospital) for hospital in hospitals]
        return {
            hospital.name: scored(study, network, patients)[setting.metric]
            for hospital, network, patients in zip(hospitals, networks, judges, strict=True)
        }


def _model_at(run: Run, hospital: Hospital) -> torch.nn.Module:
    """Return a hospital's final model: its personal one, or the global one with its own layers."""
    last = order(run, run.study.rounds, "evaluate", hospital.name)
    personal = stored_params(hospital, "personal", last, run.study.rounds)
    local: Params = stored_params(hospital, "local", last, run.study.rounds) or {}
    common = run.model(run.records()[-1])
    return network_for(run.study.network, run.study, CPU, personal or {**common, **local})


def _with_predictions(public: Path, wards: Sequence[Path], home: Path) -> dict[str, Any]:
    """Give each hospital an architecture of its own, and every hospital the public set."""
    for ward, teacher in zip(wards, TEACHERS, strict=True):
        policy = yaml.safe_load((ward / "site.yaml").read_text())
        (ward / "site.yaml").unlink()  # it may be another's by a hard link
        (ward / "site.yaml").write_text(yaml.safe_dump({**policy, "teacher": dict(teacher)}))
    for place in (home, *wards):
        (place / "public").mkdir()
        shutil.copy(public, place / "public")
    with np.load(public) as arrays:
        count = len(arrays["images"])
    sha256 = hashlib.sha256(public.read_bytes()).hexdigest()
    distillation = {"transfer": {"public": sha256}, "steps": 25, "images": count, "batch": 6}
    return {"export": "predictions", "distillation": distillation}


def _fewest(what: str) -> int:
    return STRATEGIES[what](**ARGUMENTS.get(what, {})).fewest


def judged(scores: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Return the strategy of a setting that is best, and compare it with training alone and together."""

    def gains(what: str) -> list[float]:
        return [scores[what][site] - scores[ALONE][site] for site in scores[ALONE]]

    def mean(what: str) -> float:
        return sum(scores[what].values()) / len(scores[what])

    named = [what for what in scores if what in STRATEGIES]
    best = max(named, key=lambda what: (min(gains(what)) > 0, mean(what)))
    found = {
        "best": best,
        "beats_alone_everywhere": min(gains(best)) > 0,
        "points_below_together": round(100 * (mean(TOGETHER) - mean(best)), 2),
    }
    if PREDICTIONS in scores:
        found["predictions_points_below_together"] = round(100 * (mean(TOGETHER) - mean(PREDICTIONS)), 2)
    return found


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory() as scratch,
        ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool,
    ):
        folder, waiting = Path(scratch), {}
        for name in arguments.settings:
            SETTINGS[name].make(folder / name)
            make_keys(list((folder / name / "wards").iterdir()))
            ways = [ALONE, TOGETHER, *arguments.strategies]
            if name == "hippocampus":
                ways = [PREDICTIONS, *(what for what in ways if what != "fed_bn")]
            ways = [what for what in ways if what not in STRATEGIES or _fewest(what) <= HOSPITALS]
            for what in ways:
                job = pool.submit(measure, name, what, folder, arguments.rounds)
                waiting[job] = (name, what)
        try:
            for job in as_completed(waiting):
                name, what = waiting[job]
                results.setdefault(name, {})[what] = {s: round(v, 4) for s, v in job.result().items()}
                if not arguments.json:
                    print(name, what, results[name][what], flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    told = {name: {"scores": found, **judged(found)} for name, found in results.items()}
    print(json.dumps(told) if arguments.json else json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
