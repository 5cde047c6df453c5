"""Labels drawn in DICOM lie where they were drawn, whoever wrote them and in whatever order."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from drawings import TRUTH, box, series, write_seg, write_structures
from scanner import CORONAL, PIXELS, VOLUME, XRAY, write_flat, write_series, write_slice

from models.settings.tasks import SegmentationConfig
from sites.imaging.intake import BrokenCase, read_case
from sites.listing.cases import CaseFiles

TASK = SegmentationConfig(kind="segmentation", dims=3, labels={1: "head", 2: "tail"})


def expected(truth: np.ndarray) -> np.ndarray:
    """Return labels as the reader of slices orients them: RAS, from slices, rows, columns."""
    affine = np.diag([-0.75, -1.5, 3.0, 1.0])
    image = nib.Nifti1Image(np.moveaxis(truth, 0, -1).swapaxes(0, 1), affine)
    return np.asarray(nib.as_closest_canonical(image).dataobj)


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_a_segmentation_of_any_kind_lies_on_its_images_grid(kind: str, tmp_path: Path) -> None:
    write_seg(tmp_path / "seg.dcm", series(tmp_path / "a"), kind)
    scan, findings = read_case(tmp_path, CaseFiles("c", "p", "a", "seg.dcm"), TASK)
    assert np.array_equal(scan.target, expected(TRUTH))
    assert not [f for f in findings if f.check == "unused_files"]
    (tmp_path / "seg").mkdir()
    (tmp_path / "seg.dcm").rename(tmp_path / "seg" / "1")
    again, _ = read_case(tmp_path, CaseFiles("c", "p", "a", "seg"), TASK)
    assert np.array_equal(again.target, scan.target)


def test_a_segment_has_the_value_of_its_name_and_others_are_left_out_and_said(tmp_path: Path) -> None:
    images = series(tmp_path / "a")
    write_seg(tmp_path / "turned.dcm", images, labels=("Tail", "Head"))
    scan, _ = read_case(tmp_path, CaseFiles("c", "p", "a", "turned.dcm"), TASK)
    assert np.array_equal(scan.target, np.array([0, 2, 1])[expected(TRUTH)])
    write_seg(tmp_path / "other.dcm", images, labels=("Head", "Vessel"))
    scan, findings = read_case(tmp_path, CaseFiles("c", "p", "a", "other.dcm"), TASK)
    assert np.array_equal(scan.target, expected(TRUTH) == 1)
    assert "1 segments with other names" in next(f.text for f in findings if f.check == "unused_files")
    write_seg(tmp_path / "own.dcm", images, labels=("GTV-1", "GTV-2"))
    mapped = CaseFiles("c", "p", "a", "own.dcm", label_names=(("gtv-2", 1),))
    assert np.array_equal(read_case(tmp_path, mapped, TASK)[0].target, expected(TRUTH) == 2)
    numbered = CaseFiles("c", "p", "a", "own.dcm")
    assert np.array_equal(read_case(tmp_path, numbered, TASK)[0].target, expected(TRUTH))
    swapped = CaseFiles("c", "p", "a", "own.dcm", label_map=((1, 2), (2, 1)))
    due = np.array([0, 2, 1])[expected(TRUTH)]
    assert np.array_equal(read_case(tmp_path, swapped, TASK)[0].target, due)


def test_a_segmentation_of_another_series_or_grid_is_refused_with_the_case_named(tmp_path: Path) -> None:
    write_seg(tmp_path / "seg.dcm", series(tmp_path / "a"))
    write_series(tmp_path / "b", series="1.2.4")
    with pytest.raises(BrokenCase, match="label: it refers to another series than its image") as broken:
        read_case(tmp_path, CaseFiles("c", "p", "b", "seg.dcm"), TASK)
    assert broken.value.case == "c"
    for number in range(6):
        write_slice(tmp_path / "moved", number, [-5.4, 7.0, 10.0 + 3 * number])
    with pytest.raises(BrokenCase, match="it lies on another grid than its image"):
        read_case(tmp_path, CaseFiles("c", "p", "moved", "seg.dcm"), TASK)


def test_segments_that_overlap_are_refused(tmp_path: Path) -> None:
    both = np.stack([TRUTH == 1, TRUTH >= 1], -1).astype(np.uint8)
    write_seg(tmp_path / "seg.dcm", series(tmp_path / "a"), truth=both)
    with pytest.raises(BrokenCase, match="its segments overlap"):
        read_case(tmp_path, CaseFiles("c", "p", "a", "seg.dcm"), TASK)


def test_contours_fill_the_voxels_whose_centres_are_inside_and_holes_stay_open(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    head = [box((1.5, 7.5), (2.5, 6.5), depth) for depth in (1, 2)]
    tail = [box((4.5, 10.5), (0.5, 8.5), 4), box((6.5, 8.5), (2.5, 4.5), 4)]
    write_structures(tmp_path / "rt.dcm", {"Tail": tail, "HEAD": head, "Couch": head})
    scan, findings = read_case(tmp_path, CaseFiles("c", "p", "a", "rt.dcm"), TASK)
    truth = TRUTH.copy()
    truth[4, 7:9, 3:5] = 0
    assert np.array_equal(scan.target, expected(truth))
    assert "1 structures with other names" in next(f.text for f in findings if f.check == "unused_files")


def test_structures_of_one_label_are_united_and_no_hole_of_one_another(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    whole = {"core": [box((3.5, 5.5), (3.5, 5.5), 1)], "oedema": [box((1.5, 7.5), (2.5, 6.5), 1)]}
    write_structures(tmp_path / "rt.dcm", whole)
    case = CaseFiles("c", "p", "a", "rt.dcm", label_names=(("core", 1), ("oedema", 1)))
    scan, findings = read_case(tmp_path, case, TASK)
    assert (scan.target == 1).sum() == 6 * 4
    assert not [f for f in findings if f.check == "unused_files"]


def test_a_label_folder_that_links_outside_is_refused(tmp_path: Path) -> None:
    write_seg(tmp_path / "elsewhere" / "seg.dcm", series(tmp_path / "data" / "a"))
    (tmp_path / "data" / "lab").mkdir()
    (tmp_path / "data" / "lab" / "x.dcm").symlink_to(tmp_path / "elsewhere" / "seg.dcm")
    with pytest.raises(BrokenCase, match="a file is outside the folder"):
        read_case(tmp_path / "data", CaseFiles("c", "p", "a", "lab"), TASK)


@pytest.mark.parametrize(
    ("contours", "uid", "words"),
    [
        (
            {"head": [np.add(box((1, 5), (2, 6), 1), [0, 0, 1.4])]},
            "1.2.3",
            "between the slices of its image",
        ),
        ({"head": [box((1, 30), (2, 6), 1)]}, "1.2.3", "a contour lies outside the image"),
        ({"head": [box((1, 5), (2, 6), 9)]}, "1.2.3", "a contour lies outside the image"),
        ({"head": [box((1, 5), (2, 6), 1)]}, "1.2.4", "it refers to another series"),
        ({"spleen": [box((1, 5), (2, 6), 1)]}, "1.2.3", "none of its 1 structures has the name of a"),
        ({n: [box((1, 5), (2, 6), 1)] for n in ("head", "tail")}, "1.2.3", "its structures overlap"),
    ],
)
def test_contours_that_do_not_fit_are_refused_with_the_reason(
    contours: dict[str, list[np.ndarray]], uid: str, words: str, tmp_path: Path
) -> None:
    write_series(tmp_path / "a")
    write_structures(tmp_path / "rt.dcm", contours, uid)
    with pytest.raises(BrokenCase, match=words):
        read_case(tmp_path, CaseFiles("c", "p", "a", "rt.dcm"), TASK)


def test_contours_of_a_coronal_series_are_filled_in_its_own_slices(tmp_path: Path) -> None:
    for number in range(6):
        write_slice(tmp_path / "a", number, [0.0, 3.0 * number, 20.0], orientation=CORONAL)
    contour = np.array([(x, 6.0, z) for x, z in [(1, 18), (5, 18), (5, 9), (1, 9)]])
    write_structures(tmp_path / "rt.dcm", {"head": [contour]})
    scan, _ = read_case(tmp_path, CaseFiles("c", "p", "a", "rt.dcm"), TASK)
    found = np.argwhere(scan.target == 1)
    assert len(found) == 5 * 6 and len(set(found[:, 1])) == 1  # at 1.5 to 4.5, and 9.5 to 17 mm


def test_a_label_that_is_drawn_needs_an_image_with_a_place(tmp_path: Path) -> None:
    nib.save(
        nib.Nifti1Image(np.moveaxis(VOLUME, 0, -1).astype(np.float32), np.eye(4)), tmp_path / "a.nii"
    )
    write_structures(tmp_path / "rt.dcm", {"head": [box((1, 5), (2, 6), 1)]})
    with pytest.raises(BrokenCase, match="outside the image|series"):
        read_case(tmp_path, CaseFiles("c", "p", "a.nii", "rt.dcm"), TASK)


def test_a_segmentation_fits_a_series_whose_places_are_rounded_or_sheared(tmp_path: Path) -> None:
    """A SEG lies where its slices say, also where the image's slices make no exact grid."""
    places = {
        "rounded": [[-5.0, 7.0, round(10 + 0.625 * n, 1)] for n in range(6)],
        "tilted": [[-5.0, round(7 + 3 * n * np.tan(np.radians(1)), 4), 10.0 + 3 * n] for n in range(6)],
    }
    for name, each in places.items():
        for number, place in enumerate(each):
            write_slice(tmp_path / name, number, place)
        images = [pydicom.dcmread(path) for path in (tmp_path / name).iterdir()]
        for image in images:
            for field in ("AccessionNumber", "StudyDate", "StudyTime", "PatientSex", "StudyID",
                          "ReferringPhysicianName"):  # fmt: skip
                setattr(image, field, "")
        images.sort(key=lambda image: float(image.ImagePositionPatient[2]))
        write_seg(tmp_path / f"{name}.dcm", images)
        scan, _ = read_case(tmp_path, CaseFiles("c", "p", name, f"{name}.dcm"), TASK)
        assert np.array_equal(scan.target, expected(TRUTH)), name


