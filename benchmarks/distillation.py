"""Dice that a student loses to its private teacher, on real scans: `benchmarks/distillation.py --json`.

A hospital with three quarters of the hippocampus set's patients trains a teacher at epsilon 8, delta
1e-4 for each patient, and distils it on synthetic images, or on scans of a public set (half of the other
patients'). Dice is that of the remaining patients, on whom nothing was trained. Networks start from the
synthetic prior.

For each pair: points of Dice lost, bytes that would leave (the student's weights, the teacher's
predictions), and the AUC of a threshold on the loss that finds the training patients (0.5 is chance).
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from monai.metrics.rocauc import compute_roc_auc
from pydantic import TypeAdapter
from simulation import DATA, HIPPOCAMPUS, Remembering, quiet, scored
from torch import Tensor, nn

from models import params as P
from models.checkpoints import to_bytes
from models.networks.choice import NetworkConfig
from models.objectives import build_task
from models.pretraining import from_pool, pretrain, tube_maker
from models.settings.distillation import DistillationConfig
from models.synthesis import SynthesisConfig
from privacy import predictions
from privacy.distillation import answers, distil
from privacy.mechanisms import LocalPrivacy, mechanism_for
from privacy.noise.source import NoiseSource
from sites.cohort import Patient
from sites.datasets import decathlon
from sites.imaging.preprocessing import fixed_pair
from sites.listing.pseudonyms import pseudonym_key
from sites.local_models import CPU
from sites.progress import ignore_progress
from sites.study import Study
from sites.training.dp_sgd import train_privately
from sites.training.examples import prepare
from sites.transfer_set import transfer_images

SYNTHESIS: dict[str, Any] = {
    "along": [0, -1, 0.4], "half_length": [0.6, 0.9], "radius": [0.22, 0.42], "t1_share": 0.7,
}  # fmt: skip
STUDY: dict[str, Any] = {
    **HIPPOCAMPUS,
    "name": "distillation",
    "network": {"name": "UNet", "channels": [16, 32, 64]},
    "rounds": 1,
    "sites": {"min": 1},
    "synthesis": SYNTHESIS,
    "training": {"steps": 20, "lr": 0.1, "lot": "all"},
    "privacy": {
        "mode": "local", "unit": "patient", "epsilon": 8, "delta": 1e-4,
        "clip": {"kind": "normalised", "norm": 1.0},
    },
    "distillation": {"transfer": "synthetic", "steps": 1000, "images": 512},
    "export": "student",
}  # fmt: skip
PRIOR_STEPS, PRIOR_IMAGES, PRIOR_RATE = 600, 512, 3e-3
NETWORKS: Mapping[str, dict[str, Any]] = {
    "UNet-16": {"name": "UNet", "channels": [16, 32, 64]},
    "UNet-8": {"name": "UNet", "channels": [8, 16, 32]},
    "SegResNet": {"name": "SegResNet", "init_filters": 8},
}
PAIRS: Sequence[tuple[str, str, str]] = (
    ("equal architecture", "UNet-16", "UNet-16"),
    ("half width", "UNet-16", "UNet-8"),
    ("another architecture", "SegResNet", "UNet-16"),
)


@dataclass(frozen=True)
class People:
    """Patients in three groups: for training, with public scans, and for evaluation."""

    training: Sequence[Patient]
    public: Sequence[Patient]
    judges: Sequence[Patient]


def people_of(study: Study, folder: Path) -> People:
    """Return the hippocampus set's patients in three parts."""
    (ward,) = decathlon.make_hospitals(DATA / "hippocampus", folder, 1, seed=0)
    pseudonym_key(ward / "state", lambda: bytes(32))  # public patients: the same parts every time
    cohort = Remembering.open(ward).cohort(study)
    return People(cohort.training, cohort.evaluation[::2], cohort.evaluation[1::2])


def first(study: Study, name: str) -> nn.Module:
    """Return a network that was trained on the synthetic prior."""
    torch.manual_seed(0)
    network: nn.Module = config_of(name).build(3, 3)
    shape, labels = study.preprocessing.shape, len(study.task.labels)
    loss, synthesis = build_task(study.task).loss, SynthesisConfig.model_validate(SYNTHESIS)
    draw, _ = from_pool(tube_maker(shape, labels, synthesis), PRIOR_IMAGES, 8, 0)
    pretrain(network, loss, draw, PRIOR_STEPS, PRIOR_RATE)
    return network


