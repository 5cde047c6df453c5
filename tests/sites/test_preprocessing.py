import numpy as np
import pytest

from sites.intake import Scan
from sites.preprocessing import PreprocessingConfig, training_pair, whole_image


def scan_of(shape: tuple[int, ...]) -> Scan:
    rng = np.random.default_rng(0)
    image = rng.normal(300, 50, shape).astype(np.float32)
    return Scan(image, rng.integers(0, 3, shape), (1.0,) * len(shape))


@pytest.mark.parametrize("shape", [(10, 30, 20), (16, 16, 16), (20, 18)])
def test_training_images_have_the_studys_shape_and_their_own_normalisation(
    shape: tuple[int, ...],
) -> None:
    config = PreprocessingConfig(shape=(16,) * len(shape))
    image, target = training_pair(scan_of(shape), config)
    assert image.shape == (1, *config.shape)
    assert target.shape == config.shape
    assert target.dtype.is_signed
    bright = training_pair(
        Scan(scan_of(shape).image * 7 + 3, scan_of(shape).target, (1.0,) * len(shape)), config
    )[0]
    assert np.allclose(image, bright, atol=1e-4)


def test_image_and_target_stay_aligned() -> None:
    scan = scan_of((10, 30, 20))
    marked = Scan(scan.target.astype(np.float32), scan.target, scan.spacing_mm)
    image, target = training_pair(marked, PreprocessingConfig(shape=(16, 16, 16)))
    inside = np.zeros((16, 16, 16), dtype=bool)
    inside[3:13] = True
    levels = [image[0][(target == v).numpy() & inside] for v in (0, 1, 2)]
    assert all(level.std() < 1e-5 for level in levels)
    assert levels[0].mean() < levels[1].mean() < levels[2].mean()


def test_scoring_pads_and_never_crops() -> None:
    scan = scan_of((10, 31, 20))
    padded = whole_image(scan, 8)
    assert padded.shape == (1, 16, 32, 24)
    normalised = (scan.image - scan.image.mean()) / scan.image.std()
    assert np.allclose(padded[0, :10, :31, :20], normalised, atol=1e-4)
