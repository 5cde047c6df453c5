from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from models.settings.images import PreprocessingConfig
from models.settings.tasks import SegmentationConfig
from sites.imaging.checks import CheckedCase, SharedFinding, check_together, read_cases
from sites.imaging.intake import Scan
from sites.imaging.preprocessing import prepare
from sites.imaging.profile import profile_of
from sites.imaging.reading import Reading, reader
from sites.listing.cases import CaseFiles
from sites.listing.listing import read_listing
from sites.policy.severities import BREAKING, severities

TASK = SegmentationConfig(kind="segmentation", dims=3, labels={1: "head", 2: "tail"})
CONFIG = PreprocessingConfig(shape=(16, 16, 16))
RNG = np.random.default_rng(0)

FLAT = PreprocessingConfig(shape=(32, 32))


def head(scale: float = 1.0) -> np.ndarray:
    return (RNG.normal(5, 1, (16, 16, 16)) * scale).astype(np.float32)


def case(number: int, image: np.ndarray, patient: str = "") -> CheckedCase:
    files = CaseFiles(f"case-{number}", patient or f"p{number}", f"{number}.nii", f"{number}-l.nii")
    scan = Scan(image[None], np.zeros(image.shape, dtype=np.int64), (1.0,) * image.ndim)
    reading = Reading(profile_of(scan), (), lambda: prepare(scan, CONFIG))
    return CheckedCase(files, reading, ())


def found(cases: list[CheckedCase], evaluates: Callable[[str], bool] = lambda _: False) -> list[str]:
    return [finding.check for finding in check_together(cases, evaluates)]


def test_images_of_one_scale_and_different_heads_have_no_finding() -> None:
    assert not found([case(n, head(1 + n / 10)) for n in range(10)])
    assert not found([])


def test_a_ct_among_mrs_is_named_and_large_groups_are_described() -> None:
    cases = [case(n, head(1.0 if n < 20 else 400.0)) for n in range(21)]
    few, many = sorted(check_together(cases, lambda _: False), key=lambda f: len(f.cases), reverse=True)
    assert few.check == many.check == "intensity"
    assert [files.case for files in few.cases] == ["case-20"]
    assert not many.cases and "20 images" in many.text


def test_the_same_image_twice_is_a_duplicate_and_between_patients_a_shared_head() -> None:
    image = head()
    one_patient = [case(1, image, "p"), case(2, image.copy(), "p"), case(3, head())]
    assert found(one_patient) == ["duplicate"]
    two_patients = [case(1, image, "training"), case(2, image.copy(), "evaluation")]
    assert found(two_patients, lambda p: p == "evaluation") == ["duplicate", "both_groups"]


@pytest.mark.parametrize(
    "change",
    [
        lambda i: i * 3 + 7,
        lambda i: i + RNG.normal(0, 0.2, i.shape).astype(np.float32),
        lambda i: np.round(i * 2.5),
    ],
    ids=["rescaled", "noised", "rounded"],
)
def test_one_head_under_two_patients_is_found_though_the_files_differ(change) -> None:
    coarse = np.kron(RNG.normal(5, 1, (4, 4, 4)), np.ones((4, 4, 4))).astype(np.float32)
    image = coarse + 0.1 * head()
    cases = [case(1, image), case(2, head()), case(3, change(image).astype(np.float32))]
    (finding,) = check_together(cases, lambda _: False)
    assert finding.check == "same_head"
    assert [files.case for files in finding.cases] == ["case-1", "case-3"]
    assert "both_groups" in found(cases, lambda p: p == "p3")


def labelled(number: int, label: int) -> CheckedCase:
    files = CaseFiles(f"case-{number}", f"p{number}", f"{number}.nii", str(label))
    scan = Scan(head()[None], np.asarray(label), (1.0, 1.0, 1.0))
    return CheckedCase(files, Reading(profile_of(scan), (), lambda: prepare(scan, CONFIG)), ())


