import itertools
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from models.settings.tasks import SegmentationConfig
from sites.datasets.decathlon import make_hospitals
from sites.imaging.intake import BrokenCase, read_scan
from sites.imaging.profile import profile_of
from sites.listing.listing import read_listing
from sites.policy.policy import load_policy
from sites.yaml_files import ConfigError

TASK = SegmentationConfig(kind="segmentation", dims=3, labels={1: "anterior", 2: "posterior"})


@pytest.fixture
def hippocampus(shared_data: Path) -> Path:
    return shared_data / "hippocampus"


def test_real_scans_are_divided_by_patient_and_none_is_lost(hippocampus: Path, tmp_path: Path) -> None:
    wards = make_hospitals(hippocampus, tmp_path / "wards", 4, seed=0)
    patients = [{c.patient for c in read_listing(ward).cases} for ward in wards]
    assert sum(len(p) for p in patients) == len(set().union(*patients)) == 112
    assert sum(len(read_listing(ward).cases) for ward in wards) == 174
    assert len(patients[0]) > len(patients[3]) >= 10
    for ward, mine in zip(wards, patients, strict=True):
        policy = load_policy(ward)
        assert policy.declared_patients % 5 == 0
        assert abs(policy.declared_patients - len(mine)) <= 2.5
        assert not policy.phantom


@pytest.mark.parametrize("skew", ["intensity", "size", "labels"])
def test_hospitals_can_be_unlike_in_what_their_scans_are(
    skew: str, hippocampus: Path, tmp_path: Path
) -> None:
    wards = make_hospitals(hippocampus, tmp_path / "wards", 4, seed=0, skew=skew)
    values, sizes = [], []
    for ward in wards:
        cases = read_listing(ward).cases
        first = {case.patient: case for case in reversed(cases)}.values()
        profiles = [profile_of(read_scan(ward, case, TASK)) for case in first]
        sizes.append(len(profiles))
        values.append([
            {"intensity": p.scale, "size": np.prod(p.shape),
             "labels": p.amounts.get(1, 0) / sum(p.amounts.values())}[skew]
            for p in profiles
        ])  # fmt: skip
    assert max(sizes) - min(sizes) <= 1
    for lower, higher in itertools.pairwise(values):
        assert np.median(lower) < np.median(higher)
    assert max(values[0]) <= min(values[3])


def test_hospitals_that_are_there_stay_as_they_are(hippocampus: Path, tmp_path: Path) -> None:
    wards = make_hospitals(hippocampus, tmp_path / "wards", 4, seed=0)
    (wards[0] / "state").mkdir()
    assert make_hospitals(hippocampus, tmp_path / "wards", 4, seed=1) == wards
    assert (wards[0] / "state").exists()


def test_without_a_list_of_subjects_scans_2k_1_and_2k_are_one_patient(
    hippocampus: Path, tmp_path: Path
) -> None:
    source = tmp_path / "plain"
    source.mkdir()
    for name in ("imagesTr", "labelsTr", "dataset.json"):
        (source / name).symlink_to(hippocampus / name)
    wards = make_hospitals(source, tmp_path / "wards", 2, seed=0)
    number = {c.case: c.patient for ward in wards for c in read_listing(ward).cases}
    assert number["hippocampus_007"] == number["hippocampus_008"]
    assert number["hippocampus_006"] != number["hippocampus_007"]


def test_one_channel_of_several_is_listed_and_read(tmp_path: Path) -> None:
    source, names = tmp_path / "Task05_Prostate", [f"prostate_{n:02d}" for n in range(20)]
    values = np.random.default_rng(0).normal(size=(20, 8, 9, 7, 2)).astype(np.float32)
    for kind in ("imagesTr", "labelsTr"):
        (source / kind).mkdir(parents=True)
    for name, image in zip(names, values, strict=True):
        label = (image[..., 0] > 1).astype(np.uint8)
        nib.save(nib.Nifti1Image(image, np.eye(4)), source / "imagesTr" / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(label, np.eye(4)), source / "labelsTr" / f"{name}.nii.gz")
    pairs = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names]
    content = {"training": pairs, "labels": {"0": "background", "1": "PZ"}}
    (source / "dataset.json").write_text(json.dumps(content))
    task = SegmentationConfig(kind="segmentation", dims=3, labels={1: "pz"})
    (ward,) = make_hospitals(source, tmp_path / "wards", 1, seed=0, channel=1)
    for case in read_listing(ward).cases:
        assert case.patient == case.case
        assert np.array_equal(
            read_scan(ward, case, task).image[0], values[names.index(case.case), ..., 1]
        )
    (whole,) = make_hospitals(source, tmp_path / "whole", 1, seed=0)
    with pytest.raises(BrokenCase, match="expected 3 dimensions, got 4"):
        read_scan(whole, read_listing(whole).cases[0], task)
    content["modality"] = {"0": "T2", "1": "ADC"}
    (source / "dataset.json").write_text(json.dumps(content))
    (both,) = make_hospitals(source, tmp_path / "both", 1, seed=0)
    channels = task.model_copy(update={"channels": ("adc", "t2")})
    for case in read_listing(both).cases:
        due = np.moveaxis(values[names.index(case.case)], -1, 0)[::-1]
        assert np.array_equal(read_scan(both, case, channels).image, due)


def test_a_folder_of_another_kind_and_too_many_hospitals_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a Decathlon folder"):
        make_hospitals(tmp_path, tmp_path / "wards", 4, seed=0)
    pairs = [{"image": f"imagesTr/h_{i:03d}.nii.gz", "label": ""} for i in range(30)]
    (tmp_path / "dataset.json").write_text(
        json.dumps({"training": pairs, "labels": {"0": "b", "1": "A"}})
    )
    with pytest.raises(ConfigError, match="at least 10 patients for each of 4"):
        make_hospitals(tmp_path, tmp_path / "wards", 4, seed=0)
    assert not (tmp_path / "wards").exists()
