import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from models.objectives import one_hot
from models.settings.images import PreprocessingConfig
from sites.imaging.augmentation import RandTurnd
from sites.imaging.intake import Scan
from sites.imaging.preprocessing import Unfit, drawn_pairs, fixed_pair, on_own_grid, prepare, whole_image


def scan_of(shape: tuple[int, ...], spacing_mm: tuple[float, ...] | None = None) -> Scan:
    rng = np.random.default_rng(0)
    target = (gaussian_filter(rng.normal(size=shape), 3) > 0.02).astype(np.int64)
    image = target * 100 + rng.normal(300, 1, shape)
    return Scan(image.astype(np.float32)[None], target, spacing_mm or (1.0,) * len(shape))


def ramp_of(shape: tuple[int, ...], spacing_mm: tuple[float, ...], axis: int) -> Scan:
    """Return a scan whose intensity is the position in mm along an axis."""
    places = np.meshgrid(*[np.arange(n) * mm for n, mm in zip(shape, spacing_mm, strict=True)],
                         indexing="ij")[axis]  # fmt: skip
    return Scan(places.astype(np.float32)[None], np.zeros(shape, np.int64), spacing_mm)


@pytest.mark.parametrize("shape", [(10, 30, 20), (16, 16, 16), (20, 18)])
def test_training_images_have_the_studys_shape_and_their_own_normalisation(
    shape: tuple[int, ...],
) -> None:
    config = PreprocessingConfig(shape=(16,) * len(shape))
    scan = scan_of(shape)
    image, target = fixed_pair(prepare(scan, config), config)
    assert image.shape == (1, *config.shape)
    assert target.shape == config.shape
    assert target.dtype == torch.long
    bright = prepare(Scan(scan.image * 7 + 3, scan.target, scan.spacing_mm), config)
    assert np.allclose(image, fixed_pair(bright, config)[0], atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"spacing_mm": (1.5, 1.5, 1.5)},
        {"crop": "foreground"},
        {"fit": "resize"},
        {"spacing_mm": (1.5, 1.5, 1.5), "crop": "foreground", "intensity": {"kind": "percentiles"}},
    ],
    ids=str,
)
def test_image_and_target_stay_aligned_and_the_truth_comes_back(change: dict[str, object]) -> None:
    scan = scan_of((40, 41, 32), (1.0, 1.2, 1.7))
    config = PreprocessingConfig(shape=(32, 32, 32), **change)
    prepared = prepare(scan, config)
    together = np.corrcoef(prepared.image.flatten(), prepared.target.flatten())[0, 1]
    assert together > 0.93
    back = on_own_grid(one_hot(prepared.target[None], 2)[0], prepared)
    assert back.shape == (2, *scan.image.shape[1:])
    assert torch.allclose(back.sum(0), torch.ones(()), atol=1e-5)
    found, truth = back.argmax(0) == 1, torch.from_numpy(scan.target) == 1
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.94


@pytest.mark.parametrize("change", [{"spacing_mm": 1.3}, {"fit": "resize"}], ids=str)
@pytest.mark.parametrize(
    ("shape", "spacing_mm"), [((30, 41, 26), (1.0, 2.0, 3.0)), ((60, 61), (0.5, 0.7))]
)
def test_a_place_is_where_it_was_after_going_there_and_back(
    shape: tuple[int, ...], spacing_mm: tuple[float, ...], change: dict[str, object]
) -> None:
    dims = len(shape)
    if "spacing_mm" in change:
        change = {"spacing_mm": (change["spacing_mm"],) * dims}
    config = PreprocessingConfig(
        shape=(32,) * dims, intensity={"kind": "window", "centre": 50, "width": 100}, **change
    )
    for axis in range(dims):
        scan = ramp_of(shape, spacing_mm, axis)
        prepared = prepare(scan, config)
        back = on_own_grid(torch.cat([1 - prepared.image, prepared.image]), prepared)[1]
        expected = torch.from_numpy(scan.image[0]).clamp(0, 100) / 50 - 1
        inner = tuple(slice(6, -6) for _ in shape)
        assert torch.allclose(back[inner], expected[inner], atol=1e-4)


def test_a_window_keeps_hounsfield_units_and_clips_the_rest() -> None:
    config = PreprocessingConfig(shape=(8, 8), intensity={"kind": "window", "centre": 40, "width": 400})
    image = np.full((8, 8), 40, np.float32)
    image[0, :3] = -1000, 240, 3000
    prepared = prepare(Scan(image[None], np.zeros((), np.int64), (1.0, 1.0)), config)
    assert prepared.image[0, 0, :4].tolist() == pytest.approx([-1, 1, 1, 0])


def test_percentiles_reach_from_minus_one_to_one_whatever_one_voxel_says() -> None:
    config = PreprocessingConfig(shape=(8, 8), intensity={"kind": "percentiles"})
    scan = scan_of((100, 100))
    scan.image[0, 5, 5] = 1e6
    values = prepare(scan, config).image
    assert (values.min(), values.max()) == (-1, 1)
    assert values.std() > 0.3


