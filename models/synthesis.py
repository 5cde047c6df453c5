"""Synthetic images of labelled shapes: public by construction, drawn from no patient.

Bent, tapered tubes among neighbours, each image with its own random contrast, so that a network has to
learn shape (as in Billot et al. 2023, SynthSeg, https://doi.org/10.1016/j.media.2023.102789); and
textures for tasks without shapes. A study may describe its anatomy as textbooks do, never its patients.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.ndimage import gaussian_filter

from models.config import Config

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
Size = Annotated[float, Field(gt=0, le=1)]


class SynthesisConfig(Config):
    """Appearance of synthetic images; the unit of lengths is half a side of the image.

    Attributes:
        along (no unit): the direction from the first label to the last in the image's axes (which are R,
            A, S in 3D), if anatomy fixes one; without it a tube has any direction.
        turn_deg (degrees): the typical angle between a tube's direction and `along`.
        half_length (half a side): the smallest and the largest half length of a tube.
        radius (half a side): the smallest and the largest radius at its thick end.
        t1_share (share): the share of images with the contrast of T1-weighted MR: dark fluid, grey
            matter and bright white matter around a tube of grey matter. The other images have any
            contrast.
    """

    along: Annotated[tuple[float, ...], Field(min_length=2, max_length=3)] | None = None
    turn_deg: Annotated[float, Field(ge=0, le=60)] = 20
    half_length: tuple[Size, Size] = (0.55, 0.75)
    radius: tuple[Size, Size] = (0.24, 0.34)
    t1_share: Annotated[float, Field(ge=0, le=1)] = 0

    @model_validator(mode="after")
    def _ordered(self) -> "SynthesisConfig":
        for key, (low, high) in (("half_length", self.half_length), ("radius", self.radius)):
            if low > high:
                raise ValueError(f"{key}: expected the smaller number first, got {[low, high]}")
        if self.along is not None and not any(self.along):
            raise ValueError("along: expected a direction, got zeros")
        return self


DEFAULT = SynthesisConfig()


@dataclass(frozen=True)
class _Tube:
    """A tube in an image's grid: labels, distance along and off its axis, and its radius there."""

    labels: Labels
    along: NDArray[np.floating]
    across: NDArray[np.floating]
    half_length: float
    distance: NDArray[np.floating]
    radius: NDArray[np.floating]


def tube(
    shape: tuple[int, ...],
    num_labels: int,
    rng: np.random.Generator,
    config: SynthesisConfig = DEFAULT,
) -> Labels:
    """Return a bent, tapered tube, cut along its axis into the labels 1 to `num_labels`.

    The tube is near the middle of an image of `shape` (2D or 3D); 0 is background.
    """
    return _tube(shape, num_labels, rng, config).labels


def labelled_image(
    shape: tuple[int, ...],
    num_labels: int,
    rng: np.random.Generator,
    config: SynthesisConfig = DEFAULT,
    channels: int = 1,
) -> tuple[Floats, Labels]:
    """Return a z-scored image `(channels, *shape)` of a tube among its neighbours, and its labels.

    All channels show the same shapes. The first has the contrast of `config`, the others any.
    """
    drawn = _tube(shape, num_labels, rng, config)
    contrast = _contrast(num_labels, rng, is_t1=rng.random() < config.t1_share)
    structures, after = _structures(drawn, shape, rng)
    painted = []
    for channel in range(channels):
        own, levels, near = contrast if channel == 0 else _contrast(num_labels, rng, is_t1=False)
        ahead = own[0] + (after if channel == 0 else rng.normal(0, 0.1))
        table = np.concatenate([levels, near, [ahead], own])
        painted.append(z_scored(_as_scanned(table[structures], rng)))
    return np.stack(painted), drawn.labels


