import numpy as np
import pytest
import torch

from models.settings.images import PreprocessingConfig
from sites.imaging.intake import Scan
from sites.imaging.preprocessing import prepare
from sites.inference import predict

CPU = torch.device("cpu")


class Bright(torch.nn.Module):
    """Network that answers class 1 where the image is above zero, and records its input shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(x.shape[2:]))
        return 20 * torch.cat([-x, x], 1)


def scan(shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> Scan:
    target = np.zeros(shape, np.int64)
    target[tuple(slice(n // 4, n // 2) for n in shape)] = 1
    return Scan((target * 50).astype(np.float32)[None], target, spacing_mm)


@pytest.mark.parametrize("shape", [(50, 43, 37), (20, 17, 90), (61, 40)])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"fit": {"kind": "patches"}},
        {"fit": "resize"},
        {"spacing": 1.4},
        {"spacing": 1.4, "fit": {"kind": "patches", "overlap": 0.5}, "crop": "foreground"},
    ],
    ids=str,
)
def test_a_prediction_lies_on_the_scans_own_voxels(
    shape: tuple[int, ...], change: dict[str, object]
) -> None:
    dims, change = len(shape), dict(change)
    if spacing := change.pop("spacing", None):
        change["spacing_mm"] = (spacing,) * dims
    window = {"kind": "window", "centre": 25, "width": 50}
    config = PreprocessingConfig(shape=(32,) * dims, intensity=window, **change)
    one = scan(shape, (1.0, 1.2, 0.8)[:dims])
    divisors = (8,) * dims
    predicted = predict(Bright(), lambda x: x.softmax(1), config, divisors, prepare(one, config), CPU)
    assert predicted.shape == (2, *shape)
    found, truth = predicted.argmax(0).numpy() == 1, one.target == 1
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.8
    if set(change) <= {"fit"} and change.get("fit") != "resize":
        assert np.array_equal(found, truth)


def test_windows_have_the_training_shape_and_a_whole_image_its_own() -> None:
    one = scan((50, 43, 37), (1.0,) * 3)
    for fit, expected in (({"kind": "patches"}, (32, 32, 32)), ("pad_or_crop", (56, 48, 40))):
        config, network = PreprocessingConfig(shape=(32,) * 3, fit=fit), Bright()
        predict(network, lambda x: x.softmax(1), config, (8, 8, 8), prepare(one, config), CPU)
        assert set(network.shapes) == {expected}


def test_a_class_is_told_from_the_image_as_training_saw_it() -> None:
    class Mean(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape == (1, 1, 16, 16)
            return x.flatten(1)[:, :3]

    one = Scan(scan((40, 50), (1.0, 1.0)).image, np.asarray(2), (1.0, 1.0))
    for fit in ("pad_or_crop", "resize"):
        config = PreprocessingConfig(shape=(16, 16), fit=fit)
        predicted = predict(Mean(), lambda x: x.softmax(1), config, (8, 8, 8), prepare(one, config), CPU)
        assert predicted.shape == (3,)
