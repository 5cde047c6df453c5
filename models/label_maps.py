"""Synthetic images drawn from public label maps: real anatomy, random shape and contrast, no patient.

A map is a segmentation of a whole field of view, such as an atlas. Its values 1 to the study's number of
labels are the study's labels; larger values are other structures, which look like something else but are
background to the network; 0 is everything else. Each image bends a map, gives every structure an
intensity and a texture of its own, and adds what scanners add, so that a network has to learn shapes and
neighbourhoods rather than one contrast (Billot et al. 2023, SynthSeg, section 3,
https://doi.org/10.1016/j.media.2023.102789).
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.ndimage import gaussian_filter, map_coordinates, zoom

from models.config import Config
from models.synthesis import Floats, Labels, z_scored

Intensity = Annotated[float, Field(ge=-1, le=2)]
LARGEST_VALUE = 255
"""Largest value of a label map."""


class MapLookConfig(Config):
    """Changes of a label map, and the intensities of its structures.

    Attributes:
        rotate_deg (degrees): the typical rotation about each axis, in degrees.
        scale (share): the smallest and the largest size against the map's own; an atlas may exceed
            people.
        shift (voxels): the typical shift of the field of view, in voxels of the study.
        bend (voxels): the typical size of smooth deformations, in voxels of the study.
        typical (share): intensities of structures, by value of the map, in the study's modality as
            textbooks give them: 0 for the darkest tissue, 1 for the brightest. Values that are missing
            get any.
        typical_share (share): the share of images with these intensities; the others have any contrast.
    """

    rotate_deg: Annotated[float, Field(ge=0, le=45)] = 12
    scale: tuple[Annotated[float, Field(ge=0.2, le=5)], Annotated[float, Field(ge=0.2, le=5)]] = (
        0.85,
        1.15,
    )
    shift: Annotated[float, Field(ge=0, le=50)] = 3
    bend: Annotated[float, Field(ge=0, le=20)] = 2
    typical: Mapping[Annotated[int, Field(ge=0, le=LARGEST_VALUE)], Intensity] = {}
    typical_share: Annotated[float, Field(ge=0, le=1)] = 0.7

    @model_validator(mode="after")
    def _ordered(self) -> "MapLookConfig":
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale: expected the smaller number first, got {list(self.scale)}")
        return self


def image_of_map(
    label_map: Labels,
    shape: tuple[int, ...],
    num_labels: int,
    rng: np.random.Generator,
    config: MapLookConfig,
    channels: int = 1,
) -> tuple[Floats, Labels]:
    """Return a z-scored image `(channels, *shape)` around a map's labels, and its labels.

    `config.typical` describes the first channel; the others have any contrast.

    Args:
        label_map: `(*spatial)` of the same dimensions as `shape`, in voxels of the same size.
    """
    structures = _bent(label_map, shape, num_labels, rng, config)
    image = []
    for channel in range(channels):
        look = config if channel == 0 else config.model_copy(update={"typical": {}})
        image.append(z_scored(_as_scanned(_painted(structures, num_labels, rng, look), rng)))
    return np.stack(image), np.where(structures <= num_labels, structures, 0)


def middle_of(label_map: Labels, num_labels: int) -> NDArray[np.float64]:
    """Return the middle of the box around a map's labels, in voxels `(dims,)`.

    Raises:
        ValueError: the map has none of the labels.
    """
    places = np.argwhere((label_map > 0) & (label_map <= num_labels))
    if not len(places):
        raise ValueError(f"expected the labels 1 to {num_labels} in the map, got none of them")
    return np.asarray((places.min(0) + places.max(0)) / 2)


def _bent(
    label_map: Labels,
    shape: tuple[int, ...],
    num_labels: int,
    rng: np.random.Generator,
    config: MapLookConfig,
) -> Labels:
    """Return the structures at the voxels of an image that looks at a turned, resized and bent map."""
    dims = len(shape)
    grid = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in shape], indexing="ij"))
    moved = grid + rng.normal(0, config.shift, (dims, *[1] * dims))
    size = config.bend * rng.uniform(0.3, 1.3)
    moved += np.stack([_field(shape, 10, rng) for _ in range(dims)]) * size
    scale = rng.uniform(*config.scale) * np.exp(rng.normal(0, 0.07, dims))
    matrix = np.linalg.inv(_turned(dims, config.rotate_deg, rng) @ np.diag(scale))
    places = np.tensordot(matrix, moved, 1)
    middle = middle_of(label_map, num_labels).reshape(dims, *[1] * dims)
    return np.asarray(map_coordinates(label_map, places + middle, order=0, mode="nearest"), np.int64)


def _painted(
    structures: Labels, num_labels: int, rng: np.random.Generator, config: MapLookConfig
) -> NDArray[np.floating]:
    """Return an intensity for each voxel: a mean and a texture for each structure."""
    count = LARGEST_VALUE + 1
    means = rng.uniform(0, 1, count)
    if config.typical and rng.random() < config.typical_share:
        for value, level in config.typical.items():
            means[value] = level + rng.normal(0, 0.08)
    for label in range(2, num_labels + 1):  # parts of one organ are hardly told apart by intensity
        means[label] = means[1] + rng.normal(0, 0.04)
    texture = rng.uniform(0.01, 0.08, count)
    fine = rng.normal(size=structures.shape) * texture[structures]
    return np.asarray(means[structures] + fine + _field(structures.shape, 4, rng) * rng.uniform(0, 0.08))


def _as_scanned(intensity: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.floating]:
    """Return an image blurred by partial volume, with a scanner's bias field and noise."""
    blurred = gaussian_filter(intensity, rng.uniform(0.3, 1.0))
    bias = np.exp(_field(intensity.shape, 20, rng) * rng.uniform(0, 0.3))
    grain = rng.normal(size=intensity.shape) * blurred.std() * rng.uniform(0.05, 0.8)
    return np.asarray(blurred * bias + grain)


def _field(shape: Sequence[int], coarse: int, rng: np.random.Generator) -> NDArray[np.floating]:
    """Return a smooth random field whose knots, `coarse` voxels apart, are standard normal."""
    knots = [max(2, -(-n // coarse) + 1) for n in shape]
    factors = [n / k for n, k in zip(shape, knots, strict=True)]
    return np.asarray(zoom(rng.normal(size=knots), factors, order=1, grid_mode=False))


def _turned(dims: int, typical_deg: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a random rotation `(dims, dims)`, a turn in each plane of two axes."""
    matrix = np.eye(dims)
    for first in range(dims):
        for second in range(first + 1, dims):
            angle = np.deg2rad(rng.normal(0, typical_deg))
            turn = np.eye(dims)
            turn[[first, second], [first, second]] = np.cos(angle)
            turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
            matrix = matrix @ turn
    return matrix