def _structures(drawn: _Tube, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[Labels, float]:
    """Return what each voxel shows, and how a continuation of the tube differs from its first label.

    | number | structure                    |
    |--------|------------------------------|
    | 0 to 2 | a tissue                     |
    | 3 to 7 | a neighbour                  |
    | 8      | a continuation of the tube   |
    | 9 ...  | the labels                   |
    """
    cuts = [rng.uniform(-1.8, -0.8), rng.uniform(-0.6, 0.6)]
    found = np.digitize(_smooth(shape, min(shape) * rng.uniform(0.06, 0.2), rng), cuts)
    for number, where in enumerate(_neighbours(drawn, rng), start=3):
        found[where] = number
    for number in range(5, 8):
        found[_ellipsoid(shape, rng)] = number
    after = 0.0
    if rng.random() < 0.7:
        after = float(rng.normal(0, 0.1))
        found[_continuation(drawn, rng)] = 8
    return np.where(drawn.labels > 0, 8 + drawn.labels, found), after


def texture(shape: tuple[int, ...], rng: np.random.Generator, channels: int = 1) -> Floats:
    """Return a z-scored image `(channels, *shape)` without labels: a random power law, or dead leaves.

    Channels are mixtures of as many images, as the colours of a photograph share their shapes.

    Networks learn useful features from such images (Baradad et al. 2021, Learning to See by Looking at
    Noise, https://arxiv.org/abs/2106.05963).
    """
    drawn = [
        z_scored(_power_law(shape, rng) if rng.random() < 0.5 else _dead_leaves(shape, rng))
        for _ in range(channels)
    ]
    if channels == 1:
        return np.stack(drawn)
    mixed = np.tensordot(rng.normal(size=(channels, channels)) + np.eye(channels), np.stack(drawn), 1)
    return np.stack([z_scored(each) for each in mixed])


def z_scored(values: NDArray[np.floating]) -> Floats:
    """Return `values` with mean 0 and standard deviation 1; a constant image becomes zero."""
    centred = values - values.mean()
    return np.asarray(centred / max(float(centred.std()), 1e-6), dtype=np.float32)


def _tube(
    shape: tuple[int, ...], num_labels: int, rng: np.random.Generator, config: SynthesisConfig
) -> _Tube:
    dims = len(shape)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"), -1)
    turned = (grid - rng.uniform(-0.15, 0.15, dims)) @ _directions(dims, config, rng)
    along, across = turned[..., 0], turned[..., 1:].copy()
    half_length = rng.uniform(*config.half_length)
    across[..., 0] -= rng.uniform(-0.4, 0.4) * (along**2 - half_length**2 / 3)
    taper = 1 - rng.uniform(0.2, 0.5) * (along / half_length + 1) / 2
    radius = rng.uniform(*config.radius) * taper
    radius = radius * np.sqrt(np.clip(1 - (along / half_length) ** 4, 0, None))
    stretch = rng.uniform(0.8, 1.25, dims - 1)
    distance = np.sqrt(np.square(across * stretch).sum(-1))
    cuts = np.linspace(-half_length, half_length, num_labels + 1)[1:-1]
    part = 1 + np.digitize(along, cuts + rng.uniform(-0.08, 0.08))
    labels = np.where(distance < radius, part, 0).astype(np.int64)
    return _Tube(labels, along, across, half_length, distance, radius)


def _directions(dims: int, config: SynthesisConfig, rng: np.random.Generator) -> NDArray[np.floating]:
    """Return orthonormal columns, the first of which is the tube's direction."""
    columns = rng.normal(size=(dims, dims))
    if config.along is not None:
        first = np.asarray(config.along) / np.linalg.norm(config.along)
        spread = np.tan(np.deg2rad(config.turn_deg)) / dims**0.5
        columns[:, 0] = first + spread * columns[:, 0]
    orthogonal, triangular = np.linalg.qr(columns)
    return np.asarray(orthogonal * np.sign(np.diag(triangular)))


def _contrast(
    num_labels: int, rng: np.random.Generator, *, is_t1: bool
) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.floating]]:
    """Return intensities of the labels, of three tissues, and of five neighbours."""
    if not is_t1:
        own = rng.uniform(-1.5, 1.5) + rng.normal(0, rng.choice([0.05, 0.4, 1.0]), num_labels)
        return own, rng.uniform(-1.5, 1.5, 3), rng.uniform(-1.5, 1.5, 5)
    fluid, grey, white = rng.normal([-1.2, 0, 0.9], [0.3, 0.15, 0.25])
    own = grey + rng.normal(0, 0.1) + rng.normal(0, 0.08, num_labels)
    near = np.array([fluid, white, grey, white, grey + rng.normal(0, 0.3)])
    return own, np.array([fluid, grey, white]), near


