import logging
import stat
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.settings.images import PreprocessingConfig
from models.settings.tasks import SegmentationConfig
from sites.cohort import Cohort, load_cohort
from sites.imaging.checks import read_cases
from sites.imaging.reading import reader
from sites.listing.listing import read_listing
from sites.listing.pseudonyms import Split, case_id, pseudonym, pseudonym_key
from sites.policy.policy import load_policy

TASK = SegmentationConfig(kind="segmentation", dims=3, labels={1: "head", 2: "tail"})
KEY = b"k" * 32


@pytest.fixture
def ward(tmp_path: Path, small_wards) -> Path:
    return small_wards(tmp_path) / "north"


def cohort_of(ward: Path) -> Cohort:
    listing = read_listing(ward)
    checked = read_cases(listing.cases, reader(ward, TASK, PreprocessingConfig(shape=(16, 16, 16))))
    policy = load_policy(ward)
    return load_cohort(checked, policy, KEY, Split(policy.evaluation_fraction))


def break_one(ward: Path) -> str:
    case = read_listing(ward).cases[0]
    image = np.full((24, 24, 24), np.nan, dtype=np.float32)
    nib.save(nib.Nifti1Image(image, np.eye(4)), ward / case.image)
    return case.case


def test_training_and_evaluation_share_no_patient(ward: Path) -> None:
    cohort = cohort_of(ward)
    names = [p.pseudonym for p in (*cohort.training, *cohort.evaluation)]
    assert len(set(names)) == len(names) == 16
    assert len(read_listing(ward).cases) == sum(
        len(p.scans) for p in (*cohort.training, *cohort.evaluation)
    )


def test_a_pseudonym_is_a_keyed_hash_and_shows_no_name() -> None:
    assert pseudonym(KEY, "patient_007") == pseudonym(KEY, "patient_007")
    assert pseudonym(KEY, "patient_007") != pseudonym(b"x" * 32, "patient_007")
    assert len(pseudonym(KEY, "patient_007")) == 32


def test_the_key_is_made_once_and_private(tmp_path: Path) -> None:
    key = pseudonym_key(tmp_path)
    assert pseudonym_key(tmp_path) == key
    assert len(key) == 32
    assert stat.S_IMODE((tmp_path / "keys" / "pseudonyms").stat().st_mode) == 0o600


@given(st.lists(st.text(min_size=1), min_size=1, max_size=30, unique=True), st.floats(0.1, 0.9))
def test_adding_patients_moves_nobody_between_the_groups(patients: list[str], share: float) -> None:
    before = {p: Split(share).evaluates(pseudonym(KEY, p)) for p in patients[: len(patients) // 2]}
    after = {p: Split(share).evaluates(pseudonym(KEY, p)) for p in patients}
    assert before.items() <= after.items()


def test_about_the_asked_fraction_evaluates() -> None:
    share = np.mean([Split(0.25).evaluates(pseudonym(KEY, str(i))) for i in range(4000)])
    assert share == pytest.approx(0.25, abs=0.03)


def test_a_broken_case_is_skipped_and_the_log_has_its_fault_and_no_name(
    ward: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = sum(len(p.scans) for g in (cohort_of(ward).training, cohort_of(ward).evaluation) for p in g)
    name = break_one(ward)
    with caplog.at_level(logging.WARNING, "wardround.site"):
        cohort = cohort_of(ward)
    assert sum(len(p.scans) for g in (cohort.training, cohort.evaluation) for p in g) == before - 1
    assert "not_finite: the image is empty, or has NaN" in caplog.text
    assert case_id(KEY, read_listing(ward).cases[0]) in caplog.text
    assert name not in caplog.text


def test_an_evaluation_patient_without_a_usable_scan_stays_and_a_training_patient_goes(
    ward: Path,
) -> None:
    before = cohort_of(ward)
    listing = read_listing(ward)
    for group in ("training", "evaluation"):
        name = getattr(before, group)[0].pseudonym
        for case in listing.cases:
            if pseudonym(KEY, case.patient) == name:
                (ward / case.image).unlink()
    after = cohort_of(ward)
    assert [p.pseudonym for p in after.evaluation] == [p.pseudonym for p in before.evaluation]
    assert after.evaluation[0].scans == ()
    assert [p.pseudonym for p in after.training] == [p.pseudonym for p in before.training[1:]]
    assert sum(finding.startswith("missing:") for finding in after.findings) >= 2
