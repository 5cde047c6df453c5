"""A registered model on images whose answer is known, with its preprocessing inside."""

import numpy as np
import pytest
import torch
from torch import nn

from flows.served_model import ServedModel, UnfitImage

BRIGHT_HU = 80.0


class Brightness(nn.Module):
    """Labels 1 wherever the prepared intensity is above 0; remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        self.range = [0.0, 0.0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(x.shape[2:]))
        self.range = [float(x.min()), float(x.max())]
        return torch.cat([torch.zeros_like(x), 40 * x, torch.full_like(x, -40.0)], dim=1)


@pytest.fixture
def served(study_with) -> ServedModel:
    window = {"kind": "window", "centre": 50.0, "width": 100.0}
    prepared = {"shape": [16, 16, 16], "spacing_mm": [1.0, 1.0, 1.0], "intensity": window}
    return ServedModel(study_with(preprocessing=prepared), Brightness())


@pytest.fixture
def block() -> np.ndarray:
    """One scan (1, 16, 16, 16) in Hounsfield units: a bright block in the dark."""
    image = np.zeros((1, 16, 16, 16), np.float32)
    image[0, 4:12, 6:10, 2:14] = BRIGHT_HU
    return image


def test_the_window_of_the_study_is_applied_inside_and_labels_lie_where_the_image_is_bright(
    served: ServedModel, block: np.ndarray
) -> None:
    labels = served.predict(block, {"output": "labels"})
    assert np.array_equal(labels, (block > 50).astype(np.float32))
    assert served.network.range == pytest.approx([-1.0, (BRIGHT_HU - 50) / 50])
    told = served.predict(block)
    assert told.shape == (1, 3, 16, 16, 16)
    assert told[0, 1, 8, 8, 8] == pytest.approx(1 / (1 + np.exp(-40 * 0.6)), abs=1e-6)
    assert told[0, 0, 0, 0, 0] == pytest.approx(1.0, abs=1e-6)


def test_an_image_of_other_voxels_is_resampled_inside_and_its_labels_come_back_on_its_own_grid(
    served: ServedModel, block: np.ndarray
) -> None:
    served.predict(block)
    alike = max(served.network.shapes)
    labels = served.predict(block, {"output": "labels", "spacing_mm": [2.0, 2.0, 2.0]})
    assert max(served.network.shapes) == tuple(2 * side for side in alike)
    assert labels.shape == block.shape
    inside, outside = np.zeros_like(block, bool), np.ones_like(block, bool)
    inside[0, 5:11, 7:9, 3:13] = True
    outside[0, 3:13, 5:11, 1:15] = False
    assert (labels[inside] == 1).all() and (labels[outside] == 0).all()


@pytest.mark.parametrize("kind", ["float64", "float16", "int64", "int16", "uint8", "object"])
def test_real_numbers_of_any_type_have_one_answer(
    kind: str, served: ServedModel, block: np.ndarray
) -> None:
    assert np.array_equal(served.predict(block.astype(kind)), served.predict(block))


def test_what_is_no_image_of_real_numbers_is_named(served: ServedModel, block: np.ndarray) -> None:
    ragged = np.array([[1, 2], [3]], dtype=object)
    for images in (block.astype(complex), np.array(["scan"]), ragged):
        with pytest.raises(UnfitImage, match=f"real numbers and of one shape, .* {images.dtype}"):
            served.predict(images)


def test_another_output_than_two_is_refused(served: ServedModel, block: np.ndarray) -> None:
    with pytest.raises(ValueError, match="Expected output probabilities or labels, got 'mask'"):
        served.predict(block, {"output": "mask"})


def test_an_image_that_no_hospital_would_train_on_gets_no_answer(
    served: ServedModel, block: np.ndarray
) -> None:
    hole = block.copy()
    hole[0, 3, 3, 3] = np.nan
    for image, message in (
        (hole, "NaN or infinite voxels"), (np.ones_like(block), "constant"),
        (block[..., 0], "expected 3 dimensions, got 2"), (block[:, :0], "empty"),
    ):  # fmt: skip
        with pytest.raises(UnfitImage, match=message):
            served.predict(image)


@pytest.mark.parametrize(
    "spacing", [[-1, 1, 1], [float("nan"), 1, 1], [0, 1, 1], [1, 1], [1, 1, 1, 1], [1, 1, 1e9]]
)
def test_sides_of_voxels_that_are_none_are_named(
    spacing: list[float], served: ServedModel, block: np.ndarray
) -> None:
    with pytest.raises(UnfitImage, match=r"expected spacing_mm of 3 numbers from 0.001 to 1000 mm"):
        served.predict(block, {"spacing_mm": spacing})