@pytest.mark.parametrize(
    ("label", "reported"),
    [
        (lambda n: n % 2, []),
        (lambda n: int(n >= 30), ["split", "split"]),
        (lambda n: int(n % 5 == 0 and n < 30), ["split"]),
    ],
    ids=["alike", "one sided", "missing"],
)
def test_groups_that_the_hash_made_unlike_are_reported(label, reported: list[str]) -> None:
    cases = [labelled(n, label(n)) for n in range(40)]
    assert found(cases, lambda patient: int(patient[1:]) >= 30) == reported


def test_two_scans_of_one_patient_may_look_alike() -> None:
    image = head()
    assert not found([case(1, image, "p"), case(2, image * 1.01, "p")])


def test_a_check_across_cases_never_leaves_one_out() -> None:
    with pytest.raises(ValueError, match="intensity: expected warn or stop, got skip"):
        severities({"intensity": "skip"}, "skip")


@pytest.mark.parametrize("check", BREAKING)
def test_a_case_that_cannot_train_is_never_used(check) -> None:
    assert severities({}, "stop")[check] == "stop"
    with pytest.raises(ValueError, match=f"{check}: expected skip or stop, got warn"):
        severities({check: "warn"}, "skip")


def test_what_a_policy_chooses_replaces_the_default() -> None:
    chosen = severities({"empty_label": "skip", "both_groups": "stop", "series": "stop"}, "skip")
    assert (chosen["empty_label"], chosen["both_groups"], chosen["series"]) == ("skip", "stop", "stop")
    assert (chosen["spacing"], chosen["missing"]) == ("warn", "skip")


def test_the_other_cases_go_on_where_one_is_broken(tmp_path: Path, small_wards) -> None:
    ward = small_wards(tmp_path) / "south"
    cases = read_listing(ward).cases
    (ward / cases[0].image).write_bytes(b"")
    checked = read_cases(cases, reader(ward, TASK, CONFIG))
    assert [c.reading is None for c in checked] == [True] + [False] * (len(cases) - 1)
    assert [f.check for f in checked[0].findings] == ["unreadable"]


@pytest.mark.parametrize(
    "change",
    [{"crop": "foreground"}, {"intensity": {"kind": "percentiles"}}, {"fit": "resize"},
     {"spacing_mm": (0.05, 0.05, 0.05)}],
    ids=str,
)  # fmt: skip
def test_a_scan_that_can_not_be_prepared_is_one_broken_case(
    change: dict[str, object], tmp_path: Path, small_wards
) -> None:
    ward = small_wards(tmp_path) / "north"
    cases = read_listing(ward).cases[:2]
    image = nib.load(ward / cases[0].image)
    values = np.full(image.shape, 1000.1, dtype=np.float32)
    values[0, 0, 0] = np.nextafter(np.float32(1000.1), np.float32(0))
    nib.save(nib.Nifti1Image(values, image.affine), ward / cases[0].image)
    config = PreprocessingConfig(shape=(16, 16, 16), **change)
    checked = read_cases(cases, reader(ward, TASK, config))
    broken = [case.reading is None for case in checked]
    assert broken == ([True, True] if "spacing_mm" in change else [True, False])
    assert checked[0].findings[0].check in {"constant", "unfit"}


def test_odd_cases_can_be_used_and_are_reported(tmp_path: Path, small_wards) -> None:
    ward = small_wards(tmp_path) / "south"
    cases = read_listing(ward).cases
    for number, fault in enumerate(("empty", "spacing", "name")):
        path = ward / (cases[number].label if fault == "empty" else cases[number].image)
        image = nib.load(path)
        values, affine = np.asarray(image.dataobj), image.affine
        if fault == "empty":
            values = np.zeros_like(values)
        changed = nib.Nifti1Image(values, affine)
        if fault == "spacing":
            for name in (cases[number].image, cases[number].label):
                original = np.asarray(nib.load(ward / name).dataobj)
                nib.save(nib.Nifti1Image(original, affine @ np.diag([40, 40, 40, 1])), ward / name)
            continue
        if fault == "name":
            changed.header["descrip"] = b"MUELLER^ANNA 19560403"
        nib.save(changed, path)
    checked = read_cases(cases, reader(ward, TASK, CONFIG))
    kinds = [[f.check for f in c.findings] for c in checked[:4]]
    assert kinds == [["empty_label"], ["spacing"], ["identifying"], []]
    assert all(c.reading is not None for c in checked)
    assert not any("MUELLER" in f.text for c in checked for f in c.findings)