def test_the_foreground_is_what_remains_of_a_large_empty_image() -> None:
    image = np.zeros((40, 40), np.float32)
    image[10:20, 15:35] = np.linspace(5, 6, 20)
    target = (image > 0).astype(np.int64)
    config = PreprocessingConfig(shape=(16, 16), crop="foreground")
    prepared = prepare(Scan(image[None], target, (1.0, 1.0)), config)
    assert prepared.image.shape == (1, 10, 20)
    back = on_own_grid(one_hot(prepared.target[None], 2)[0], prepared)
    assert torch.equal(back.argmax(0), torch.from_numpy(target))


def test_scoring_pads_and_never_crops() -> None:
    scan, config = scan_of((10, 31, 20)), PreprocessingConfig(shape=(8, 8, 8))
    padded = whole_image(prepare(scan, config), (8, 8, 8))
    assert padded.shape == (1, 16, 32, 24)
    normalised = (scan.image - scan.image.mean()) / scan.image.std()
    assert np.allclose(padded[0, :10, :31, :20], normalised, atol=1e-3)


def test_a_scan_that_resampling_would_blow_up_is_refused() -> None:
    huge = Scan(np.zeros((1, 64, 64, 64), np.float32), np.zeros((64,) * 3, np.int64), (500.0,) * 3)
    with pytest.raises(Unfit, match="larger than any scan"):
        prepare(huge, PreprocessingConfig(shape=(32,) * 3, spacing_mm=(0.5,) * 3))


PATCHES = {"kind": "patches", "per_scan": 3, "foreground": 1.0}
CHANGES = {"copies": 2, "flip": (0,), "rotate_deg": 20, "scale": 0.1, "intensity": 0.2, "noise": 0.1}


@pytest.mark.parametrize("dims", [2, 3])
def test_what_is_drawn_follows_from_the_seed_alone_and_stays_aligned(dims: int) -> None:
    config = PreprocessingConfig(shape=(16,) * dims, fit=PATCHES, augmentation=CHANGES)
    prepared = prepare(scan_of((40, 36, 30)[:dims]), config)
    first, again, other = (drawn_pairs(prepared, config, seed) for seed in (1, 1, 2))
    assert len(first) == 3 * 2
    assert all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True)
    )
    assert not torch.equal(first[0][0], other[0][0])
    for image, target in first:
        assert image.shape == (1, *config.shape)
        assert target.shape == config.shape
        assert target[(8,) * dims] == 1 or CHANGES["rotate_deg"]
        if 0 < target.float().mean() < 1:
            assert np.corrcoef(image.flatten(), target.flatten())[0, 1] > 0.8


def test_patches_of_the_foreground_have_a_labelled_voxel_in_the_middle() -> None:
    target = np.zeros((60, 60), np.int64)
    target[50, 9] = 1
    scan = Scan(np.random.default_rng(0).normal(size=(1, 60, 60)).astype(np.float32), target, (1.0, 1.0))
    config = PreprocessingConfig(shape=(16, 16), fit=PATCHES)
    pairs = drawn_pairs(prepare(scan, config), config, 0)
    assert all(target.sum() == 1 for _, target in pairs)


def test_a_scan_smaller_than_the_patch_is_padded() -> None:
    config = PreprocessingConfig(shape=(32, 32), fit=PATCHES)
    pairs = drawn_pairs(prepare(scan_of((20, 40)), config), config, 0)
    assert {image.shape for image, _ in pairs} == {(1, 32, 32)}


@pytest.mark.parametrize("target", [np.asarray(1), np.asarray([0, 1, 1])])
def test_a_class_passes_through_every_change(target: np.ndarray) -> None:
    scan = Scan(scan_of((20, 30)).image, target.astype(np.int64), (1.0, 1.0))
    config = PreprocessingConfig(shape=(16, 16), fit="resize", augmentation=CHANGES)
    for image, kept in drawn_pairs(prepare(scan, config), config, 3):
        assert image.shape == (1, 16, 16)
        assert kept.tolist() == target.tolist()


def test_an_image_whose_percentiles_are_equal_is_refused_with_the_reason() -> None:
    """MONAI would subtract and not divide: values of -1 to 999, unclipped."""
    image = np.zeros((20, 20, 20), np.float32)
    image[10, 10, 10] = 1000
    scan = Scan(image[None], np.zeros(image.shape, np.int64), (1.0,) * 3)
    config = PreprocessingConfig(shape=(16,) * 3, intensity={"kind": "percentiles"})
    with pytest.raises(Unfit, match=r"its percentiles 0.5 and 99.5 are equal"):
        prepare(scan, config)


