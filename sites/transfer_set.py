"""Transfer set: the images on which a student learns from its teacher, the same at every hospital.

They show no patient. They are synthetic, drawn from the study's seed, or come from a public set that the
study names by its sha256. Each hospital decides what it calls public: the set is used only if the
hospital's folder `public/` holds a file with that content.
"""

from contextlib import suppress
from functools import lru_cache
from hashlib import file_digest
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.settings.distillation import DistillationConfig, PublicImages
from models.settings.images import PreprocessingConfig
from models.settings.tasks import RGB, TaskConfig
from models.synthesis import Floats, SynthesisConfig, labelled_image, texture
from sites.imaging.images import Unreadable, read_stack
from sites.imaging.intake import Scan
from sites.imaging.preprocessing import Unfit, fixed_pair, prepare
from sites.imaging.profile import content_of
from sites.study import Study
from sites.yaml_files import ConfigError


class NoTransferImages(ConfigError):
    """There are no images for distillation; the message states what is missing."""


def transfer_images(study: Study, config: DistillationConfig, folder: Path) -> Tensor:
    """Return the images of a study's distillation, `(N, C, *shape)`, preprocessed for its networks.

    Raises:
        NoTransferImages: `folder` has no file with the content that the study names, or that file
            holds no images that the study can use.
    """
    if isinstance(config.transfer, PublicImages):
        return _as_seen(_public(folder, config.transfer, config.images, study.task), study.preprocessing)
    seed = study.seed_for(0, "", "transfer")
    num_labels = len(study.task.labels) if study.task.kind == "segmentation" else 0
    sides = (study.task.in_channels, *study.preprocessing.shape)
    return _synthetic(config.images, sides, num_labels, study.synthesis, seed)


def contents(study: Study, folder: Path) -> frozenset[str]:
    """Return the sha256 of the voxels of each public image in a study's transfer set.

    The result is empty for synthetic images, and for a study without distillation.
    """
    config = study.distillation
    if config is None or not isinstance(config.transfer, PublicImages):
        return frozenset()
    return frozenset(
        content_of(scan.image) for scan in _public(folder, config.transfer, config.images, study.task)
    )


@lru_cache(maxsize=2)
def _synthetic(
    count: int, sides: tuple[int, ...], num_labels: int, synthesis: SynthesisConfig, seed: int
) -> Tensor:
    """Return synthetic images `(count, *sides)`: of `num_labels` labels, or textures if it is 0."""
    rng = np.random.default_rng(seed)
    channels, *rest = sides
    shape = tuple(rest)

    def draw() -> Floats:
        if num_labels:
            return labelled_image(shape, num_labels, rng, synthesis, channels)[0]
        return texture(shape, rng, channels)

    return torch.from_numpy(np.stack([draw() for _ in range(count)]))


def _public(folder: Path, named: PublicImages, count: int, task: TaskConfig) -> list[Scan]:
    """Return the first `count` images of the array `images` in the npz file that the study names.

    It is `(N, *spatial)` for one channel, `(N, rows, columns, 3)` for pictures in colour, else
    `(N, C, *spatial)`.
    """
    dims = task.dims
    file = _file_of(folder, named.public)
    try:
        images = read_stack(file, "images")
    except Unreadable as error:
        raise NoTransferImages(f"the public set can't be used: {error}") from error
    if task.channels == RGB and images.ndim == 4:
        images = np.moveaxis(images, -1, 1)
    elif task.in_channels == 1 and images.ndim == dims + 1:
        images = images[:, None]
    if images.ndim != dims + 2 or images.shape[1] != task.in_channels or len(images) < count:
        raise NoTransferImages(
            f"expected {count} images of {dims} dimensions and {task.in_channels} channels in the "
            f"public set, got an array of shape {images.shape}"
        )
    nothing, spacing_mm = np.zeros((), np.int64), (1.0,) * dims
    return [Scan(image, nothing, spacing_mm) for image in images[:count]]


def _file_of(folder: Path, sha256: str) -> Path:
    for path in sorted(folder.glob("*.npz")):
        with suppress(OSError), path.open("rb") as file:
            if file_digest(file, "sha256").hexdigest() == sha256:
                return path
    raise NoTransferImages(f"no file with the public set {sha256} is in the folder {folder.name}/")


def _as_seen(scans: list[Scan], config: PreprocessingConfig) -> Tensor:
    try:
        return torch.stack([fixed_pair(prepare(scan, config), config)[0] for scan in scans])
    except (Unfit, RuntimeError, ValueError, IndexError) as error:
        raise NoTransferImages(f"a public image can't be preprocessed for the study: {error}") from error
