import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from models.settings.images import PreprocessingConfig
from models.settings.tasks import ClassificationConfig, SegmentationConfig
from sites.hospital import Hospital
from sites.imaging.cache import ScanCache
from sites.imaging.checks import read_cases
from sites.imaging.intake import BrokenCase
from sites.imaging.reading import reader
from sites.listing.cases import CaseFiles
from sites.listing.listing import read_listing

TASK = SegmentationConfig(kind="segmentation", dims=3, labels={1: "head", 2: "tail"})
CONFIG = PreprocessingConfig(shape=(16, 16, 16))
RESAMPLED = PreprocessingConfig(shape=(16, 16, 16), spacing_mm=(1.5, 1.5, 1.5))
WELL_OR_ILL = {"kind": "classification", "labels": {0: "well", 1: "ill"}}


@pytest.fixture
def ward(tmp_path: Path, small_wards) -> Path:
    return small_wards(tmp_path) / "south"


@pytest.fixture
def scans(tmp_path: Path) -> ScanCache:
    return ScanCache(tmp_path / "cache", max_bytes=10**9)


def entries(scans: ScanCache) -> set[Path]:
    return set(scans.folder.glob("*.safetensors"))


@pytest.mark.parametrize("config", [CONFIG, RESAMPLED], ids=["as it is", "resampled"])
def test_what_comes_from_the_cache_is_what_was_read(
    config: PreprocessingConfig, ward: Path, scans: ScanCache
) -> None:
    cases = read_listing(ward).cases[:5]
    plain = read_cases(cases, reader(ward, TASK, config))
    for _ in range(2):
        cached = read_cases(cases, scans.reader(ward, TASK, config))
        for ours, theirs in zip(cached, plain, strict=True):
            mine, yours = vars(ours.reading.profile), vars(theirs.reading.profile)
            assert torch.equal(mine["coarse"], yours["coarse"])
            assert {**mine, "coarse": 0} == {**yours, "coarse": 0}
            assert ours.findings == theirs.findings
            mine, yours = vars(ours.reading.load()), vars(theirs.reading.load())
            for name in ("image", "target", "truth"):
                assert torch.equal(mine[name], yours[name])
                assert mine[name].dtype == yours[name].dtype
            assert np.array_equal(mine["affine"], yours["affine"])
            assert mine["spacing_mm"] == yours["spacing_mm"]
    assert len(entries(scans)) == len(cases)


@pytest.mark.parametrize(("several", "label", "target"), [(False, "1", 1), (True, "0;1", [1, 1])])
def test_a_class_comes_back_as_a_class(
    several: bool, label: str, target: object, ward: Path, scans: ScanCache
) -> None:
    task = ClassificationConfig(**WELL_OR_ILL, dims=3, multi_label=several)
    case = replace(read_listing(ward).cases[0], label=label)
    for _ in range(2):
        assert scans.reader(ward, task, CONFIG)(case).load().target.tolist() == target
    assert len(entries(scans)) == 1


def test_a_picture_is_not_kept(tmp_path: Path, scans: ScanCache) -> None:
    Image.fromarray(np.eye(16, dtype=np.uint8)).save(tmp_path / "a.png")
    task, config = ClassificationConfig(**WELL_OR_ILL, dims=2), PreprocessingConfig(shape=(16, 16))
    scans.reader(tmp_path, task, config)(CaseFiles("a", "p", "a.png", "0"))
    assert not entries(scans)


def test_a_second_reading_opens_no_image(
    ward: Path, scans: ScanCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = read_listing(ward).cases
    read_cases(cases, scans.reader(ward, TASK, CONFIG))
    monkeypatch.setattr(nib, "load", None)
    for case in read_cases(cases, scans.reader(ward, TASK, CONFIG)):
        assert case.reading.load().image.numel() > 0


def test_a_changed_file_another_task_and_another_spacing_are_read_anew(
    ward: Path, scans: ScanCache
) -> None:
    case = read_listing(ward).cases[0]
    before = scans.reader(ward, TASK, CONFIG)(case).profile
    image = nib.load(ward / case.image)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * 2, image.affine), ward / case.image)
    after = scans.reader(ward, TASK, CONFIG)(case).profile
    assert after.scale == pytest.approx(2 * before.scale, rel=1e-3)
    other = SegmentationConfig(kind="segmentation", dims=3, labels={1: "a", 2: "b"})
    scans.reader(ward, other, CONFIG)(case)
    assert len(entries(scans)) == 3
    scans.reader(ward, TASK, RESAMPLED)(case)
    assert len(entries(scans)) == 4
    scans.reader(ward, TASK, PreprocessingConfig(shape=(24, 24, 24)))(case)  # fitted after the cache
    assert len(entries(scans)) == 4