def _neighbours(drawn: _Tube, rng: np.random.Generator) -> list[NDArray[np.bool_]]:
    """Return the two halves of a layer that covers the tube."""
    layer = drawn.distance < drawn.radius * rng.uniform(1.05, 1.4) + 0.06
    turn = rng.uniform(0, 2 * np.pi)
    side = drawn.across[..., 0] * np.cos(turn)
    if drawn.across.shape[-1] > 1:
        side = side + drawn.across[..., 1] * np.sin(turn)
    return [layer & (side > 0), layer & (side <= 0)]


def _continuation(drawn: _Tube, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return another structure that touches the first label's end."""
    ahead = (drawn.along + drawn.half_length + rng.uniform(0, 0.25)) / rng.uniform(0.15, 0.35)
    aside = np.square(drawn.across / rng.uniform(0.2, 0.4)).sum(-1)
    return np.asarray(ahead**2 + aside < 1)


def _as_scanned(intensity: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.floating]:
    """Return an image blurred by partial volume, with a scanner's bias field and noise."""
    shape = intensity.shape
    blurred = gaussian_filter(intensity, rng.uniform(0.2, 1.0))
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij", sparse=True)
    ramp = sum(rng.uniform(-0.3, 0.3) * axis for axis in axes)
    field = rng.uniform(0, 0.15) * _smooth(shape, min(shape) * 0.1, rng)
    grain = gaussian_filter(rng.normal(size=shape), rng.uniform(0, 0.7)) * rng.uniform(0.03, 0.3)
    return np.asarray(blurred + ramp + field + grain)


def _smooth(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> Floats:
    """Return a smooth random field of standard deviation 1."""
    return z_scored(gaussian_filter(rng.normal(size=shape), sigma))


def _power_law(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.floating]:
    frequencies = np.meshgrid(*[np.fft.fftfreq(n) for n in shape], indexing="ij")
    radius = np.sqrt(np.square(frequencies).sum(0))
    radius.flat[0] = np.inf
    spectrum = np.fft.fftn(rng.normal(size=shape)) / radius ** rng.uniform(0.5, 2.5)
    return np.asarray(np.fft.ifftn(spectrum).real)


def _dead_leaves(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.floating]:
    leaves = np.zeros(shape)
    for _ in range(rng.integers(8, 60)):
        leaves[_ellipsoid(shape, rng, least=0.03, is_turned=True)] = rng.normal()
    return np.asarray(gaussian_filter(leaves, rng.uniform(0.2, 1.2)))


def _ellipsoid(
    shape: tuple[int, ...],
    rng: np.random.Generator,
    least: float = 0.15,
    *,
    is_turned: bool = False,
) -> NDArray[np.bool_]:
    dims = len(shape)
    centre, axes = rng.uniform(-1, 1, dims), rng.uniform(least, 0.6, dims)
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij", sparse=True)
    off = [g - c for g, c in zip(grid, centre, strict=True)]
    if is_turned:
        turn = _directions(dims, DEFAULT, rng)
        off = [sum(turn[i, j] * off[j] for j in range(dims)) for i in range(dims)]
    return np.asarray(sum((o / a) ** 2 for o, a in zip(off, axes, strict=True)) < 1)
