import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from models.objectives import ClassificationConfig, SegmentationConfig
from sites import cache
from sites.cache import ScanCache
from sites.checks import read_cases, reader
from sites.hospital import Hospital
from sites.listing import CaseFiles, read_listing

TASK = SegmentationConfig(kind="segmentation", dims=3, labels={1: "head", 2: "tail"})


@pytest.fixture
def ward(tmp_path: Path, small_wards) -> Path:
    return small_wards(tmp_path) / "south"


@pytest.fixture
def scans(tmp_path: Path) -> ScanCache:
    return ScanCache(tmp_path / "cache", max_bytes=10**9)


def entries(scans: ScanCache) -> set[Path]:
    return set(scans.folder.glob("*.safetensors"))


def test_what_comes_from_the_cache_is_what_was_read(ward: Path, scans: ScanCache) -> None:
    cases = read_listing(ward).cases
    plain = read_cases(cases, reader(ward, TASK))
    for _ in range(2):
        for ours, theirs in zip(read_cases(cases, scans.reader(ward, TASK)), plain, strict=True):
            assert np.array_equal(ours.scan.image, theirs.scan.image)
            assert np.array_equal(ours.scan.target, theirs.scan.target)
            assert ours.scan.target.dtype == theirs.scan.target.dtype
            assert (ours.scan.spacing_mm, ours.findings) == (theirs.scan.spacing_mm, theirs.findings)
    assert len(entries(scans)) == len(cases)


def test_a_class_comes_back_as_a_class(ward: Path, scans: ScanCache) -> None:
    task = ClassificationConfig(kind="classification", dims=3, labels={0: "well", 1: "ill"})
    case = replace(read_listing(ward).cases[0], label="1")
    for _ in range(2):
        scan, _found = scans.reader(ward, task)(case)
        assert scan.target.shape == ()
        assert int(scan.target) == 1
    assert len(entries(scans)) == 1


def test_a_picture_is_not_kept(tmp_path: Path, scans: ScanCache) -> None:
    Image.fromarray(np.eye(16, dtype=np.uint8)).save(tmp_path / "a.png")
    task = ClassificationConfig(kind="classification", dims=2, labels={0: "well", 1: "ill"})
    scans.reader(tmp_path, task)(CaseFiles("a", "p", "a.png", "0"))
    assert not entries(scans)


def test_a_second_reading_opens_no_image(
    ward: Path, scans: ScanCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = read_listing(ward).cases
    read_cases(cases, scans.reader(ward, TASK))
    monkeypatch.setattr(nib, "load", None)
    assert all(c.scan is not None for c in read_cases(cases, scans.reader(ward, TASK)))


def test_a_changed_file_and_another_task_are_read_anew(ward: Path, scans: ScanCache) -> None:
    case = read_listing(ward).cases[0]
    before, _ = scans.reader(ward, TASK)(case)
    image = nib.load(ward / case.image)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + 1, image.affine), ward / case.image)
    after, _ = scans.reader(ward, TASK)(case)
    assert np.allclose(after.image, before.image + 1, atol=1e-4)
    other = SegmentationConfig(kind="segmentation", dims=3, labels={1: "a", 2: "b"})
    scans.reader(ward, other)(case)
    assert len(entries(scans)) == 3


@pytest.mark.parametrize("damage", [b"", b"half", None])
def test_a_damaged_entry_is_read_anew(damage: bytes | None, ward: Path, scans: ScanCache) -> None:
    case = read_listing(ward).cases[0]
    before, _ = scans.reader(ward, TASK)(case)
    (entry,) = entries(scans)
    entry.write_bytes(entry.read_bytes()[:-7] if damage is None else damage)
    after, _ = scans.reader(ward, TASK)(case)
    assert np.array_equal(before.image, after.image)


def test_the_entries_unused_for_longest_go_first(ward: Path, tmp_path: Path) -> None:
    cases = read_listing(ward).cases[:4]
    scans = ScanCache(tmp_path / "cache", max_bytes=10**9)
    names = []
    for age, case in enumerate(cases):
        scans.reader(ward, TASK)(case)
        (new,) = entries(scans) - set(names)
        os.utime(new, (1000 + age, 1000 + age))
        names.append(new)
    scans.reader(ward, TASK)(cases[0])  # used again
    small = ScanCache(tmp_path / "cache", max_bytes=2 * names[0].stat().st_size)
    small.trim()
    assert entries(scans) == {names[0], names[3]}


def test_the_cache_names_no_patient_and_stays_private(ward: Path) -> None:
    hospital = Hospital.open(ward)
    hospital.cohort(TASK)
    folder = hospital.state / "cache"
    assert folder.stat().st_mode & 0o077 == 0
    told = b"".join(path.name.encode() + path.read_bytes()[:2000] for path in folder.iterdir())
    for case in hospital.cases:
        assert case.patient.encode() not in told
        assert case.case.encode() not in told


def test_a_cache_without_room_keeps_nothing_and_the_round_goes_on(ward: Path, edit) -> None:
    edit(ward / "site.yaml", cache_mb=0)
    hospital = Hospital.open(ward)
    assert hospital.cohort(TASK).training
    assert not list((hospital.state / "cache").glob("*.safetensors"))
    assert cache.VERSION >= 1
