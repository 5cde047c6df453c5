"""A number for each scan: from a list with values to a prediction."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from PIL import Image

from flows.runs.paths import Home
from flows.runs.run import runs_of
from models.settings.images import PreprocessingConfig
from models.settings.tasks import RegressionConfig
from sites.admission.admission import check_list
from sites.hospital import Hospital
from sites.imaging.cache import ScanCache
from sites.imaging.intake import BrokenCase, read_case
from sites.listing.cases import CaseFiles
from sites.listing.listing import read_listing
from sites.policy.policy import Refused
from sites.study import Study

TASK = {
    "kind": "regression", "dims": 2, "labels": {0: "radius"}, "low": 2, "high": 12, "tolerance": 1,
}  # fmt: skip
RADIUS = RegressionConfig.model_validate(TASK)


def disc(radius: float, rng: np.random.Generator) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(32)] * 2)) - rng.uniform(14, 17, (2, 1, 1))
    inside = np.square(grid).sum(0) < radius**2
    return (60 + 120 * inside + rng.normal(0, 8, (32, 32))).clip(0, 255).astype(np.uint8)


def make_ward(ward: Path, patients: int, seed: int) -> Path:
    """Make a hospital that lists pictures of discs with their radius."""
    rng = np.random.default_rng(seed)
    (ward / "images").mkdir(parents=True)
    with (ward / "cases.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["patient", "image", "value"])
        for number, radius in enumerate(rng.uniform(3, 11, patients)):
            Image.fromarray(disc(radius, rng)).save(ward / "images" / f"{number}.png")
            writer.writerow([f"p{number}", f"images/{number}.png", f"{radius:.3f}"])
    (ward / "labels.csv").write_text("value,name\n0,Radius\n")
    policy = {
        "name": ward.name, "declared_patients": patients, "min_patients": 3,
        "min_evaluation_patients": 2, "budget": {"epsilon": 50.0, "delta": 1e-3},
        "networks": ["resnet10"], "metrics": "exact", "on_broken_case": "skip", "phantom": True,
        "plain_studies": "allow",
    }  # fmt: skip
    (ward / "site.yaml").write_text(yaml.safe_dump(policy))
    return ward


def study_of(small_study: dict[str, object], **changes: object) -> dict[str, object]:
    return {
        **small_study, "name": "radius", "task": TASK, "network": {"name": "resnet10", "width": 8},
        "preprocessing": {
            "shape": [32, 32], "intensity": {"kind": "window", "centre": 128, "width": 256},
        },
        "distillation": None, "export": "weights", **changes,
    }  # fmt: skip


def test_a_list_with_values_fits_a_study_of_that_number_alone(tmp_path: Path, small_study) -> None:
    hospital = Hospital.open(make_ward(tmp_path / "north", 12, 0))
    study = Study.model_validate(study_of(small_study))
    check_list(hospital, study)
    other = {**TASK, "labels": {0: "age"}}
    with pytest.raises(Refused, match="label 0 is radius in the hospital's list and age in the study"):
        check_list(hospital, Study.model_validate(study_of(small_study, task=other)))
    classes = {"kind": "classification", "dims": 2, "labels": {0: "a", 1: "b"}}
    with pytest.raises(Refused, match="the study is a classification, the hospital's list has values"):
        check_list(hospital, Study.model_validate(study_of(small_study, task=classes)))


def test_a_value_is_read_and_one_outside_the_range_is_named(tmp_path: Path) -> None:
    ward = make_ward(tmp_path / "north", 4, 0)
    rows = (ward / "cases.csv").read_text().splitlines()
    wrong = [f"{rows[2].rpartition(',')[0]},12.5", f"{rows[3].rpartition(',')[0]},large"]
    (ward / "cases.csv").write_text("\n".join([*rows[:2], *wrong]))
    first, *others = read_listing(ward).cases
    scan, _ = read_case(ward, first, RADIUS)
    assert float(scan.target) == pytest.approx(float(rows[1].rpartition(",")[2]))
    for case in others:
        with pytest.raises(BrokenCase, match="a number from 2 to 12, the study's range"):
            read_case(ward, case, RADIUS)


def test_the_cache_keeps_the_number_as_it_is(tmp_path: Path) -> None:
    image = disc(5.0, np.random.default_rng(0)).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / "a.nii")
    cache = ScanCache(tmp_path / "cache", 2**30)
    read = cache.reader(tmp_path, RADIUS, PreprocessingConfig(shape=(32, 32)))
    for _ in range(2):
        reading = read(CaseFiles("a", "p", "a.nii", "4.625"))
        assert float(reading.load().target) == 4.625 and reading.profile.value == 4.625
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"distillation": {"transfer": "synthetic", "steps": 1}, "export": "student"},
        {"training": {"steps": 1, "lr": 0.1, "lot": "all", "membership": {"strength": 1}},
         "privacy": {"mode": "none"}},
    ],
)  # fmt: skip
def test_what_works_on_classes_alone_is_refused(small_study, changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected no distillation and no training.membership"):
        Study.model_validate(study_of(small_study, **changes))


@pytest.mark.slow
def test_hospitals_learn_a_number_under_privacy_and_predict_it(tmp_path: Path, small_study) -> None:
    def wardround(*arguments: object) -> str:
        command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    for number, name in enumerate(("north", "south")):
        make_ward(tmp_path / "wards" / name, 120, number)
    privacy = {**small_study["privacy"], "epsilon": 20}
    study = study_of(
        small_study, rounds=6, privacy=privacy, evaluation={"every": 6},
        training={"steps": 12, "lr": 0.05, "lot": "all", "momentum": 0.9, "schedule": "cosine"},
        promotion={"metric": "within_tolerance", "mean": 0.1},
    )  # fmt: skip
    (tmp_path / "radius.yaml").write_text(yaml.safe_dump(study))
    wardround("run", "radius.yaml")
    wardround("verify")
    (run,) = runs_of(Home(tmp_path))
    first, last = run.records()[0], run.records()[-1]
    assert last.quality["mae"] < 0.6 * first.quality["mae"], (first.quality, last.quality)
    Image.fromarray(disc(9.0, np.random.default_rng(5))).save(tmp_path / "disc.png")
    assert json.loads(wardround("predict", run.name, "disc.png"))["radius"] == pytest.approx(9, abs=3)