def test_an_image_that_is_constant_after_preparation_is_refused() -> None:
    image = np.linspace(0, 100, 1000, dtype=np.float32).reshape(10, 10, 10)
    scan = Scan(image[None], np.zeros(image.shape, np.int64), (1.0,) * 3)
    window = {"kind": "window", "centre": 5000, "width": 100}
    with pytest.raises(Unfit, match="the prepared image is constant"):
        prepare(scan, PreprocessingConfig(shape=(16,) * 3, intensity=window))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 5.0), (0.5, 2.0, 1.0), (1.0, 3.0)])
def test_a_rotation_is_one_in_millimetres_whatever_the_voxels_sides_are(
    spacing: tuple[float, ...],
) -> None:
    """MONAI's own turns voxel indices: at 1 x 1 x 5 mm a right angle would become 154 degrees."""
    dims, keys = len(spacing), ("image",)
    turned = RandTurnd(keys, 60, 0, spacing)
    turned.set_random_state(seed=3)
    to_mm = np.diag(spacing)
    for _ in range(20):
        in_mm = to_mm @ turned.matrix()[:dims, :dims] @ np.linalg.inv(to_mm)
        assert np.allclose(in_mm @ in_mm.T, np.eye(dims), atol=1e-12)
        assert np.linalg.det(in_mm) == pytest.approx(1)


def test_a_rotated_scan_keeps_lengths_in_millimetres() -> None:
    """A bar of 60 mm along 5 mm slices, turned into the plane and back out of it."""
    image = np.zeros((64, 64, 13), np.float32)
    image[30:34, 30:34, :] = 1
    turned = RandTurnd(("image",), 45, 0, (1.0, 1.0, 5.0))
    for seed in range(6):
        turned.set_random_state(seed=seed)
        found = np.asarray(turned({"image": torch.from_numpy(image[None])})["image"])[0]
        places = np.argwhere(found > 0.5) * [1, 1, 5]
        along = np.linalg.svd(places - places.mean(0), full_matrices=False)[2][0]
        reach = np.ptp((places - places.mean(0)) @ along)
        cosine = abs(along[2])
        assert reach >= 0.8 * min(60, 60 / max(cosine, 1e-6))


@pytest.mark.parametrize(
    ("shape", "spacing", "wanted"),
    [((40, 40, 24), (1, 1, 5), (1, 1, 3)), ((33, 33, 33), (1.4254,) * 3, (2, 2, 2))],
)
def test_an_answer_reaches_the_last_voxel_of_the_scans_own_grid(
    shape: tuple[int, ...], spacing: tuple[float, ...], wanted: tuple[float, ...]
) -> None:
    """A network that is 0.7 sure everywhere is so in every voxel, and not background at the far end."""
    rng = np.random.default_rng(0)
    scan = Scan(rng.normal(size=(1, *shape)).astype(np.float32), np.zeros(shape, np.int64), spacing)
    prepared = prepare(scan, PreprocessingConfig(shape=(16,) * 3, spacing_mm=wanted))
    sure = torch.zeros(2, *prepared.image.shape[1:])
    sure[0], sure[1] = 0.3, 0.7
    back = on_own_grid(sure, prepared)
    assert torch.allclose(back[1], torch.tensor(0.7), atol=1e-4)


def test_percentiles_are_those_of_the_image_that_is_scaled() -> None:
    percentiles = {"kind": "percentiles", "low": 0.5, "high": 99.5}
    image = np.zeros((40, 40), np.float32)  # a hundredth of it is bright, nearly all of what is cropped
    image[10:14, 10:14] = np.linspace(5, 6, 16).reshape(4, 4)
    scan = Scan(image[None], np.zeros((40, 40), np.int64), (1.0, 1.0))
    cropped = PreprocessingConfig(shape=(16, 16), intensity=percentiles, crop="foreground")
    assert float(prepare(scan, cropped).image.max()) == 1.0
    slices = np.zeros((64, 64, 60), np.float32)  # two of three are bright; the study takes the third
    slices[10:14, 20:28, 1::3] = slices[10:14, 20:28, 2::3] = 800
    slices[30:34, 30:34, 30] = 900
    thick = PreprocessingConfig(shape=(16, 16, 16), intensity=percentiles, spacing_mm=(1.0, 1.0, 3.0))
    with pytest.raises(Unfit, match="its percentiles 0.5 and 99.5 are equal"):
        prepare(Scan(slices[None], np.zeros(slices.shape, np.int64), (1.0, 1.0, 1.0)), thick)


def test_a_constant_colour_of_a_picture_is_no_fault() -> None:
    percentiles = {"kind": "percentiles", "low": 0.5, "high": 99.5}
    colours = np.random.default_rng(0).normal(100, 20, (3, 16, 16)).astype(np.float32)
    colours[2] = 0
    config = PreprocessingConfig(shape=(16, 16), intensity=percentiles)
    assert prepare(Scan(colours, np.asarray(0), (1.0, 1.0)), config).image.isfinite().all()
