"""NIfTI files: shapes, units, types, and the two places that a header may state."""

import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from models.settings.images import PreprocessingConfig
from models.settings.tasks import ClassificationConfig, SegmentationConfig
from sites.imaging.image import Unreadable
from sites.imaging.images import read_image
from sites.imaging.intake import BrokenCase, read_case
from sites.imaging.reading import read_and_prepare, reader
from sites.listing.cases import CaseFiles

RNG = np.random.default_rng(0)
CASE = CaseFiles("c", "p", "image.nii", "label.nii")


def task(dims: int) -> SegmentationConfig:
    return SegmentationConfig(kind="segmentation", dims=dims, labels={1: "core", 2: "rim"})


def save(path: Path, values: np.ndarray, affine: np.ndarray | None = None, **header: object) -> None:
    image = nib.Nifti1Image(values, np.eye(4) if affine is None else affine)
    for field, value in header.items():
        image.header[field] = value
    nib.save(image, path)


def pair(folder: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return an image and its label, and write both."""
    image, label = RNG.normal(size=shape).astype(np.float32), RNG.integers(0, 3, shape).astype(np.uint8)
    save(folder / "image.nii", image)
    save(folder / "label.nii", label)
    return image, label


@pytest.mark.parametrize("shape", [(12, 10), (12, 10, 1), (12, 10, 1, 1)])
def test_a_flat_image_serves_a_study_of_two_dimensions(shape: tuple[int, ...], tmp_path: Path) -> None:
    image, label = pair(tmp_path, shape)
    scan, findings = read_case(tmp_path, CASE, task(2))
    assert np.array_equal(scan.image, image.reshape(1, 12, 10))
    assert np.array_equal(scan.target, label.reshape(12, 10))
    assert scan.spacing_mm == (1, 1)
    assert not findings


def test_a_flat_image_in_a_sagittal_plane_has_its_own_two_axes(tmp_path: Path) -> None:
    affine = np.array([[0, 0, 5.0, 0], [2, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 1]])
    values = RNG.normal(size=(12, 10, 1)).astype(np.float32)
    save(tmp_path / "image.nii", values, affine)
    image = read_image(tmp_path, "image.nii").of_dims(2)
    assert np.array_equal(image.voxels, values[..., 0])
    assert image.spacing_mm == (2, 3)


@pytest.mark.parametrize(
    ("unit", "size"), [("meter", 1000), ("mm", 1), ("micron", 0.001), ("unknown", 1)]
)
def test_units_are_converted_to_millimetres(unit: str, size: float, tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.diag([1.5 / size, 2 / size, 3 / size, 1]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii")
    assert read_image(tmp_path, "a.nii").spacing_mm == pytest.approx((1.5, 2, 3))


@pytest.mark.parametrize("kind", [np.float64, np.int64, np.uint16, np.int8])
def test_any_real_type_is_read(kind: type, tmp_path: Path) -> None:
    values = RNG.integers(0, 100, (4, 5, 6)).astype(kind)
    image = nib.Nifti1Image(values, np.eye(4), dtype=kind)
    nib.save(image, tmp_path / "a.nii")
    assert np.array_equal(read_image(tmp_path, "a.nii").voxels, values.astype(np.float32))


def test_complex_and_colour_voxels_are_refused_with_their_reason(tmp_path: Path) -> None:
    save(tmp_path / "complex.nii", np.ones((4, 4, 4), np.complex64))
    rgb = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    save(tmp_path / "rgb.nii", rgb)
    for name in ("complex.nii", "rgb.nii"):
        with pytest.raises(Unreadable, match="complex or in colour"):
            read_image(tmp_path, name)


def broken(folder: Path, dims: int = 3) -> str:
    with pytest.raises(BrokenCase) as caught:
        read_case(folder, CASE, task(dims))
    return f"{caught.value.finding.check}: {caught.value.finding.text}"


@pytest.mark.parametrize("bare", ["image", "label"])
def test_a_pair_of_which_one_states_no_orientation_never_trains(bare: str, tmp_path: Path) -> None:
    """nibabel lets its x run the other way, and where the field of view is centred the corners agree."""
    shape = (20, 22, 18)
    affine = np.diag([2.0, 2, 3, 1])
    affine[:3, 3] = [-19, -21, -25.5]
    for name in ("image", "label"):
        values = RNG.integers(0, 3, shape).astype(np.uint8)
        if name == bare:
            image = nib.Nifti1Image(values, None)
            image.header.set_zooms((2, 2, 3))
            nib.save(image, tmp_path / f"{name}.nii")
        else:
            save(tmp_path / f"{name}.nii", values, affine)
    other = {"image": "label", "label": "image"}[bare]
    assert f"the {bare} states no orientation (qform and sform codes are 0), the {other} does" in broken(
        tmp_path
    )


def test_a_pair_without_any_orientation_is_read_as_it_lies(tmp_path: Path) -> None:
    values = [RNG.integers(0, 3, (6, 5, 4)).astype(np.uint8) for _ in range(2)]
    for name, each in zip(("image", "label"), values, strict=True):
        nib.save(nib.Nifti1Image(each, None), tmp_path / f"{name}.nii")
    scan, findings = read_case(tmp_path, CASE, task(3))
    assert np.array_equal(scan.image[0], values[0][::-1])
    assert np.array_equal(scan.target, values[1][::-1])
    assert [each.check for each in findings] == ["orientation"]


def two_places(path: Path, values: np.ndarray, qform: np.ndarray, sform: np.ndarray) -> None:
    image = nib.Nifti1Image(values, sform)
    image.set_qform(qform, 1)
    image.set_sform(sform, 2)
    nib.save(image, path)


def test_a_label_that_lies_by_the_others_qform_never_trains(tmp_path: Path) -> None:
    """The image's two places differ by a flip; a tool that goes by the qform has drawn the label."""
    shape = (20, 22, 18)
    qform, flipped = np.diag([2.0, 2, 3, 1]), np.diag([-2.0, 2, 3, 1])
    qform[:3, 3], flipped[:3, 3] = [-19, -21, -25.5], [19, -21, -25.5]
    values = RNG.integers(0, 3, shape).astype(np.uint8)
    two_places(tmp_path / "image.nii", values.astype(np.float32), qform, flipped)
    save(tmp_path / "label.nii", values, qform)
    assert "qform and sform of the image differ" in broken(tmp_path)
    two_places(tmp_path / "label.nii", values, qform, flipped)
    scan, findings = read_case(tmp_path, CASE, task(3))
    assert np.array_equal(scan.target, values[::-1])
    assert ("places", "qform and sform differ; the sform was taken") in [
        (each.check, each.text) for each in findings
    ]


def test_places_that_differ_by_rounding_are_one(tmp_path: Path) -> None:
    affine = np.diag([0.9, 0.9, 3, 1])
    two_places(tmp_path / "a.nii", np.ones((40, 40, 20), np.float32), affine, affine + 1e-4)
    assert read_image(tmp_path, "a.nii").placement.other is None


@pytest.mark.parametrize(
    ("off", "outcome"), [(1.2e-7, []), (2e-5, []), (0.02, ["rounded_label"]), (0.3, "label_values")]
)
def test_label_values_off_by_rounding_are_labels_and_more_is_said(
    off: float, outcome: list[str] | str, tmp_path: Path
) -> None:
    _, label = pair(tmp_path, (8, 9, 10))
    save(tmp_path / "label.nii", (label * (1 + off)).astype(np.float32))
    if isinstance(outcome, str):
        assert broken(tmp_path).startswith(outcome)
        return
    scan, findings = read_case(tmp_path, CASE, task(3))
    assert np.array_equal(scan.target, label)
    assert [each.check for each in findings] == outcome


def test_labels_that_nibabel_scaled_into_an_integer_type_are_labels(tmp_path: Path) -> None:
    _, label = pair(tmp_path, (8, 9, 10))
    image = nib.Nifti1Image(label.astype(np.float64), np.eye(4))
    image.header.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "label.nii")
    assert not np.array_equal(nib.load(tmp_path / "label.nii").get_fdata(), label)
    assert np.array_equal(read_case(tmp_path, CASE, task(3))[0].target, label)


