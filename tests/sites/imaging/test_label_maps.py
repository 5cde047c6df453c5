"""Label maps from a mask or a probability for each structure."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image as Pictures

from models.settings.tasks import SegmentationConfig
from sites.admission.admission import check_labels
from sites.hospital import Hospital
from sites.imaging.intake import BrokenCase, read_case
from sites.imaging.label_maps import _shares
from sites.listing.cases import CaseFiles, Listing
from sites.policy.policy import Refused

TASK = SegmentationConfig(kind="segmentation", dims=3, labels={1: "white-matter", 2: "grey-matter"})
SHAPE = (6, 5, 4)
RNG = np.random.default_rng(0)


def save(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> None:
    nib.save(nib.Nifti1Image(values, np.diag([2.0, 1, 1, 1]) if affine is None else affine), path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    save(tmp_path / "image.nii.gz", RNG.normal(100, 20, SHAPE).astype(np.float32))
    return tmp_path


def case(**changes: object) -> CaseFiles:
    masks = (("grey-matter", "gm.nii.gz"), ("white-matter", "wm.nii.gz"))
    return CaseFiles("c", "p", "image.nii.gz", "gm.nii.gz", **{"masks": masks, **changes})


def blocks() -> tuple[np.ndarray, np.ndarray]:
    grey, white = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    grey[:3], white[4:] = 1, 1
    return grey, white


@pytest.mark.parametrize("value", [1, 255])
def test_a_mask_for_each_structure_is_one_label_map(value: int, data: Path) -> None:
    grey, white = blocks()
    save(data / "gm.nii.gz", grey * value)
    save(data / "wm.nii.gz", white * value)
    scan, findings = read_case(data, case(), TASK)
    assert np.array_equal(scan.target, 2 * grey.astype(int) + white)
    assert findings == []


def test_of_probabilities_the_largest_is_the_label_and_none_where_the_rest_is_larger(data: Path) -> None:
    shares = np.zeros((2, *SHAPE), np.float32)
    shares[:, 0, 0] = np.array([[0.4, 0.35], [0.4, 0.1], [0.5, 0], [0.49, 0]]).T
    save(data / "gm.nii.gz", shares[0])
    save(data / "wm.nii.gz", shares[1])
    target = read_case(data, case(), TASK)[0].target
    assert target[0, 0].tolist() == [2, 0, 2, 0]
    assert target.sum() == 4


@given(arrays(np.float64, (3, 4, 5), elements=st.floats(0, 1)))
def test_shares_of_two_values_are_those_of_the_mask(values: np.ndarray) -> None:
    shares = _shares((values > 0.5).astype(np.float32) * 7, "liver")
    assert np.array_equal(shares, values > 0.5)
    assert np.allclose(_shares(values.astype(np.float32), "liver"), values)


def fault_of(data: Path, one: CaseFiles) -> tuple[str, str]:
    with pytest.raises(BrokenCase) as broken:
        read_case(data, one, TASK)
    return broken.value.finding.check, broken.value.finding.text


def test_masks_that_do_not_fit_are_named(data: Path) -> None:
    grey, white = blocks()
    save(data / "wm.nii.gz", white)
    save(data / "gm.nii.gz", np.ones(SHAPE, np.uint8))
    assert fault_of(data, case()) == (
        "label_values", "the masks overlap in 40 voxels; write such labels into one image"
    )  # fmt: skip
    save(data / "gm.nii.gz", np.arange(120, dtype=np.uint8).reshape(SHAPE))
    assert (
        "the mask of grey-matter has values from 0 to 119; expected 0 and one"
        in fault_of(data, case())[1]
    )
    save(data / "gm.nii.gz", grey[:, :, :2])
    assert fault_of(data, case())[0] == "label_shape"
    save(data / "gm.nii.gz", grey, np.diag([2.0, 1, 1, 1]) + np.eye(4, k=3) * 30)
    assert fault_of(data, case())[0] == "label_affine"
    assert fault_of(data, case(masks=(("grey-matter", "none.nii.gz"),)))[0] == "missing"


def test_structures_are_joined_by_the_hospitals_map_and_others_left_out(data: Path) -> None:
    grey, white = blocks()
    save(data / "gm.nii.gz", grey)
    save(data / "wm.nii.gz", white)
    joined = case(label_names=(("grey-matter", 1),))
    assert np.array_equal(read_case(data, joined, TASK)[0].target, grey + white)
    only = SegmentationConfig(kind="segmentation", dims=3, labels={1: "white-matter"})
    assert np.array_equal(read_case(data, case(), only)[0].target, white)


def test_a_mask_of_pictures_may_have_any_brightness(tmp_path: Path) -> None:
    Pictures.fromarray(RNG.integers(0, 255, (9, 8), dtype=np.uint8)).save(tmp_path / "image.png")
    disc = np.zeros((9, 8), np.uint8)
    disc[2:5, 3:6] = 200
    Pictures.fromarray(disc).save(tmp_path / "disc.png")
    task = SegmentationConfig(kind="segmentation", dims=2, labels={1: "disc"})
    one = CaseFiles("c", "p", "image.png", "disc.png", masks=(("disc", "disc.png"),))
    assert np.array_equal(read_case(tmp_path, one, task)[0].target, disc > 0)


def test_a_study_needs_a_mask_of_each_of_its_labels() -> None:
    listing = Listing((), {}, structures={"white-matter": None, "csf": None})
    with pytest.raises(Refused, match="no masks of grey-matter; `label_map` in site.yaml"):
        check_labels(listing, TASK)
    check_labels(listing.mapped({}, {"csf": 2}), TASK)


def test_a_changed_mask_is_read_anew(tmp_path: Path, small_wards, study_with) -> None:
    ward = small_wards(tmp_path / "wards") / "east"
    hospital = Hospital.open(ward)
    rows = ["patient,image,label_head,label_tail"]
    for one in hospital.listing.cases:
        label = nib.load(hospital.data / one.label)
        for value, name in ((1, "head"), (2, "tail")):
            mask = nib.Nifti1Image((np.asarray(label.dataobj) == value).astype(np.uint8), label.affine)
            nib.save(mask, hospital.data / f"{one.case}-{name}.nii.gz")
        rows.append(f"{one.patient},{one.image},{one.case}-head.nii.gz,{one.case}-tail.nii.gz")
    study = study_with()
    before = {p.pseudonym: p.scans[0].load().target for p in hospital.cohort(study).training}
    (hospital.data / "dataset.json").unlink()
    (hospital.data / "cases.csv").write_text("\n".join(rows))
    masked = Hospital.open(ward)
    check_labels(masked.listing, study.task)
    after = {p.pseudonym: p.scans[0].load().target for p in masked.cohort(study).training}
    assert after.keys() == before.keys()
    assert all((after[name] == before[name]).all() for name in before)
    first = masked.listing.cases[0]
    empty = nib.load(masked.data / first.masks[1][1])
    nib.save(
        nib.Nifti1Image(np.zeros(empty.shape, np.uint8), empty.affine), masked.data / first.masks[1][1]
    )
    changed = Hospital.open(ward).checked_cases(study.task, study.preprocessing)
    labels = {c.files.case: set(c.reading.load().target.unique().tolist()) for c in changed if c.reading}
    assert labels[first.case] == {0, 1}
