"""Studies of several channels, from a hospital's files to a prediction."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from consortium import Consortium
from contrasts import make_ward, patient

from flows.reporting.report import report
from flows.runs.paths import Home
from flows.runs.run import runs_of
from models import params as P
from sites.study import Study

TASK = {
    "kind": "segmentation", "dims": 3, "labels": {1: "head", 2: "tail"}, "channels": ["t1", "flair"],
    "missing_channel": "zeros",
}  # fmt: skip
BOTH = {"t1": "T1w", "flair": "FLAIR"}
NAMES = {"channels": {"t1": "T1w", "flair": "FLAIR"}}


def wards_of(folder: Path, patients: int) -> list[Path]:
    """Return three hospitals: the last has no FLAIR."""
    return [
        make_ward(folder / "north", {"t1": "t1", "flair": "flair"}, patients, 1),
        make_ward(folder / "south", BOTH, patients, 2, **NAMES),
        make_ward(folder / "west", {"t1": "T1w"}, patients, 3, **NAMES),
    ]


def test_hospitals_with_all_and_with_one_of_two_channels_train_one_model(
    tmp_path: Path, small_study
) -> None:
    privacy = {**small_study["privacy"], "mode": "shared_noise", "accountants": ["rdp"], "sum": {}}
    keys = {
        "task": TASK, "privacy": privacy, "distillation": None, "export": "gradient_sum",
        "training": {"steps": 1, "lr": 0.1, "lot": "all", "momentum": 0},
        "sites": {"min": 3, "deadline_s": 120},
        "preprocessing": {
            "shape": [16, 16, 16], "augmentation": {"flip": [0], "noise": 0.1, "drop_channel": 0.2},
        },
    }  # fmt: skip
    made = Consortium.begin(
        tmp_path, Study.model_validate({**small_study, **keys}), wards_of(tmp_path / "wards", 16)
    )
    accepted = {
        site: made.run.description.member(site, 1).statement.lacks for site in ("north", "south", "west")
    }
    assert accepted == {"north": (), "south": (), "west": ("flair",)}
    made.round(1)
    first = next(name for name, weight in made.models[0].items() if weight.dim() == 5)
    assert made.models[1][first].shape[1] == 2
    assert P.norm(P.subtract(made.models[1], made.models[0])) > 0


@pytest.mark.slow
def test_two_contrasts_are_trained_on_scored_and_predicted_and_a_hospital_lacks_one(
    tmp_path: Path, small_study
) -> None:
    def wardround(*arguments: object) -> str:
        command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    wards_of(tmp_path / "wards", 40)
    study = {
        **small_study, "name": "contrasts", "task": TASK, "privacy": {"mode": "none"},
        "export": "weights", "rounds": 8, "sites": {"min": 3, "deadline_s": 300},
        "network": {"name": "UNet", "channels": [8, 16, 32], "num_res_units": 1},
        "preprocessing": {
            "shape": [24, 24, 24],
            "augmentation": {"flip": [0, 1, 2], "intensity": 0.2, "drop_channel": 0.25},
        },
        "training": {"steps": 25, "lr": 0.003, "lot": 8, "optimizer": "adamw", "schedule": "cosine"},
        "evaluation": {"every": 8},
    }  # fmt: skip
    (tmp_path / "contrasts.yaml").write_text(yaml.safe_dump(study | {"distillation": None}))
    wardround("run", "contrasts.yaml")
    wardround("verify")
    (run,) = runs_of(Home(tmp_path))
    last = run.records()[-1]
    dice = {site: scores.statement.metrics["dice"] for site, scores in last.scores.items()}
    assert min(dice["north"], dice["south"]) >= 0.8, dice
    assert dice["west"] >= 0.55, dice  # of its two labels T1 hardly shows one
    assert "west has no channel flair" in report(run).decode()
    images, label = patient(np.random.default_rng(9))
    for name, image in images.items():
        nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / f"{name}.nii.gz")
    wardround("predict", run.name, "flair=flair.nii.gz", "t1=t1.nii.gz", "-o", "mask.nii.gz")
    mask = np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj)
    assert 2 * ((mask > 0) & (label > 0)).sum() / ((mask > 0).sum() + (label > 0).sum()) > 0.8
    wardround("predict", run.name, "t1=t1.nii.gz", "-o", "alone.nii.gz")
    wardround("export-bundle", run.name, "bundle")
    metadata = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text())
    inputs = metadata["network_data_format"]["inputs"]["image"]
    assert inputs["channel_def"] == {"0": "t1", "1": "flair"} and inputs["num_channels"] == 2
    subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json",
         "--bundle_root", ".", "--image", "['../t1.nii.gz', '../flair.nii.gz']"],
        cwd=tmp_path / "bundle", check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    (found,) = (tmp_path / "bundle" / "output").glob("*.nii.gz")
    assert (np.asarray(nib.load(found).dataobj).squeeze() == mask).mean() > 0.999
