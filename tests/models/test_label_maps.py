import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.label_maps import MapLookConfig, image_of_map, middle_of

STILL = {"rotate_deg": 0, "scale": (1, 1), "shift": 0, "bend": 0}


def atlas(dims: int) -> np.ndarray:
    """A block of labels 1 and 2 in a shell of 7, in a field of view of 5."""
    labels = np.full((40,) * dims, 5)
    labels[(slice(8, 32),) * dims] = 7
    labels[(slice(12, 28),) * dims] = 1
    labels[(slice(20, 28), *(slice(12, 28),) * (dims - 1))] = 2
    return labels


@pytest.mark.parametrize("dims", [2, 3])
def test_an_image_that_does_not_move_has_the_maps_own_labels(dims: int) -> None:
    shape = (24,) * dims
    config = MapLookConfig(**STILL)
    rng = np.random.default_rng(0)
    drawn = [image_of_map(atlas(dims), shape, 2, rng, config) for _ in range(8)]
    inner = atlas(dims)[(slice(8, 32),) * dims]
    whole = np.where(inner <= 2, inner, 0)
    # sizes differ by 7 % between axes even where `scale` is 1, so borders may move by a voxel
    shares = [(labels == whole).mean() for _, labels in drawn]
    assert min(shares) > 0.8 and all(image.shape == (1, *shape) for image, _ in drawn)


def test_a_structure_that_is_no_label_is_background_and_still_looks_different() -> None:
    rng = np.random.default_rng(1)
    apart = []
    for _ in range(30):
        image, labels = image_of_map(atlas(2), (36, 36), 2, rng, MapLookConfig(**STILL))
        assert set(np.unique(labels)) <= {0, 1, 2}
        shell = np.zeros((36, 36), bool)
        shell[7:9, 8:28] = True
        apart.append(abs(image[0, shell].mean() - image[0, :4].mean()))
    assert np.median(apart) > 0.3


def test_typical_intensities_are_those_that_the_study_states_in_their_share_of_images() -> None:
    typical = {1: 0.1, 2: 0.1, 5: 0.5, 7: 0.9}
    config = MapLookConfig(**STILL, typical=typical, typical_share=1.0)
    rng = np.random.default_rng(2)
    for _ in range(10):
        image, labels = image_of_map(atlas(2), (36, 36), 2, rng, config)
        assert image[0, labels > 0].mean() < image[0, labels == 0].mean()


@given(st.integers(0, 2**32 - 1), st.floats(0, 45), st.floats(0, 10))
def test_whatever_is_drawn_images_are_standardised_and_labels_known(
    seed: int, rotate_deg: float, bend: float
) -> None:
    config = MapLookConfig(rotate_deg=rotate_deg, bend=bend)
    image, labels = image_of_map(atlas(2), (16, 24), 2, np.random.default_rng(seed), config)
    assert image.shape == (1, *labels.shape) == (1, 16, 24)
    assert image.mean() == pytest.approx(0, abs=1e-3) and image.std() == pytest.approx(1, abs=1e-3)
    assert set(np.unique(labels)) <= {0, 1, 2}


def test_a_map_without_the_studys_labels_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected the labels 1 to 2 in the map"):
        middle_of(np.full((8, 8), 5), 2)
