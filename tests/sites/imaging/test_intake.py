import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from models.settings.tasks import ClassificationConfig, SegmentationConfig
from sites.imaging.intake import BrokenCase, read_scan
from sites.listing.cases import CaseFiles
from sites.listing.listing import read_listing

TASK = SegmentationConfig(kind="segmentation", dims=3, labels={1: "head", 2: "tail"})


@pytest.fixture
def ward(tmp_path: Path, small_wards) -> Path:
    return small_wards(tmp_path) / "south"


@pytest.fixture
def case(ward: Path) -> CaseFiles:
    return read_listing(ward).cases[0]


def rewrite(path: Path, values: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(values, nib.load(path).affine), path)


def test_every_case_has_its_patient_and_some_patients_have_two(ward: Path) -> None:
    cases = read_listing(ward).cases
    assert len({c.case for c in cases}) == len(cases) > len({c.patient for c in cases}) == 12


def test_a_scan_is_read_in_canonical_orientation_whatever_it_is_on_disk(
    ward: Path, case: CaseFiles
) -> None:
    on_disk = nib.load(ward / case.image)
    assert nib.aff2axcodes(on_disk.affine) == ("P", "I", "R")
    scan = read_scan(ward, case, TASK)
    canonical = nib.as_closest_canonical(on_disk)
    assert nib.aff2axcodes(canonical.affine) == ("R", "A", "S")
    assert np.array_equal(scan.image, canonical.get_fdata(dtype=np.float32)[None])
    assert scan.spacing_mm == (2.0, 2.0, 2.0)
    assert scan.target.shape == scan.image.shape[1:]
    assert set(np.unique(scan.target)) == {0, 1, 2}


@pytest.mark.parametrize(
    ("file", "make", "reason"),
    [
        ("image", lambda v: np.where(np.arange(v.size).reshape(v.shape) == 7, np.nan, v), "NaN"),
        ("image", np.ones_like, "constant"),
        ("image", lambda v: np.stack([v, v], -1), "expected 3 dimensions, got 4"),
        ("image", lambda v: v[:-1], "has shape"),
        ("label", lambda v: v + (v == 2) * 5, "the value 7, which is not in the study"),
        ("label", lambda v: v[:, :-1], "its label"),
    ],
)
def test_a_broken_case_is_named_with_its_reason(
    file: str, make, reason: str, ward: Path, case: CaseFiles
) -> None:
    path = ward / getattr(case, file)
    rewrite(path, make(np.asarray(nib.load(path).dataobj, dtype=np.float32)))
    with pytest.raises(BrokenCase, match=reason) as caught:
        read_scan(ward, case, TASK)
    assert caught.value.case == case.case
    assert case.case not in str(caught.value)


def truncated(whole: bytes) -> bytes:
    return whole[:2000]


def flipped(whole: bytes) -> bytes:
    return whole[:1000] + bytes(255 - b for b in whole[1000:1400]) + whole[1400:]


def with_header(offset: int, value: int) -> Callable[[bytes], bytes]:
    def change(whole: bytes) -> bytes:
        content = bytearray(gzip.decompress(whole))
        content[offset : offset + 2] = value.to_bytes(2, "little", signed=True)
        return gzip.compress(bytes(content))

    return change


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: b"no nifti at all",
        truncated,
        flipped,
        with_header(70, 999),  # an unknown data type
        with_header(42, -5),  # a negative side
        with_header(42, 32000),  # a side that the file does not hold
        with_header(40, 9),  # nine dimensions
    ],
)
def test_a_damaged_file_is_a_broken_case(
    damage: Callable[[bytes], bytes], ward: Path, case: CaseFiles
) -> None:
    path = ward / case.image
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BrokenCase, match="can't be read|can't be inverted|cut off or damaged"):
        read_scan(ward, case, TASK)


def test_a_missing_file_and_one_outside_the_folder_are_broken_cases(ward: Path, case: CaseFiles) -> None:
    outside = ward.parent / "elsewhere.nii.gz"
    (ward / case.image).rename(outside)
    with pytest.raises(BrokenCase, match="missing"):
        read_scan(ward, case, TASK)
    (ward / case.image).symlink_to(outside)
    with pytest.raises(BrokenCase, match="outside the data folder"):
        read_scan(ward, case, TASK)


def test_a_class_outside_the_studys_is_a_broken_case(ward: Path, case: CaseFiles) -> None:
    task = ClassificationConfig(kind="classification", dims=3, labels={0: "normal", 1: "ill"})
    well = CaseFiles(case.case, case.patient, case.image, "1")
    assert read_scan(ward, well, task).target == 1
    with pytest.raises(BrokenCase, match="not one of the study's classes"):
        read_scan(ward, CaseFiles(case.case, case.patient, case.image, "2"), task)
