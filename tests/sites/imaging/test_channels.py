"""Channels of a scan: their order, their grid, what is missing, and pictures in colour."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from models.settings.images import Augmentation, PreprocessingConfig
from models.settings.tasks import ClassificationConfig, SegmentationConfig
from sites.imaging.cache import ScanCache
from sites.imaging.intake import BrokenCase, read_case
from sites.imaging.preprocessing import drawn_pairs, prepare
from sites.imaging.profile import profile_of
from sites.listing.cases import CaseFiles

RNG = np.random.default_rng(0)
T1, FLAIR = (RNG.normal(mean, 5, (12, 10, 8)).astype(np.float32) for mean in (100, 900))
LABEL = (RNG.random((12, 10, 8)) < 0.2).astype(np.uint8)


def save(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> str:
    nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path.name


@pytest.fixture
def case(tmp_path: Path) -> CaseFiles:
    images = (("t1", save(tmp_path / "a.nii", T1)), ("flair", save(tmp_path / "b.nii", FLAIR)))
    return CaseFiles("one", "p", "a.nii", save(tmp_path / "l.nii", LABEL), channels=images)


def task(*channels: str, missing: str = "refuse") -> SegmentationConfig:
    return SegmentationConfig(
        kind="segmentation", dims=3, labels={1: "lesion"}, channels=channels, missing_channel=missing
    )


def only(case: CaseFiles, *names: str) -> CaseFiles:
    kept = tuple((name, file) for name, file in case.channels if name in names)
    return CaseFiles(case.case, case.patient, kept[0][1], case.label, channels=kept)


def test_channels_come_in_the_studys_order_each_normalised_by_itself(
    case: CaseFiles, tmp_path: Path
) -> None:
    scan, _ = read_case(tmp_path, case, task("flair", "t1"))
    assert np.array_equal(scan.image, np.stack([FLAIR, T1]))
    prepared = prepare(scan, PreprocessingConfig(shape=(8, 8, 8)))
    for channel, values in zip(prepared.image, (FLAIR, T1), strict=True):
        assert np.allclose(channel, (values - values.mean()) / values.std(), atol=1e-3)
    assert np.array_equal(scan.image, np.stack([FLAIR, T1]))  # preparing changes no scan
    assert np.array_equal(read_case(tmp_path, case, task("t1"))[0].image, T1[None])


def test_a_channel_with_other_voxels_over_the_same_box_is_brought_to_the_first_ones_grid(
    case: CaseFiles, tmp_path: Path
) -> None:
    axis = np.arange(24) * 0.5 - 0.25  # mm, of half voxels that fill the same box
    ramp = np.broadcast_to(axis[:, None, None], (24, 20, 16)).astype(np.float32)
    fine = np.diag([0.5, 0.5, 0.5, 1.0])
    fine[:3, 3] = -0.25
    save(tmp_path / "b.nii", ramp, fine)
    scan, _ = read_case(tmp_path, case, task("t1", "flair"))
    assert scan.image.shape == (2, 12, 10, 8)
    expected = np.broadcast_to(np.arange(12.0)[:, None, None], (12, 10, 8))
    assert np.allclose(scan.image[1], expected, atol=1e-4)
    assert scan.spacing_mm == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("values", "shift_mm", "distance"),
    [(FLAIR, 7.5, "7.5 mm away"), (FLAIR[:-4], 0.0, "4.0 mm away")],
)
def test_a_channel_that_shows_another_place_is_refused_with_the_distance(
    values: np.ndarray, shift_mm: float, distance: str, case: CaseFiles, tmp_path: Path
) -> None:
    affine = np.eye(4)
    affine[1, 3] = shift_mm
    save(tmp_path / "b.nii", values, affine)
    with pytest.raises(BrokenCase, match=f"channel flair: it is up to {distance}") as broken:
        read_case(tmp_path, case, task("t1", "flair"))
    assert broken.value.case == "one" and broken.value.finding.check == "channel_place"


@pytest.mark.parametrize("missing", ["refuse", "skip"])
def test_a_scan_without_a_channel_is_no_case_of_the_study(
    missing: str, case: CaseFiles, tmp_path: Path
) -> None:
    with pytest.raises(BrokenCase, match="the study's channel flair is missing; there is t1"):
        read_case(tmp_path, only(case, "t1"), task("t1", "flair", missing=missing))


@pytest.mark.parametrize("intensity", ["z_score", {"kind": "percentiles"}])
def test_zeros_take_the_place_of_a_missing_channel_through_all_steps(
    intensity: object, case: CaseFiles, tmp_path: Path
) -> None:
    several = task("t1", "flair", missing="zeros")
    scan, _ = read_case(tmp_path, only(case, "flair"), several)
    changed = Augmentation(copies=3, flip=(0,), rotate_deg=20, intensity=0.3, noise=0.5)
    config = PreprocessingConfig(
        shape=(8, 8, 8), intensity=intensity, crop="foreground", augmentation=changed
    )
    prepared = prepare(scan, config)
    assert not prepared.image[0].any() and prepared.image[1].any()
    for image, _ in drawn_pairs(prepared, config, seed=1):
        assert not image[0].any() and image[1].any()
    profile = profile_of(scan)
    assert sum(profile.intensities[0]) == 0 and sum(profile.intensities[1]) == pytest.approx(1)
    with pytest.raises(BrokenCase, match="channel t1 is missing"):
        read_case(tmp_path, CaseFiles("x", "p", "a.nii", "l.nii"), several)


def test_channels_are_dropped_at_the_studys_rate_and_never_all(case: CaseFiles, tmp_path: Path) -> None:
    scan, _ = read_case(tmp_path, case, task("t1", "flair", missing="zeros"))
    config = PreprocessingConfig(shape=(8, 8, 8), augmentation=Augmentation(copies=64, drop_channel=0.3))
    pairs = [p for seed in range(6) for p in drawn_pairs(prepare(scan, config), config, seed)]
    kept = torch.stack([image.flatten(1).any(1) for image, _ in pairs])
    assert kept.any(1).all()
    # one of two is dropped with 0.3, both with 0.09, of which half keeps each
    assert (~kept).double().mean(0).tolist() == pytest.approx([0.255, 0.255], abs=0.06)


def test_a_constant_channel_is_named(case: CaseFiles, tmp_path: Path) -> None:
    save(tmp_path / "b.nii", np.ones_like(FLAIR))
    with pytest.raises(BrokenCase, match="the channel flair is constant"):
        read_case(tmp_path, case, task("t1", "flair"))


def picture(path: Path, colours: np.ndarray) -> CaseFiles:
    Image.fromarray(colours).save(path)
    return CaseFiles("one", "p", path.name, "1")


PICTURES = ClassificationConfig(kind="classification", dims=2, labels={0: "well", 1: "ill"})
COLOURED = PICTURES.model_copy(update={"channels": "rgb"})
COLOURS = RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)


def test_a_study_of_colours_reads_red_green_and_blue(tmp_path: Path) -> None:
    scan, _ = read_case(tmp_path, picture(tmp_path / "a.png", COLOURS), COLOURED)
    assert np.array_equal(scan.image, np.moveaxis(COLOURS, -1, 0))
    np.savez(tmp_path / "many.npz", images=np.stack([COLOURS, COLOURS // 2]))
    listed = CaseFiles("one", "p", "many.npz#images/1", "1")
    assert np.array_equal(
        read_case(tmp_path, listed, COLOURED)[0].image, np.moveaxis(COLOURS // 2, -1, 0)
    )


def test_a_picture_in_colour_is_none_of_a_grey_study_and_the_reverse(tmp_path: Path) -> None:
    with pytest.raises(BrokenCase, match="the picture is in colour, and the study's images are grey"):
        read_case(tmp_path, picture(tmp_path / "a.png", COLOURS), PICTURES)
    with pytest.raises(BrokenCase, match="the picture is grey, and the study's pictures are in colour"):
        read_case(tmp_path, picture(tmp_path / "b.png", COLOURS[..., 0]), COLOURED)


def test_a_grey_picture_that_is_stored_in_colour_serves_a_grey_study(tmp_path: Path) -> None:
    grey = np.repeat(COLOURS[..., :1], 3, axis=-1)
    for name in ("a.png", "a.jpg"):
        scan, _ = read_case(tmp_path, picture(tmp_path / name, grey), PICTURES)
        assert scan.image.shape == (1, 9, 7)


def test_labels_mean_what_the_hospitals_map_says(case: CaseFiles, tmp_path: Path) -> None:
    save(tmp_path / "l.nii", (255 * LABEL).astype(np.uint8))
    mapped = CaseFiles("one", "p", "a.nii", "l.nii", label_map=((255, 1),))
    plain = SegmentationConfig(kind="segmentation", dims=3, labels={1: "lesion"})
    assert np.array_equal(read_case(tmp_path, mapped, plain)[0].target, LABEL)
    with pytest.raises(BrokenCase, match="the value 255"):
        read_case(tmp_path, CaseFiles("one", "p", "a.nii", "l.nii"), plain)
    picture(tmp_path / "a.png", COLOURS[..., 0])
    listed = CaseFiles("one", "p", "a.png", "4", label_map=((4, 1),))
    assert int(read_case(tmp_path, listed, PICTURES)[0].target) == 1


def test_two_values_that_change_places_are_both_mapped(case: CaseFiles, tmp_path: Path) -> None:
    values = np.arange(LABEL.size).reshape(LABEL.shape) % 3
    save(tmp_path / "l.nii", values.astype(np.uint8))
    mapped = CaseFiles("one", "p", "a.nii", "l.nii", label_map=((1, 2), (2, 1)))
    two = SegmentationConfig(kind="segmentation", dims=3, labels={1: "a", 2: "b"})
    assert np.array_equal(read_case(tmp_path, mapped, two)[0].target, np.array([0, 2, 1])[values])


def test_the_cache_knows_every_channel(case: CaseFiles, tmp_path: Path) -> None:
    cache = ScanCache(tmp_path / "cache", 2**30)
    config = PreprocessingConfig(shape=(8, 8, 8))
    both = task("t1", "flair")
    before = cache.reader(tmp_path, both, config)(case)
    again = cache.reader(tmp_path, both, config)(case)
    assert torch.equal(again.load().image, before.load().image)
    assert again.profile.intensities == before.profile.intensities
    save(tmp_path / "b.nii", FLAIR[::-1].copy())
    changed = cache.reader(tmp_path, both, config)(case)
    assert not torch.equal(changed.load().image[1], before.load().image[1])
    assert torch.equal(changed.load().image[0], before.load().image[0])


@pytest.mark.parametrize("changes", [{}, {"flip": (0,)}, {"noise": 0.1}, {"intensity": 0.1}])
def test_drawing_images_changes_no_prepared_scan(
    changes: dict[str, object], case: CaseFiles, tmp_path: Path
) -> None:
    scan, _ = read_case(tmp_path, case, task("t1", "flair", missing="zeros"))
    augmentation = Augmentation(copies=8, drop_channel=0.5, **changes)
    config = PreprocessingConfig(shape=(12, 10, 8), augmentation=augmentation)
    prepared = prepare(scan, config)
    before = prepared.image.clone()
    _ = [drawn_pairs(prepared, config, seed) for seed in range(4)]
    assert torch.equal(prepared.image, before)


def test_a_channel_that_may_be_mirrored_is_refused(case: CaseFiles, tmp_path: Path) -> None:
    unstated = nib.Nifti1Image(FLAIR, np.diag([-1.0, 1, 1, 1]))
    unstated.header["qform_code"] = unstated.header["sform_code"] = 0
    nib.save(unstated, tmp_path / "b.nii")
    with pytest.raises(BrokenCase, match="one may be mirrored|mm away") as broken:
        read_case(tmp_path, case, task("t1", "flair"))
    assert broken.value.finding.check == "channel_place"


def test_pictures_of_other_sizes_are_no_channels_of_one_another(tmp_path: Path) -> None:
    for name, shape in (("a", (9, 7)), ("b", (10, 7))):
        Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    both = PICTURES.model_copy(update={"channels": ("a", "b")})
    listed = CaseFiles("one", "p", "a.png", "1", channels=(("a", "a.png"), ("b", "b.png")))
    with pytest.raises(BrokenCase, match=r"channel b: its shape is \(10, 7\)"):
        read_case(tmp_path, listed, both)


def test_a_colour_that_a_picture_has_not_is_no_missing_channel(tmp_path: Path) -> None:
    colours = COLOURS.copy()
    colours[..., 2] = 0
    scan, _ = read_case(tmp_path, picture(tmp_path / "a.png", colours), COLOURED)
    window = {"kind": "window", "centre": 128, "width": 256}
    prepared = prepare(scan, PreprocessingConfig(shape=(8, 8), intensity=window))
    assert scan.missing == () and prepared.image[2].unique().tolist() == [-1.0]