def test_a_segmentation_with_a_part_outside_its_image_is_refused(tmp_path: Path) -> None:
    write_seg(tmp_path / "seg.dcm", series(tmp_path / "a"))
    files = sorted((tmp_path / "a").iterdir())
    files[-1].unlink()  # nothing is drawn there
    scan, _ = read_case(tmp_path, CaseFiles("c", "p", "a", "seg.dcm"), TASK)
    assert (scan.target > 0).sum() == (TRUTH > 0).sum()
    files[-2].unlink()
    with pytest.raises(BrokenCase, match="a part of it lies outside its image"):
        read_case(tmp_path, CaseFiles("c", "p", "a", "seg.dcm"), TASK)


def test_a_segment_of_another_name_has_not_the_value_of_its_number(tmp_path: Path) -> None:
    write_seg(tmp_path / "seg.dcm", series(tmp_path / "a"), labels=("Liver", "Spleen"))
    with pytest.raises(BrokenCase, match="none of its 2 segments has the name of a label"):
        read_case(tmp_path, CaseFiles("c", "p", "a", "seg.dcm"), TASK)
    write_seg(tmp_path / "own.dcm", series(tmp_path / "b"), labels=("Segment_1", "Segment_2"))
    scan, _ = read_case(tmp_path, CaseFiles("c", "p", "b", "own.dcm"), TASK)
    assert np.array_equal(scan.target, expected(TRUTH))