def config_of(name: str) -> NetworkConfig:
    """Return the configuration of one of `NETWORKS`."""
    adapter: TypeAdapter[NetworkConfig] = TypeAdapter(NetworkConfig)
    return adapter.validate_python(NETWORKS[name])


def taught(study: Study, start: nn.Module, patients: Sequence[Patient]) -> nn.Module:
    """Return a network trained at the study's epsilon from `start`."""
    network, training = deepcopy(start), study.training
    assert isinstance(study.privacy, LocalPrivacy)
    mechanism = mechanism_for(
        study.privacy, rounds=1, steps=training.steps, lot=None, declared=len(patients)
    )
    examples = prepare(patients, study.preprocessing, CPU, 0)
    source, task = NoiseSource.from_system(), build_task(study.task)
    train_privately(network, task, examples, training, mechanism, source, None, ignore_progress)
    return network


@torch.no_grad()
def membership_auc(study: Study, network: nn.Module, people: People) -> float:
    """Return the AUC of a threshold on patients' mean loss that finds the training patients.

    Source: Yeom et al. 2018, Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting,
    https://arxiv.org/abs/1709.01604.
    """
    loss = build_task(study.task).loss

    def of(patient: Patient) -> float:
        pairs = [fixed_pair(scan.load(), study.preprocessing) for scan in patient.scans]
        images, targets = (torch.stack(part) for part in zip(*pairs, strict=True))
        return float(loss(network(images), targets).mean())

    outside = (*people.public, *people.judges)
    losses = [of(patient) for patient in (*people.training, *outside)]
    trained = [1.0] * len(people.training) + [0.0] * len(outside)
    return float(compute_roc_auc(-torch.tensor(losses), torch.tensor(trained)))


def transfer_sets(study: Study, config: DistillationConfig, people: People) -> dict[str, Tensor]:
    """Return the images on which students learn, by kind: `synthetic` and `public`."""
    scans = [scan.load() for patient in people.public for scan in patient.scans]
    return {
        "synthetic": transfer_images(study, config, Path("public")),
        "public": torch.stack([fixed_pair(scan, study.preprocessing)[0] for scan in scans]),
    }


def measure(pair: tuple[str, str, str]) -> list[dict[str, Any]]:
    """Return a row for each transfer set."""
    quiet()
    what, teaches, learns = pair
    study = Study.model_validate(STUDY)
    config: DistillationConfig = TypeAdapter(DistillationConfig).validate_python(STUDY["distillation"])
    with tempfile.TemporaryDirectory() as scratch:
        people = people_of(study, Path(scratch))
    start = first(study, learns)
    teacher = taught(study, start if teaches == learns else first(study, teaches), people.training)
    best = scored(_as(study, teaches), teacher, people.judges)["dice"]
    rows = []
    for kind, images in transfer_sets(study, config, people).items():
        student = deepcopy(start)
        distil(teacher, student, images, config, torch.Generator().manual_seed(0))
        found = scored(_as(study, learns), student, people.judges)["dice"]
        change = P.subtract(P.of(student), P.of(start))
        said = predictions.to_tensors(answers(teacher, images, config), config.temperature)
        rows.append(
            {
                "pair": what, "teacher": teaches, "student": learns, "transfer": kind,
                "images": len(images), "dice_teacher": round(best, 4), "dice_student": round(found, 4),
                "points_lost": round(100 * (best - found), 2),
                "bytes_student": len(to_bytes(change)), "bytes_predictions": len(to_bytes(said)),
                "auc_teacher": round(membership_auc(study, teacher, people), 3),
                "auc_student": round(membership_auc(study, student, people), 3),
            }
        )  # fmt: skip
    return rows


def _as(study: Study, name: str) -> Study:
    return study.model_copy(update={"network": config_of(name)})


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        rows = [row for found in pool.map(measure, PAIRS) for row in found]

    told = {"rows": rows}
    print(json.dumps(told) if arguments.json else json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
