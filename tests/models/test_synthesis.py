import numpy as np
import pytest

from models import synthesis


@pytest.mark.parametrize("shape", [(24, 24), (24, 24, 24), (16, 24, 20)])
def test_a_tube_has_every_label_and_mostly_background(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels = synthesis.tube(shape, 2, rng)
        assert set(np.unique(labels)) == {0, 1, 2}
        assert 0.5 < (labels == 0).mean() < 1


def test_images_are_normalised_and_repeat_with_their_seed() -> None:
    a = synthesis.images(3, (16, 16, 16), 2, np.random.default_rng(5))
    b = synthesis.images(3, (16, 16, 16), 2, np.random.default_rng(5))
    assert a.shape == (3, 1, 16, 16, 16)
    assert np.array_equal(a, b)
    assert np.allclose(a.mean((1, 2, 3, 4)), 0, atol=1e-4)
    assert np.allclose(a.std((1, 2, 3, 4)), 1, atol=1e-3)
    assert not np.array_equal(a[0], a[1])


def test_a_constant_image_becomes_zero() -> None:
    assert (synthesis.z_scored(np.full((4, 4), 7.0)) == 0).all()