def test_an_xray_has_labels_of_its_own_shape(tmp_path: Path) -> None:
    path = write_flat(tmp_path / "a", PIXELS, **XRAY)
    image = pydicom.dcmread(path)
    for name in ("AccessionNumber", "StudyDate", "StudyTime", "PatientSex", "ReferringPhysicianName",
                 "StudyID"):  # fmt: skip
        setattr(image, name, "")
    truth = np.zeros((1, *PIXELS.shape), np.uint8)
    truth[0, 2:5, 1:4] = 1
    write_seg(tmp_path / "seg.dcm", [image], labels=("Head",), truth=truth)
    task = SegmentationConfig(kind="segmentation", dims=2, labels={1: "head"})
    scan, _ = read_case(tmp_path, CaseFiles("c", "p", "a", "seg.dcm"), task)
    assert np.array_equal(scan.target, truth[0])
    write_flat(tmp_path / "b", PIXELS[:-1], **XRAY)
    with pytest.raises(BrokenCase, match=r"its frames have shape \(9, 7\), the image \(8, 7\)"):
        read_case(tmp_path, CaseFiles("c", "p", "b", "seg.dcm"), task)


def test_contours_count_once_and_what_only_overlaps_is_united(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    one, beside = box((1.5, 7.5), (1.5, 5.5), 1), box((5.5, 10.5), (3.5, 7.5), 1)
    write_structures(tmp_path / "rt.dcm", {"head": [one, one, beside]})
    scan, _ = read_case(tmp_path, CaseFiles("c", "p", "a", "rt.dcm"), TASK)
    assert (scan.target == 1).sum() == 6 * 4 + 5 * 4 - 2 * 2
    island = [
        box((0.5, 10.5), (0.5, 8.5), 1),
        box((2.5, 8.5), (2.5, 6.5), 1),
        box((4.5, 6.5), (3.5, 5.5), 1),
    ]
    for order in (island, island[::-1]):
        write_structures(tmp_path / "rings.dcm", {"head": order})
        scan, _ = read_case(tmp_path, CaseFiles("c", "p", "a", "rings.dcm"), TASK)
        assert (scan.target == 1).sum() == 10 * 8 - 6 * 4 + 2 * 2


def test_slices_that_contours_skip_are_said_and_open_contours_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    write_structures(tmp_path / "rt.dcm", {"head": [box((1, 5), (2, 6), depth) for depth in (0, 2, 4)]})
    _, findings = read_case(tmp_path, CaseFiles("c", "p", "a", "rt.dcm"), TASK)
    assert "2 slices between a structure's contours have none, and stay empty" in {
        f.text for f in findings
    }
    dataset = pydicom.dcmread(tmp_path / "rt.dcm")
    dataset.ROIContourSequence[0].ContourSequence[0].ContourGeometricType = "OPEN_PLANAR"
    dataset.save_as(tmp_path / "rt.dcm")
    with pytest.raises(BrokenCase, match="contours that are open, or single points"):
        read_case(tmp_path, CaseFiles("c", "p", "a", "rt.dcm"), TASK)