@pytest.mark.parametrize("damage", [b"", b"half", None])
def test_a_damaged_or_deleted_entry_is_read_anew(
    damage: bytes | None, ward: Path, scans: ScanCache
) -> None:
    case = read_listing(ward).cases[0]
    reading = scans.reader(ward, TASK, CONFIG)(case)
    before = reading.load()
    (entry,) = entries(scans)
    entry.write_bytes(entry.read_bytes()[:-7] if damage is None else damage)
    assert torch.equal(reading.load().image, before.image)
    assert torch.equal(scans.reader(ward, TASK, CONFIG)(case).load().image, before.image)
    entry.unlink()
    assert torch.equal(reading.load().image, before.image)


def test_a_file_that_changes_under_a_round_is_not_used(ward: Path, scans: ScanCache) -> None:
    case = read_listing(ward).cases[0]
    reading = scans.reader(ward, TASK, CONFIG)(case)
    for entry in entries(scans):
        entry.unlink()
    image = nib.load(ward / case.image)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + 1, image.affine), ward / case.image)
    with pytest.raises(BrokenCase, match="changed while it was used"):
        reading.load()


def test_the_entries_unused_for_longest_go_first(ward: Path, tmp_path: Path) -> None:
    cases = read_listing(ward).cases[:4]
    scans = ScanCache(tmp_path / "cache", max_bytes=10**9)
    names = []
    for age, case in enumerate(cases):
        scans.reader(ward, TASK, CONFIG)(case)
        (new,) = entries(scans) - set(names)
        os.utime(new, (1000 + age, 1000 + age))
        names.append(new)
    scans.reader(ward, TASK, CONFIG)(cases[0])  # used again
    small = ScanCache(tmp_path / "cache", max_bytes=int(2.1 * names[0].stat().st_size))
    small.trim()
    assert entries(scans) == {names[0], names[3]}


def test_the_cache_names_no_patient_and_stays_private(ward: Path, study_with) -> None:
    hospital = Hospital.open(ward)
    hospital.cohort(study_with())
    folder = hospital.state / "cache"
    assert folder.stat().st_mode & 0o077 == 0
    stored = b"".join(path.name.encode() + path.read_bytes()[:2000] for path in folder.iterdir())
    for case in hospital.cases:
        assert case.patient.encode() not in stored
        assert case.case.encode() not in stored


def test_a_cache_without_room_keeps_nothing_and_the_round_goes_on(ward: Path, edit, study_with) -> None:
    edit(ward / "site.yaml", cache_mb=0)
    hospital = Hospital.open(ward)
    training = hospital.cohort(study_with()).training
    assert not list((hospital.state / "cache").glob("*.safetensors"))
    assert training[0].scans[0].load().image.numel() > 0


def test_a_bit_that_the_disk_turned_is_noticed(ward: Path, scans: ScanCache) -> None:
    case = read_listing(ward).cases[0]
    reading = scans.reader(ward, TASK, CONFIG)(case)
    before = reading.load().image
    (entry,) = entries(scans)
    content = bytearray(entry.read_bytes())
    content[-20_000] ^= 0x40
    entry.write_bytes(content)
    assert torch.equal(reading.load().image, before)


def test_the_size_is_kept_while_scans_are_read_and_what_a_crash_left_goes(
    ward: Path, tmp_path: Path
) -> None:
    scans = ScanCache(tmp_path / "cache", max_bytes=300_000)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / ".abc.safetensors.1.partial").write_bytes(b"half")
    read, most = scans.reader(ward, TASK, CONFIG), 0
    for case in read_listing(ward).cases:
        read(case)
        most = max(most, sum(path.stat().st_size for path in entries(scans)))
    assert most < 500_000
    assert not list((tmp_path / "cache").glob(".*"))


def test_a_disk_without_room_stops_no_round(ward: Path, scans: ScanCache, monkeypatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sites.imaging.cache.write_atomically", full)
    case = read_listing(ward).cases[0]
    assert scans.reader(ward, TASK, CONFIG)(case).load().image.numel() > 0
