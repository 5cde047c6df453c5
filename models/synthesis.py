"""Synthetic images of labelled shapes: public by construction, drawn from no patient.

Bent tapered tubes with neighbouring structures and random contrast, in the manner of SynthSeg
(Billot et al. 2023): every image has its own intensities, so a network has to learn shape.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


def tube(shape: tuple[int, ...], num_labels: int, rng: np.random.Generator) -> Labels:
    """Return a bent, tapered tube, cut along its axis into the labels 1 to `num_labels`.

    The tube lies somewhere near the middle of an image of `shape` (2D or 3D), turned at random;
    0 is background.
    """
    dims = len(shape)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"), -1)
    turned = (grid - rng.uniform(-0.15, 0.15, dims)) @ _rotation(dims, rng)
    along, across = turned[..., 0], turned[..., 1:].copy()
    half_length = rng.uniform(0.55, 0.75)
    across[..., 0] -= rng.uniform(-0.4, 0.4) * (along**2 - half_length**2 / 3)
    taper = 1 - rng.uniform(0.2, 0.5) * (along / half_length + 1) / 2
    radius = rng.uniform(0.24, 0.34) * taper
    radius = radius * np.sqrt(np.clip(1 - (along / half_length) ** 4, 0, None))
    stretch = rng.uniform(0.8, 1.25, dims - 1)
    inside = np.square(across * stretch).sum(-1) < np.square(radius)
    cuts = np.linspace(-half_length, half_length, num_labels + 1)[1:-1]
    part = 1 + np.digitize(along, cuts + rng.uniform(-0.08, 0.08))
    return np.where(inside, part, 0).astype(np.int64)


def image(shape: tuple[int, ...], num_labels: int, rng: np.random.Generator) -> Floats:
    """Return one synthetic image of `shape`: a tube, neighbours, blur, bias field and noise."""
    truth = tube(shape, num_labels, rng)
    levels = rng.uniform(-1, 1, num_labels + 4).astype(np.float32)
    intensity = levels[truth]
    for extra in range(3):
        neighbour = _ellipsoid(shape, rng) & (truth == 0)
        intensity[neighbour] = levels[num_labels + 1 + extra]
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij", sparse=True)
    ramp = sum(rng.uniform(-0.3, 0.3) * axis for axis in axes)  # the scanner's bias field
    blurred = gaussian_filter(intensity, rng.uniform(0, 0.8))  # partial volume
    noisy = blurred + ramp + rng.normal(0, rng.uniform(0.02, 0.25), shape)
    return z_scored(noisy)


def images(count: int, shape: tuple[int, ...], num_labels: int, rng: np.random.Generator) -> Floats:
    """Return `count` synthetic images as `(count, 1, *shape)`."""
    return np.stack([image(shape, num_labels, rng)[None] for _ in range(count)])


def z_scored(values: NDArray[np.floating]) -> Floats:
    """Return `values` with mean 0 and standard deviation 1; a constant image becomes zero."""
    centred = values - values.mean()
    return np.asarray(centred / max(float(centred.std()), 1e-6), dtype=np.float32)


def _rotation(dims: int, rng: np.random.Generator) -> NDArray[np.floating]:
    orthogonal, triangular = np.linalg.qr(rng.normal(size=(dims, dims)))
    return np.asarray(orthogonal * np.sign(np.diag(triangular)))


def _ellipsoid(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.bool_]:
    centre, axes = rng.uniform(-1, 1, len(shape)), rng.uniform(0.15, 0.6, len(shape))
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij", sparse=True)
    return np.asarray(sum(((g - c) / a) ** 2 for g, c, a in zip(grid, centre, axes, strict=True)) < 1)
