"""Hospitals made from one of MedMNIST's sets for classification, with different shares of the labels."""

import csv
import shutil
from pathlib import Path
from zipfile import BadZipFile

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sites.datasets.phantoms import write_public_policy
from sites.datasets.public_sets import PictureSet
from sites.listing.cases import NOTHING
from sites.yaml_files import ConfigError

NETWORKS = ("DenseNet121", "resnet10", "resnet18", "EfficientNetBN", "ViT")
Pictures = NDArray[np.uint8]


def make_hospitals(
    source: Path, out: Path, hospitals: int, pictures: PictureSet, *, skew: float, seed: int
) -> list[Path]:
    """Return the folders of `hospitals` hospitals under `out`, made from the training part of a set.

    Every picture counts as a patient. Each class is divided among the hospitals by a Dirichlet draw of
    concentration `skew`: the smaller, the more the hospitals differ. Where several labels may hold, the
    first one counts. An existing hospital folder stays as it is.

    Source: Hsu et al. 2019, Measuring the Effects of Non-Identical Data Distribution for Federated
    Visual Classification, https://arxiv.org/abs/1909.06335.

    Raises:
        ConfigError: `source` is not such a set, or a hospital would have fewer than 20 patients.
    """
    images, listed = _training_part(source, pictures)
    first = np.array([text.partition(";")[0] for text in listed])
    rng = np.random.default_rng(seed)
    dealt: list[list[int]] = [[] for _ in range(hospitals)]
    for value in (*map(str, pictures.labels), NOTHING):
        mine = rng.permutation(np.flatnonzero(first == value))
        shares = rng.dirichlet(np.full(hospitals, skew))
        cuts = np.round(np.cumsum(shares)[:-1] * len(mine)).astype(int)
        for numbers, part in zip(dealt, np.split(mine, cuts), strict=True):
            numbers.extend(part.tolist())
    if min(map(len, dealt)) < 20:
        raise ConfigError(
            f"Expected at least 20 patients for each of {hospitals} hospitals; with skew {skew:g} and "
            f"seed {seed} one has {min(map(len, dealt))}. Take fewer hospitals, a larger skew or "
            f"another seed."
        )
    return [
        _make(out / f"hospital-{k}", images, listed, sorted(numbers), pictures)
        for k, numbers in enumerate(dealt, start=1)
    ]


def _training_part(source: Path, pictures: PictureSet) -> tuple[Pictures, list[str]]:
    """Return the images `(N, *spatial)`, colours last, and each image's labels for `cases.csv`."""
    try:
        with np.load(source, allow_pickle=False) as arrays:
            images, found = arrays["train_images"], arrays["train_labels"]
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise ConfigError(
            f"{source}: expected an npz file of MedMNIST with train_images and train_labels, got "
            f"{error!r}."
        ) from None
    width = len(pictures.labels) if pictures.several else 1
    found = found.reshape(len(images), -1).astype(np.int64)
    known = {0, 1} if pictures.several else set(pictures.labels)
    is_coloured = images.ndim == 4 and images.shape[-1] == 3
    if (
        images.ndim not in (3, 4)
        or is_coloured != pictures.in_colour
        or found.shape[1] != width
        or (not set(found.ravel().tolist()) <= known)
    ):
        shape = "pictures in colour (N, rows, columns, 3)"
        if not pictures.in_colour:
            shape = "grey pictures (N, rows, columns) or volumes"
        raise ConfigError(
            f"{source}: expected {shape}, and {width} values per picture among {sorted(known)}."
        )
    if not pictures.several:
        return images.astype(np.uint8), [str(value) for value in found[:, 0].tolist()]
    held = [";".join(map(str, np.flatnonzero(row))) for row in found]
    return images.astype(np.uint8), [text or NOTHING for text in held]


def _make(ward: Path, images: Pictures, listed: list[str], numbers: list[int], of: PictureSet) -> Path:
    if ward.exists():
        return ward
    partial = ward.with_name(f".{ward.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "images").mkdir(parents=True)
    with (partial / "cases.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["patient", "image", "labels" if of.several else "label"])
        for number in numbers:
            name = _save(images[number], partial, f"images/{number:05d}")
            writer.writerow([f"patient-{number:05d}", name, listed[number]])
    with (partial / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("value", "name"), *of.labels.items()])
    write_public_policy(partial, ward.name, len(numbers), NETWORKS, smallest=10)
    partial.rename(ward)
    return ward


def _save(image: Pictures, folder: Path, name: str) -> str:
    if image.ndim == 2 or image.shape[-1] == 3:
        Image.fromarray(image).save(folder / f"{name}.png")
        return f"{name}.png"
    nib.save(nib.Nifti1Image(image, np.eye(4)), folder / f"{name}.nii.gz")
    return f"{name}.nii.gz"