@pytest.mark.parametrize("fault", ["unknown", "oblique"])
def test_a_scan_of_which_nobody_knows_how_the_patient_lies_is_reported(
    fault: str, tmp_path: Path, small_wards
) -> None:
    ward = small_wards(tmp_path) / "north"
    case = read_listing(ward).cases[0]
    turn = np.eye(4)
    angle = np.radians(40)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    for name in (case.image, case.label):
        image = nib.load(ward / name)
        affine = turn @ image.affine if fault == "oblique" else image.affine
        changed = nib.Nifti1Image(np.asarray(image.dataobj), affine)
        if fault == "unknown":
            changed.set_qform(None, code=0)
            changed.set_sform(None, code=0)
        nib.save(changed, ward / name)
    (checked,) = read_cases([case], reader(ward, TASK, CONFIG))
    assert [f.check for f in checked.findings] == ["orientation"]
    assert checked.reading is not None


def test_hippocampus_has_three_intensity_groups_and_nothing_that_stops(
    shared_data: Path,
) -> None:
    data = shared_data / "hippocampus"
    cases = read_cases(read_listing(data).cases, reader(data, TASK, CONFIG))
    assert not [f for c in cases for f in c.findings]
    shared = check_together(cases, lambda patient: hash(patient) % 4 == 0)
    assert [f.check for f in shared] == ["intensity"] * 3
    assert [f.text.split()[0] for f in shared] == ["38", "129", "7"]
    assert len(shared[2].cases) == 7
    assert all(severities({}, "skip")[f.check] == "warn" for f in shared)


def test_pneumonia_images_that_stand_in_both_parts_are_found(shared_data: Path) -> None:
    arrays = np.load(shared_data / "pneumoniamnist" / "pneumoniamnist_trainval.npz")
    parts = {name: arrays[f"{name}_images"].astype(np.float32) for name in ("train", "val")}
    cases = [
        case(n, image, f"{name}{n}")
        for name, part in parts.items() for n, image in enumerate(part[:5000])
    ]  # fmt: skip
    shared: list[SharedFinding] = check_together(cases, lambda patient: patient.startswith("val"))
    both = [f for f in shared if f.check == "both_groups"]
    assert len({files.patient for f in both for files in f.cases if files.patient[:3] == "val"}) >= 8


def test_alike_pictures_are_no_shared_head_and_copies_say_that_labels_differ() -> None:
    shape = np.hypot(*np.mgrid[-1:1:64j, -1:1:64j]) < 0.9
    eyes = [(shape * 100 + RNG.normal(0, 1, (64, 64))).astype(np.float32) for _ in range(6)]

    def picture(number: int, image: np.ndarray, label: int) -> CheckedCase:
        files = CaseFiles(f"case-{number}", f"p{number}", f"{number}.png", str(label))
        scan = Scan(image[None], np.asarray(label), (1.0, 1.0))
        return CheckedCase(files, Reading(profile_of(scan), (), lambda: prepare(scan, FLAT)), ())

    cases = [picture(number, image, 0) for number, image in enumerate(eyes)]
    assert not found(cases, lambda patient: patient == "p1")
    copies = [*cases, picture(7, eyes[0].copy(), 1)]
    (finding,) = check_together(copies, lambda _: False)
    assert finding.text == "the same image occurs more than once, with different labels"