def test_a_label_that_vanishes_at_the_studys_spacing_is_a_finding(tmp_path: Path) -> None:
    image = RNG.normal(size=(24, 24, 24)).astype(np.float32)
    label = np.zeros(image.shape, np.uint8)
    label[4:12, 4:12, 4:12], label[17, 17, 17] = 1, 2
    save(tmp_path / "image.nii", image)
    save(tmp_path / "label.nii", label)
    config = PreprocessingConfig(shape=(8, 8, 8), spacing_mm=(4.0, 4.0, 4.0))
    _, findings, _ = read_and_prepare(tmp_path, CASE, task(3), config)
    assert [(each.check, each.text) for each in findings] == [
        ("vanished_label", "at the study's spacing and shape label 2 vanishes")
    ]


def test_an_image_without_a_label_in_the_list_is_named(tmp_path: Path) -> None:
    save(tmp_path / "image.nii", RNG.normal(size=(8, 8, 8)).astype(np.float32))
    with pytest.raises(BrokenCase, match="the list has no label for this image"):
        read_case(tmp_path, CaseFiles("c", "p", "image.nii", ""), task(3))


@pytest.mark.parametrize(("turn", "fits"), [(0.0, True), (50.0, False)])
def test_flat_pairs_are_compared_in_their_own_plane(turn: float, fits: bool, tmp_path: Path) -> None:
    """A coronal slice: the label lies 50 mm off along the second axis of the plane, or not."""
    values = RNG.integers(0, 3, (20, 1, 18)).astype(np.uint8)
    affine = np.diag([1.0, 10, 2, 1])
    other = np.diag([1.0, 1, 2, 1])  # another thickness of the slice says nothing
    other[2, 3] = turn
    save(tmp_path / "image.nii", values.astype(np.float32), affine)
    save(tmp_path / "label.nii", values, other)
    if not fits:
        assert broken(tmp_path, dims=2).startswith("label_affine: image and label are up to 50.0 mm")
        return
    scan, _ = read_case(tmp_path, CASE, task(2))
    assert np.array_equal(scan.target, values[:, 0])
    assert scan.spacing_mm == (1, 2)


