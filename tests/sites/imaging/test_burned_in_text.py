import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter
from skimage import data

from sites.imaging.burned_in_text import may_show_text


def tissue(rng: np.random.Generator, side: int = 256) -> np.ndarray:
    smooth = gaussian_filter(rng.normal(size=(side, side)), side / 12)
    levels = (smooth - smooth.min()) / np.ptp(smooth) * 200 + rng.normal(0, 6, (side, side))
    return np.clip(levels, 0, 255)


def with_text(rng: np.random.Generator, size: int, fill: int) -> np.ndarray:
    picture = Image.fromarray(tissue(rng).astype(np.uint8))
    corner = (int(rng.integers(0, 40)), int(rng.integers(5, 200)))
    text = "MUELLER ANNA 1956-04-03"[: int(320 / size)]
    ImageDraw.Draw(picture).text(corner, text, fill=fill, font=ImageFont.load_default(size))
    return np.asarray(picture, dtype=np.float32)


@pytest.mark.parametrize("fill", [0, 255])
@pytest.mark.parametrize("size", [10, 14, 24])
def test_a_name_drawn_into_the_pixels_is_suspected(size: int, fill: int) -> None:
    rng = np.random.default_rng(size + fill)
    assert sum(may_show_text(with_text(rng, size, fill)) for _ in range(10)) >= 9


def test_tissue_noise_and_plain_shapes_are_not() -> None:
    rng = np.random.default_rng(0)
    assert not any(may_show_text(tissue(rng).astype(np.float32)) for _ in range(40))
    assert not may_show_text(rng.normal(size=(200, 200)).astype(np.float32))
    disc = np.hypot(*np.mgrid[-100:100, -100:100]) < 60
    assert not may_show_text(disc.astype(np.float32))


PHOTOGRAPHS = ("retina", "immunohistochemistry", "microaneurysms", "cell", "moon", "gravel")


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_vessels_and_textures_of_photographs_are_no_text_and_a_name_over_them_is(name: str) -> None:
    """Photographs that scikit-image ships: a fundus, histology, cells, and textures beside them."""
    whole = Image.fromarray(getattr(data, name)()).convert("L")
    for scale in (1.0, 0.5, 0.35):
        picture = whole.resize((round(whole.width * scale), round(whole.height * scale)))
        assert not may_show_text(np.asarray(picture, dtype=np.float32))
        if picture.width > 250:
            ImageDraw.Draw(picture).text(
                (12, 20), "MUELLER ANNA 1956", fill=255, font=ImageFont.load_default(14)
            )
            assert may_show_text(np.asarray(picture, dtype=np.float32))


def test_text_on_every_slice_is_suspected_whichever_way_the_volume_is_turned() -> None:
    rng = np.random.default_rng(1)
    volume = np.repeat(with_text(rng, 16, 255)[..., None], 60, axis=2)
    for axes in ((0, 1, 2), (2, 0, 1), (1, 2, 0), (1, 0, 2)):
        assert may_show_text(np.ascontiguousarray(volume.transpose(axes)))


def test_images_without_room_for_a_name_are_never_suspected() -> None:
    assert not may_show_text(np.random.default_rng(0).normal(size=(28, 28)).astype(np.float32))
