"""Rehearsal: a copy of a hospital with made-up patients, to try a round before the first real one."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.settings.tasks import PLAIN, RGB
from sites.datasets.made_up import made_up_scan
from sites.datasets.phantoms import write_policy
from sites.hospital import Hospital
from sites.listing.cases import NOTHING
from sites.listing.tables import CHANNEL, LabelColumn
from sites.study import Study

PATIENTS = 24
SEED = 20


def understudy(hospital: Hospital, study: Study, folder: Path) -> Hospital:
    """Return a hospital in `folder` with this hospital's policy, and made-up patients that fit a study.

    The minimum numbers of patients are set to 1, because so few patients are divided by chance. The copy
    needs no approval. It shares nothing with the real hospital except its public sets, which it reads.
    """
    rng = np.random.default_rng(SEED)
    images, labels, listed = [], [], []
    for _ in range(PATIENTS):
        image, label, classes = _made_up(study, rng)
        images.append(image)
        labels.append(label)
        listed.append(classes)
    folder.mkdir(parents=True)
    channels = _arrays(study, np.stack(images))
    np.savez(folder / "scans.npz", labels=np.stack(labels), **channels)
    with (folder / "cases.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["patient", *channels, _label_column(study)])
        for i, classes in enumerate(listed):
            label = classes or f"scans.npz#labels/{i}"
            writer.writerow([f"made-up-{i:02d}", *(f"scans.npz#{c}/{i}" for c in channels), label])
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("value", "name"), *study.task.labels.items()])
    write_policy(folder, _policy(hospital))
    if hospital.public.is_dir():
        (folder / "public").symlink_to(hospital.public.resolve())
    return Hospital.open(folder)


def _label_column(study: Study) -> LabelColumn:
    task = study.task
    if task.kind == "regression":
        return "value"
    return "labels" if task.kind == "classification" and task.multi_label else "label"


def _arrays(study: Study, images: NDArray[np.float32]) -> dict[str, Any]:
    """Return images `(N, C, *shape)` by column of `cases.csv`: one for each channel, or in colour."""
    task = study.task
    if task.channels == RGB:
        low, high = images.min(), images.max()
        colours = np.round(255 * (images - low) / (high - low)).astype(np.uint8)
        return {"image": np.moveaxis(colours, 1, -1)}
    if task.channels == PLAIN:
        return {"image": images[:, 0]}
    return {f"{CHANNEL}{name}": images[:, k] for k, name in enumerate(task.channel_names)}


def _made_up(study: Study, rng: np.random.Generator) -> tuple[Any, Any, str]:
    """Return an image, its label image, and its classes as `cases.csv` lists them.

    The classes are empty for segmentation; the label image is blank for classification.
    """
    image, target = made_up_scan(study, rng)
    task = study.task
    if task.kind == "segmentation":
        return image, target.astype(np.uint8), ""
    if task.kind == "regression":
        return image, np.zeros(()), f"{float(target):.6g}"
    known = sorted(task.labels)
    if not task.multi_label:
        return image, np.zeros(()), str(known[int(target)])
    return image, np.zeros(()), ";".join(str(known[i]) for i in np.flatnonzero(target)) or NOTHING


def _policy(hospital: Hospital) -> Mapping[str, Any]:
    lifted: dict[str, Any] = {
        "data": ".",
        "channels": {},
        "label_map": {},
        "min_patients": 1,
        "min_evaluation_patients": 1,
        "approve": {"join": "auto", "export": "auto"},
        "hours": [],
        "coordinator": None,
        "phantom": True,
    }
    return {**hospital.policy.model_dump(mode="json"), **lifted}