def test_odd_headers_that_other_tools_read_are_read(tmp_path: Path) -> None:
    values = RNG.normal(size=(6, 5, 4)).astype(np.float32)
    image = nib.Nifti1Image(values, np.eye(4))
    image.set_qform(np.eye(4), 1)
    image.header["quatern_b"] = image.header["quatern_c"] = 0.70712  # longer than one
    image.header["xyzt_units"] = 7
    nib.save(image, tmp_path / "a.nii")
    found = read_image(tmp_path, "a.nii")
    assert np.array_equal(found.voxels, values)
    assert found.placement.other is None


def test_places_are_compared_in_millimetres_also_where_the_file_has_metres(tmp_path: Path) -> None:
    qform, sform = np.diag([0.001, 0.001, 0.001, 1]), np.diag([-0.001, 0.001, 0.001, 1])
    image = nib.Nifti1Image(np.ones((6, 5, 4), np.float32), sform)
    image.set_qform(qform, 1)
    image.set_sform(sform, 2)
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "a.nii")
    found = read_image(tmp_path, "a.nii")
    assert np.allclose(found.placement.other, np.eye(4), atol=1e-4)
    assert found.spacing_mm == pytest.approx((1, 1, 1))


@pytest.mark.parametrize("name", ["a.nii#2", "a.nii#-1", "a.nii#x", "b.npz#images/-1", "b.npz#no/0"])
def test_a_part_that_a_file_has_not_is_named(name: str, tmp_path: Path) -> None:
    save(tmp_path / "a.nii", np.ones((4, 4, 4, 2), np.float32))
    np.savez(tmp_path / "b.npz", images=np.ones((3, 4, 4)))
    with pytest.raises(Unreadable, match="expected|no array"):
        read_image(tmp_path, name)


@pytest.mark.parametrize(("stored", "times"), [(np.int16, 2.2), (np.float32, 2.2), (np.float64, 4.2)])
def test_reading_needs_memory_for_what_is_stored_and_two_copies_at_most(
    stored: type, times: float, tmp_path: Path
) -> None:
    """A whole-body scan of 1 GiB must fit where a hospital has 8: no copy for each step."""
    values = RNG.integers(0, 1000, (64, 64, 48)).astype(stored)
    save(tmp_path / "image.nii.gz", values)
    read_image(tmp_path, "image.nii.gz")  # what is imported at first use counts not
    tracemalloc.start()
    try:
        read_image(tmp_path, "image.nii.gz")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < times * 4 * values.size + 2**20


def test_a_label_that_the_studys_shape_cuts_away_is_a_finding(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(100, 20, (40, 16, 16)).astype(np.float32)
    label = np.zeros((40, 16, 16), np.uint8)
    label[:4] = 1
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    nib.save(nib.Nifti1Image(label, np.eye(4)), tmp_path / "l.nii")
    task = SegmentationConfig(kind="segmentation", dims=3, labels={1: "lesion"})
    case = CaseFiles("c", "p", "a.nii", "l.nii")
    found = reader(tmp_path, task, PreprocessingConfig(shape=(16, 16, 16)))(case).findings
    assert "vanished_label" in {finding.check for finding in found}
    patches = PreprocessingConfig(shape=(16, 16, 16), fit={"kind": "patches"})
    assert not reader(tmp_path, task, patches)(case).findings


def test_a_channel_that_is_constant_after_preparation_is_a_finding(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, level in (("a", 50), ("b", 3000)):
        values = rng.normal(level, 10, (16, 16, 16)).astype(np.float32)
        nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / f"{name}.nii")
    task = ClassificationConfig(
        kind="classification", dims=3, labels={0: "well", 1: "ill"}, channels=("a", "b")
    )
    config = PreprocessingConfig(
        shape=(16, 16, 16), intensity={"kind": "window", "centre": 40, "width": 400}
    )
    case = CaseFiles("c", "p", "a.nii", "1", channels=(("a", "a.nii"), ("b", "b.nii")))
    (finding,) = reader(tmp_path, task, config)(case).findings
    assert (finding.check, finding.text) == (
        "constant_channel", "channel 1 is constant after preparation"
    )  # fmt: skip
