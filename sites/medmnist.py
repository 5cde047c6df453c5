"""Hospitals out of one of MedMNIST's sets for classification, unlike in their labels."""

import csv
import shutil
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sites.documents import ConfigError
from sites.phantoms import write_public_policy

NETWORKS = ("DenseNet121", "resnet10", "resnet18")
PNEUMONIA = {0: "normal", 1: "pneumonia"}
Pictures = NDArray[np.uint8]


def make_hospitals(
    source: Path, out: Path, hospitals: int, labels: dict[int, str], *, skew: float, seed: int
) -> list[Path]:
    """Return the folders of `hospitals` hospitals under `out`, made of the training part of a set.

    Every picture counts as a patient. Each class is dealt to the hospitals by a Dirichlet draw of
    concentration `skew` (Hsu et al. 2019): the smaller, the more the hospitals differ. A hospital that
    is there already stays as it is.

    Raises:
        ConfigError: `source` is no such set, or a hospital would have fewer than 20 patients.
    """
    images, classes = _training_part(source, labels)
    rng = np.random.default_rng(seed)
    dealt: list[list[int]] = [[] for _ in range(hospitals)]
    for value in labels:
        mine = rng.permutation(np.flatnonzero(classes == value))
        shares = rng.dirichlet(np.full(hospitals, skew))
        cuts = np.round(np.cumsum(shares)[:-1] * len(mine)).astype(int)
        for pictures, part in zip(dealt, np.split(mine, cuts), strict=True):
            pictures.extend(part.tolist())
    if min(map(len, dealt)) < 20:
        raise ConfigError(
            f"Expected at least 20 patients for each of {hospitals} hospitals; with skew {skew:g} and "
            f"seed {seed} one has {min(map(len, dealt))}. Take fewer hospitals, more skew or another "
            f"seed."
        )
    return [
        _make(out / f"hospital-{k}", images, classes, sorted(pictures), labels)
        for k, pictures in enumerate(dealt, start=1)
    ]


def _training_part(source: Path, labels: dict[int, str]) -> tuple[Pictures, NDArray[np.int64]]:
    try:
        with np.load(source, allow_pickle=False) as arrays:
            images, classes = arrays["train_images"], arrays["train_labels"]
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise ConfigError(
            f"{source}: expected an npz file of MedMNIST with train_images and train_labels, got "
            f"{error!r}."
        ) from None
    classes = classes.reshape(-1).astype(np.int64)
    if images.ndim != 3 or len(images) != len(classes) or not set(classes.tolist()) <= set(labels):
        raise ConfigError(
            f"{source}: expected grey pictures (N, rows, columns) with classes among {sorted(labels)}."
        )
    return images.astype(np.uint8), classes


def _make(
    ward: Path,
    images: Pictures,
    classes: NDArray[np.int64],
    pictures: list[int],
    labels: dict[int, str],
) -> Path:
    if ward.exists():
        return ward
    partial = ward.with_name(f".{ward.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "images").mkdir(parents=True)
    with (partial / "cases.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["patient", "image", "label"])
        for number in pictures:
            name = f"images/{number:05d}.png"
            Image.fromarray(images[number]).save(partial / name)
            writer.writerow([f"patient-{number:05d}", name, classes[number]])
    with (partial / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("value", "name"), *labels.items()])
    write_public_policy(partial, ward.name, len(pictures), NETWORKS, smallest=10)
    partial.rename(ward)
    return ward
