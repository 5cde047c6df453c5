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


@pytest.mark.parametrize("shape", [(16, 24), (16, 16, 16)])
@pytest.mark.parametrize("draw", ["labelled", "texture"])
def test_images_are_normalised_and_repeat_with_their_seed(shape: tuple[int, ...], draw: str) -> None:
    def images(seed: int) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        config = synthesis.SynthesisConfig(t1_share=0.5)
        if draw == "texture":
            return [synthesis.texture(shape, rng) for _ in range(8)]
        return [synthesis.labelled_image(shape, 2, rng, config)[0] for _ in range(8)]

    a, b = images(5), images(5)
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert all(x.shape == (1, *shape) and x.dtype == np.float32 for x in a)
    assert np.allclose([x.mean() for x in a], 0, atol=1e-4)
    assert np.allclose([x.std() for x in a], 1, atol=1e-3)
    assert not np.array_equal(a[0], a[1])


def test_tubes_lie_along_the_direction_that_a_study_gives() -> None:
    rng = np.random.default_rng(0)
    config = synthesis.SynthesisConfig(along=(0, -1, 0.4), turn_deg=20)
    wanted = np.array([0, -1, 0.4]) / np.linalg.norm([0, -1, 0.4])
    cosines = []
    for _ in range(40):
        labels = synthesis.tube((24, 24, 24), 2, rng, config)
        first, last = (np.argwhere(labels == value).mean(0) for value in (1, 2))
        cosines.append((last - first) @ wanted / np.linalg.norm(last - first))
    assert min(cosines) > np.cos(np.deg2rad(60))
    assert np.mean(cosines) > np.cos(np.deg2rad(30))


def test_with_the_contrast_of_t1_the_structure_is_between_fluid_and_white_matter() -> None:
    rng, config = np.random.default_rng(0), synthesis.SynthesisConfig(t1_share=1)
    for _ in range(10):
        image, labels = synthesis.labelled_image((32, 32, 32), 2, rng, config)
        low, high = np.percentile(image, [2, 98])
        assert low < image[0, labels > 0].mean() < high


def test_a_range_the_wrong_way_round_is_an_error() -> None:
    with pytest.raises(ValueError, match="radius: expected the smaller number first"):
        synthesis.SynthesisConfig(radius=(0.4, 0.2))


def test_a_constant_image_becomes_zero() -> None:
    assert (synthesis.z_scored(np.full((4, 4), 7.0)) == 0).all()
