"""DICOM images without a place in space: X-rays, ultrasound, photographs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels.processing import convert_color_space
from pydicom.uid import UltrasoundMultiFrameImageStorage
from scanner import CAPTURE, COLOURS, PHOTO, PIXELS, VOLUME, XRAY, write_flat, write_series

from models.settings.tasks import ClassificationConfig, SegmentationConfig
from sites.imaging.images import Unreadable, read_image
from sites.imaging.intake import BrokenCase, read_case
from sites.listing.cases import CaseFiles

RNG = np.random.default_rng(2)


def test_an_xray_is_its_measured_values_rows_first_with_the_detectors_spacing(tmp_path: Path) -> None:
    path = write_flat(tmp_path / "a", PIXELS, **XRAY, RescaleSlope=2, RescaleIntercept=-10)
    for name in ("a", f"a/{path.name}"):
        image = read_image(tmp_path, name)
        assert np.array_equal(image.voxels, 2.0 * PIXELS - 10)
        assert image.spacing_mm == (0.14, 0.2) and image.colours is None


def test_an_inverted_xray_is_turned_round_and_an_inverted_ultrasound_is_not(tmp_path: Path) -> None:
    inverted = {"PhotometricInterpretation": "MONOCHROME1"}
    write_flat(tmp_path / "a", PIXELS, **XRAY, **inverted)
    expected = float(PIXELS.max()) + PIXELS.min() - PIXELS
    assert np.array_equal(read_image(tmp_path, "a").voxels, expected)
    write_flat(tmp_path / "b", PIXELS, **{**XRAY, "Modality": "US"}, **inverted)
    assert np.array_equal(read_image(tmp_path, "b").voxels, PIXELS)


def test_a_photograph_has_its_colours_whatever_space_it_is_stored_in(tmp_path: Path) -> None:
    write_flat(tmp_path / "a", COLOURS, **PHOTO)
    image = read_image(tmp_path, "a")
    assert np.array_equal(image.colours, np.moveaxis(COLOURS, -1, 0))
    assert image.voxels.shape == (9, 7) and image.spacing_mm == (1.0, 1.0)
    other = convert_color_space(COLOURS, "RGB", "YBR_FULL")
    write_flat(tmp_path / "b", other, **{**PHOTO, "PhotometricInterpretation": "YBR_FULL"})
    assert np.abs(read_image(tmp_path, "b").colours - image.colours).max() <= 2


def test_a_frame_of_a_cine_is_named_by_its_number(tmp_path: Path) -> None:
    frames = RNG.integers(0, 256, (4, 9, 7), dtype=np.uint8)
    region = Dataset()
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, 0.03
    path = write_flat(
        tmp_path / "a", frames.reshape(36, 7), SOPClassUID=UltrasoundMultiFrameImageStorage,
        Modality="US", PixelRepresentation=0, BitsAllocated=8, BitsStored=8, HighBit=7, Rows=9,
        NumberOfFrames=4, PixelSpacing=None, SequenceOfUltrasoundRegions=[region],
    )  # fmt: skip
    for number in range(4):
        image = read_image(tmp_path, f"a/{path.name}#{number}")
        assert np.array_equal(image.voxels, frames[number])
        assert image.spacing_mm == pytest.approx((0.3, 0.2))
    with pytest.raises(Unreadable, match="the file has 4 frames; name one in the list, as file#0"):
        read_image(tmp_path, "a")
    with pytest.raises(Unreadable, match="expected the number of a frame below 4, got '4'"):
        read_image(tmp_path, "a#4")


def test_a_palette_gives_its_colours(tmp_path: Path) -> None:
    table = [RNG.integers(0, 256, 256, dtype=np.uint16) for _ in range(3)]
    names = ("Red", "Green", "Blue")
    lut = {f"{n}PaletteColorLookupTableDescriptor": [256, 0, 16] for n in names}
    lut |= {
        f"{n}PaletteColorLookupTableData": (values * 257).astype("<u2").tobytes()
        for n, values in zip(names, table, strict=True)
    }
    stored = RNG.integers(0, 256, (9, 7), dtype=np.uint8)
    write_flat(
        tmp_path / "a", stored, **{**PHOTO, "SamplesPerPixel": 1, "PlanarConfiguration": None,
        "PhotometricInterpretation": "PALETTE COLOR", **lut},
    )  # fmt: skip
    colours = read_image(tmp_path, "a").colours
    assert np.array_equal(colours, np.stack([values[stored] for values in table]))
    high = {
        k: (np.frombuffer(v, "<u2") & 0xFF00).tobytes() for k, v in lut.items() if k.endswith("Data")
    }
    write_flat(
        tmp_path / "b", stored, **{**PHOTO, "SamplesPerPixel": 1, "PlanarConfiguration": None,
        "PhotometricInterpretation": "PALETTE COLOR", **lut, **high},
    )  # fmt: skip
    assert np.array_equal(read_image(tmp_path, "b").colours, colours)


def test_a_file_without_the_preamble_is_read(tmp_path: Path) -> None:
    path = write_flat(tmp_path / "a", PIXELS, **XRAY)
    path.write_bytes(path.read_bytes()[132:])
    assert np.array_equal(read_image(tmp_path, "a").voxels, PIXELS)
    path.write_bytes(b"no image at all " * 40)
    with pytest.raises(Unreadable, match="it is not DICOM"):
        read_image(tmp_path, "a")


def test_two_views_in_one_folder_are_two_images(tmp_path: Path) -> None:
    write_flat(tmp_path / "a", PIXELS, **XRAY)
    write_flat(tmp_path / "a", PIXELS[::-1].copy(), **XRAY)
    with pytest.raises(Unreadable, match="holds 2 images without a place in space; list each file"):
        read_image(tmp_path, "a")


def test_flat_images_beside_a_volume_are_not_used_and_said(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    before = read_image(tmp_path, "a")
    write_flat(tmp_path / "a", PIXELS, **XRAY)
    after = read_image(tmp_path, "a")
    assert np.array_equal(after.voxels, before.voxels)
    assert "1 x image without a position is not used" in after.notes


def test_a_screenshot_is_no_photograph(tmp_path: Path) -> None:
    write_flat(tmp_path / "a", COLOURS, **{**PHOTO, "SOPClassUID": CAPTURE})
    with pytest.raises(Unreadable, match="holds no images of a scan"):
        read_image(tmp_path, "a")


def test_a_mask_that_was_drawn_as_a_picture_fits_an_xray(tmp_path: Path) -> None:
    write_flat(tmp_path / "a", PIXELS, **XRAY)
    mask = (PIXELS > 2000).astype(np.uint8)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    task = SegmentationConfig(kind="segmentation", dims=2, labels={1: "lung"})
    scan, _ = read_case(tmp_path, CaseFiles("c", "p", "a", "mask.png"), task)
    assert np.array_equal(scan.target, mask) and scan.spacing_mm == (0.14, 0.2)


def test_a_photograph_serves_a_study_of_colours(tmp_path: Path) -> None:
    write_flat(tmp_path / "a", COLOURS, **PHOTO)
    task = ClassificationConfig(kind="classification", dims=2, labels={0: "a", 1: "b"}, channels="rgb")
    scan, _ = read_case(tmp_path, CaseFiles("c", "p", "a", "1"), task)
    assert scan.image.shape == (3, 9, 7)


def test_views_of_one_scale_have_it_and_of_several_it_is_said(tmp_path: Path) -> None:
    def region(sides: tuple[float, float], units: int = 3) -> Dataset:
        one = Dataset()
        one.PhysicalUnitsXDirection, one.PhysicalUnitsYDirection = units, 3
        one.PhysicalDeltaX, one.PhysicalDeltaY = sides
        return one

    ultrasound = {**XRAY, "Modality": "US", "ImagerPixelSpacing": None}
    alike, doppler, other = region((0.02, 0.02)), region((0.01, 0.5), 4), region((0.05, 0.05))
    for name, regions, sides in (
        ("a", [alike, alike], (0.2, 0.2)), ("b", [alike, doppler], (0.2, 0.2)),
        ("c", [alike, other], (1.0, 1.0)),
    ):  # fmt: skip
        write_flat(tmp_path / name, PIXELS, **ultrasound, SequenceOfUltrasoundRegions=regions)
        image = read_image(tmp_path, name)
        assert image.spacing_mm == pytest.approx(sides)
        assert bool(image.notes) == (name == "c")


def test_a_projection_with_a_position_and_a_slice_listed_by_itself_are_flat(tmp_path: Path) -> None:
    placed = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    write_flat(tmp_path / "a", PIXELS, **XRAY, **placed)
    assert np.array_equal(read_image(tmp_path, "a").voxels, PIXELS)
    write_series(tmp_path / "ct", RescaleSlope=2)
    path = sorted((tmp_path / "ct").iterdir())[2]
    image = read_image(tmp_path, f"ct/{path.name}")
    assert np.array_equal(image.voxels, 2.0 * VOLUME[2]) and image.spacing_mm == (1.5, 0.75)
    volumes = SegmentationConfig(kind="segmentation", dims=3, labels={1: "a"})
    with pytest.raises(BrokenCase, match="expected 3 dimensions, got 2"):
        read_case(tmp_path, CaseFiles("c", "p", f"ct/{path.name}", "x.nii"), volumes)


def test_a_capture_that_says_it_is_a_radiograph_is_read_where_the_list_names_it(tmp_path: Path) -> None:
    path = write_flat(tmp_path / "a", PIXELS, **{**XRAY, "SOPClassUID": CAPTURE, "Modality": "CR"})
    assert np.array_equal(read_image(tmp_path, f"a/{path.name}").voxels, PIXELS)
    with pytest.raises(Unreadable, match="1 x Secondary Capture Image Storage is not used"):
        read_image(tmp_path, "a")


def test_a_dicom_file_without_an_end_of_its_name_is_read(tmp_path: Path) -> None:
    path = write_flat(tmp_path / "a", PIXELS, **XRAY)
    path.rename(tmp_path / "1.2.840.5")
    assert np.array_equal(read_image(tmp_path, "1.2.840.5").voxels, PIXELS)
