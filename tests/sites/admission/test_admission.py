import json
from pathlib import Path

import pytest
from contrasts import make_ward

from sites.admission.admission import admit, check_list
from sites.hospital import Hospital
from sites.policy.policy import Policy, Refused, load_policy

PRIVACY = {
    "mode": "local", "unit": "patient", "epsilon": 20, "delta": 1e-3,
    "clip": {"kind": "normalised", "norm": 1.0},
}  # fmt: skip


@pytest.fixture
def policy(tmp_path: Path, small_wards) -> Policy:
    return load_policy(small_wards(tmp_path) / "north")


def test_a_study_within_the_policy_is_admitted(policy: Policy, study_with) -> None:
    assert admit(policy, study_with()) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"privacy": {**PRIVACY, "epsilon": 51}}, "asks for epsilon 51, the policy allows 50"),
        ({"privacy": {**PRIVACY, "delta": 0.01}}, "asks for delta 0.01, the policy allows 0.001"),
        ({"privacy": {"mode": "none"}}, "plain_studies: refuse"),
    ],
)
def test_a_study_cannot_widen_a_policy(
    changes: dict[str, object], message: str, policy: Policy, study_with
) -> None:
    with pytest.raises(Refused, match=message):
        admit(policy, study_with(**changes))


def test_a_network_that_the_policy_does_not_allow_is_refused_for_student_and_teacher(
    policy: Policy, study_with
) -> None:
    only_segresnet = policy.model_copy(update={"networks": ("SegResNet",)})
    with pytest.raises(Refused, match="network UNet"):
        admit(only_segresnet, study_with())
    only_unet = policy.model_copy(update={"networks": ("UNet",)})
    with pytest.raises(Refused, match="network SegResNet"):
        teacher = {"name": "SegResNet", "blocks_down": [1, 1]}
        distillation = {"transfer": "synthetic", "steps": 4, "teacher": teacher}
        admit(only_unet, study_with(distillation=distillation))


def test_a_delta_of_one_over_the_declared_number_is_refused(policy: Policy, study_with) -> None:
    many = policy.model_copy(update={"declared_patients": 2000})
    with pytest.raises(Refused, match="one over the declared"):
        admit(many, study_with())


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (
            {"0": "background", "1": "tail", "2": "head"},
            "label 1 is tail in the hospital's list and head in",
        ),
        ({"0": "background", "1": "Head", "2": "TAIL"}, None),
        ({"0": "background", "1": "head"}, "labels [1, 2] differ from"),
    ],
)
def test_a_label_means_the_same_at_the_hospital_as_in_the_study(
    names: dict[str, str], reason: str | None, tmp_path: Path, small_wards, study_with
) -> None:
    """With two structures the other way round, a hospital would train and harm everybody."""
    ward = small_wards(tmp_path) / "north"
    listed = json.loads((ward / "dataset.json").read_text())
    (ward / "dataset.json").write_text(json.dumps({**listed, "labels": names}))
    hospital = Hospital.open(ward)
    if reason is None:
        check_list(hospital, study_with())
        return
    with pytest.raises(Refused) as caught:
        check_list(hospital, study_with())
    assert reason in str(caught.value)


CHANNELS = {
    "kind": "segmentation", "dims": 3, "labels": {1: "head", 2: "tail"}, "channels": ["t1", "flair"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("missing", "listed", "words"),
    [
        ("refuse", {"t1": "t1", "flair": "flair"}, None),
        ("refuse", {"t1": "t1"}, "no case of the hospital's list has the study's channel flair"),
        ("skip", {"t1": "t1"}, "no case of the hospital's list has the study's channel flair"),
        ("zeros", {"t1": "t1"}, None),
        ("zeros", {"t1": "adc"}, "no case of the hospital's list has a channel of the study"),
    ],
)
def test_what_a_hospital_lacks_is_decided_on_its_list(
    missing: str, listed: dict[str, str], words: str | None, tmp_path: Path, study_with
) -> None:
    study = study_with(task=CHANNELS | {"missing_channel": missing})
    ward = make_ward(tmp_path / "north", listed, 12, 0)
    for image in (ward / "images").iterdir():
        image.write_bytes(b"")  # no scan is opened
    if words is None:
        check_list(Hospital.open(ward), study)
        return
    with pytest.raises(Refused, match=words):
        check_list(Hospital.open(ward), study)


def test_a_study_of_one_image_finds_it_under_the_name_that_the_hospital_gives_it(
    tmp_path: Path, study_with, edit
) -> None:
    ward = make_ward(tmp_path / "north", {"t1": "T1w", "flair": "FLAIR"}, 12, 0)
    with pytest.raises(Refused, match="the study's channel image"):
        check_list(Hospital.open(ward), study_with())
    edit(ward / "site.yaml", channels={"image": "T1w"})
    check_list(Hospital.open(ward), study_with())


def test_a_map_of_labels_makes_a_hospitals_list_fit(tmp_path: Path, study_with, edit) -> None:
    ward = make_ward(tmp_path / "north", {"t1": "image"}, 12, 0, channels={"image": "image"})
    (ward / "labels.csv").write_text("value,name\n1,head\n4,Cauda\n")
    with pytest.raises(Refused, match="labels"):
        check_list(Hospital.open(ward), study_with())
    edit(ward / "site.yaml", label_map={"cauda": 2})
    check_list(Hospital.open(ward), study_with())
