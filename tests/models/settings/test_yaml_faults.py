"""Every fault of a file is told at once, by its own keys and lines, with the key that was meant."""

import re
from pathlib import Path

import pytest

from sites.policy.policy import Policy
from sites.study import Study, load_study
from sites.yaml_files import ConfigError, load

STUDY = """\
name: head
task:
  kind: segmentation
  dims: 4
  labels: {1: head}
network:
  name: UNet
  chanels: [8, 16]
rounds: 0
sites: {min: 2, deadline: 3}
preprocessing: {shape: [24, 24, 24], augmentation: {copy: 2}}
start:
  - {kind: public, folder: made-up, stepz: 3}
training: {steps: 3, lr: 0.1}
privacy: {mode: local, unit: patient, epsilon: -1, delta: 1.0e-4, clip: {kind: normalised, nrm: 1}}
export: student
strategy: {name: fed_avg}
zzz: 3
"""
POLICY = """\
name: north
declared_patients: 40
min_patients: 10
min_evaluation_patients: 2
budget: {epsilon: 8, delta: 1.0e-5}
networks: [UNet]
metrics: exact
on_broken_case: skip
"""
SHARED = {
    "mode": "shared_noise", "epsilon": 8, "delta": 1e-4, "clip": {"kind": "flat", "norm": 1},
    "accountants": ["rdp"],
}  # fmt: skip
FAULTS = """\
task.dims: expected 2 or 3, got 4 (line 4).
network.channels: expected this key, and it is missing (line 6).
network.chanels: unknown key (line 8). Did you mean channels?
rounds: expected greater than or equal to 1, got 0 (line 9).
sites.deadline: unknown key (line 10). Did you mean deadline_s?
preprocessing.augmentation.copy: unknown key (line 11). Did you mean copies?
start.0.stepz: unknown key (line 13). Did you mean steps?
training.lot: expected this key, and it is missing (line 14).
privacy.epsilon: expected greater than 0, got -1 (line 15).
privacy.clip.norm: expected this key, and it is missing (line 15).
privacy.clip.nrm: unknown key (line 15). Did you mean norm?
zzz: unknown key (line 18). Remove it or correct its spelling.
distillation: expected exactly where export is student or predictions; add it, or export weights.
"""


def told(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_study(path)
    return [line.removeprefix(f"{path}: ") for line in str(error.value).splitlines()]


def test_each_fault_of_a_study_has_its_line_and_its_way_out(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    assert told(tmp_path / "study.yaml") == FAULTS.splitlines()


def test_sections_that_dont_fit_each_other_are_all_named(tmp_path: Path, study_file) -> None:
    path = study_file(
        distillation=None,
        preprocessing={"shape": [24, 24]},
        training={"steps": 3, "lr": 0.1, "lot": "all", "optimizer": "adamw"},
    )
    faults = told(path)
    assert len(faults) == 3
    assert "preprocessing.shape: expected task.dims = 3 numbers, got [24, 24] (line 9)." in faults
    assert any(fault.startswith("training: expected sgd") for fault in faults)
    assert any(fault.startswith("distillation: expected exactly where") for fault in faults)


def test_faults_among_sections_are_told_beside_those_of_single_keys(tmp_path: Path, study_file) -> None:
    path = study_file(distillation=None, rounds=0, seed=-1, cards={"intended_use": "none"})
    assert [fault.partition(" (line")[0] for fault in told(path)] == [
        "rounds: expected greater than or equal to 1, got 0",
        "seed: expected greater than or equal to 0, got -1",
        "cards: unknown key",
        "distillation: expected exactly where export is student or predictions; add it, or export "
        "weights.",
    ]


def test_a_fault_that_may_come_from_a_wrong_values_stand_in_is_not_told(
    tmp_path: Path, study_file
) -> None:
    path = study_file(
        task={"kind": "segmentation", "dims": 4, "labels": {1: "head"}},
        distillation=None,
        preprocessing={"shape": [24, 24, 24]},
    )
    faults = told(path)
    assert [fault.partition(":")[0] for fault in faults] == ["task.dims", "distillation"]


@pytest.mark.parametrize(
    "changes",
    [
        {
            "privacy": {**SHARED, "unit": "hospitl"}, "export": "weights", "distillation": None,
            "training": {"steps": 3, "lr": 0.1, "lot": 4},
        },
        {
            "task": {"kind": "segmentation", "dims": "3", "labels": {1: "head"}},
            "preprocessing": {"shape": [24, 24, 24], "augmentation": {"flip": [0, 2]}},
        },
    ],
)  # fmt: skip
def test_a_fault_that_holds_for_one_of_the_values_alone_that_were_meant_is_not_told(
    changes: dict[str, object], study_file
) -> None:
    assert len(told(study_file(**changes))) == 1


def test_a_fault_of_a_group_as_a_whole_is_told_by_the_files_own_key(study_file) -> None:
    wrong = {"kind": "classification", "dims": 3, "labels": {1: "head", 3: "tail"}}
    (fault, *_) = told(study_file(task=wrong))
    assert re.match(r"task: expected the labels 0, 1, .* \(line \d+\)\.", fault)


def test_a_key_that_is_a_list_is_said(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("? [a, b]\n: c\n")
    assert (
        "expected a word as key in line 1, got a list or a mapping" in told(tmp_path / "study.yaml")[0]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected keys and values, got an empty file"),
        ("- a\n- b\n", "expected keys and values, got a list"),
        ("name: [\n", "can't be read as YAML"),
    ],
)
def test_what_is_no_mapping_is_said(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_study(tmp_path / "study.yaml")


def test_the_same_key_twice_deep_in_a_file_is_found_at_its_own_place(tmp_path: Path) -> None:
    """`name` stands in several sections; a fault names the line of the one that is wrong."""
    (tmp_path / "site.yaml").write_text("name: North West\nbudget:\n  epsilon: no\n  delta: 1\n")
    with pytest.raises(ConfigError) as error:
        load(tmp_path / "site.yaml", Policy)
    faults = str(error.value)
    assert "site.yaml: name: expected" in faults and "got 'North West' (line 1)." in faults
    assert "budget.epsilon: expected" in faults and "(line 3)." in faults
    assert "budget.delta: expected less than 1, got 1 (line 4)." in faults


def test_every_key_that_a_study_knows_is_in_its_schema() -> None:
    """Suggestions come from there."""
    assert set(Study.model_json_schema()["properties"]) == set(Study.model_fields)


MISSPELT = """\
name: Bad Name
task: {kind: segmentation, dims: 3, labels: {1: a}}
network: {name: Unet, channels: [4, 8]}
rounds: none
sites: {min: 2}
preprocessing: {shape: [16, 16, 16], intensity: zscore}
training: {steps: 2, lr: 0.1, lot: al}
privacy: {mode: local, unit: pacient, epsilon: 20, delta: 0.001, clip: {kind: normalised, norm: 1.0}}
export: weight
strategy: {name: fedavg}
"""


def test_a_value_that_is_misspelt_is_told_once_in_words_with_the_one_that_was_meant(
    tmp_path: Path,
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(MISSPELT)
    with pytest.raises(ConfigError) as caught:
        load_study(path)
    lines = [line.removeprefix(f"{path}: ") for line in str(caught.value).splitlines()]
    assert [line.partition(":")[0] for line in lines] == [
        "name", "network.name", "rounds", "preprocessing.intensity", "training.lot", "privacy.unit",
        "export", "strategy",
    ]  # fmt: skip
    assert lines[0].endswith("letters, digits, `_` or `-`, got 'Bad Name' (line 1).")
    assert lines[2] == "rounds: expected a whole number, got 'none' (line 4)."
    meant = [line.partition("Did you mean ")[2].rstrip("?") for line in lines]
    assert meant == ["", "UNet", "", "z_score", "all", "patient", "weights", "fed_avg"]
    assert not any(word in str(caught.value) for word in ("Input", "literal", "constrained", "Tuple"))


def test_a_section_of_a_misspelt_kind_has_its_own_faults_told_beside_it(study_file) -> None:
    clip = {"kind": "normalized", "nrm": 1}
    found = told(study_file(privacy={"mode": "locl", "unit": "patient", "epsilon": -3, "clip": clip}))
    assert [re.sub(r" \(line \d+\)", "", line) for line in found] == [
        "privacy.mode: expected one of 'none', 'local', 'masked', 'shared_noise', got 'locl'. "
        "Did you mean local?",
        "privacy.epsilon: expected greater than 0, got -3.",
        "privacy.delta: expected this key, and it is missing.",
        "privacy.clip.kind: expected one of 'flat', 'normalised', 'adaptive', got 'normalized'. "
        "Did you mean normalised?",
        "privacy.clip.norm: expected this key, and it is missing.",
        "privacy.clip.nrm: unknown key. Did you mean norm?",
    ]


def test_a_section_of_a_kind_that_nobody_knows_is_told_alone(study_file) -> None:
    (fault,) = told(study_file(privacy={"mode": "zzz", "epsilon": -3}))
    assert fault.startswith("privacy.mode: expected one of") and "Did you mean" not in fault


def test_a_misspelt_key_of_a_strategy_is_told_with_the_one_that_was_meant(study_file) -> None:
    (fault,) = told(study_file(strategy={"name": "fed_avg_m", "momentm": 0.9}))
    assert re.fullmatch(r"strategy\.momentm: unknown key \(line \d+\)\. Did you mean momentum\?", fault)


def test_every_fault_of_a_strategy_is_told(study_file) -> None:
    faults = told(study_file(strategy={"name": "fed_avg_m", "momentm": 1, "zzz": 2, "lr": -1}))
    assert [re.sub(r" \(line \d+\)", "", each) for each in faults] == [
        "strategy.momentm: unknown key. Did you mean momentum?",
        "strategy.zzz: unknown key. Known here: momentum, lr.",
        "strategy.lr: expected greater than 0, got -1.",
    ]
    faults = told(study_file(strategy={"nme": "fed_avg"}))
    assert [each.partition(" (line")[0] for each in faults] == [
        "strategy.name: expected this key, and it is missing", "strategy.nme: unknown key",
    ]  # fmt: skip


def test_a_misspelt_kind_in_a_list_is_told_with_the_one_that_was_meant(study_file) -> None:
    (fault,) = told(study_file(start=[{"kind": "synthetik"}]))
    assert fault.startswith("start.0.kind: expected one of 'synthetic'")
    assert fault.endswith("Did you mean synthetic?")


def test_a_section_without_its_kind_lacks_that_key_alone(study_file, tmp_path: Path) -> None:
    (fault,) = told(study_file(privacy={"epsilon": 3}))
    assert re.fullmatch(r"privacy\.mode: expected this key, and it is missing \(line \d+\)\.", fault)


def test_a_word_in_place_of_a_section_and_a_section_in_place_of_a_word(study_file) -> None:
    (fault,) = told(study_file(network="UNet"))
    assert fault.startswith("network: expected keys and values, got 'UNet'")
    prepared = {"shape": [16, 16, 16], "intensity": "z_score", "fit": {"kind": "patch"}}
    (fault,) = told(study_file(preprocessing=prepared))
    assert fault.startswith("preprocessing.fit.kind: expected 'patches', got 'patch'")


def test_a_section_that_can_be_one_of_several_asks_for_its_kind(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(POLICY + "statistics: {smallest: 5}\n")
    with pytest.raises(ConfigError) as caught:
        load(path, Policy)
    assert str(caught.value) == (
        f"{path}: statistics.kind: expected this key, and it is missing (line 9)."
    )


def test_a_value_of_two_kinds_is_wrong_once_and_costs_no_other_key(study_file) -> None:
    (fault,) = told(
        study_file(
            export="student",
            distillation={"transfer": "sintetic", "steps": 3},
            evaluation={"teachers": True},
        )
    )
    assert fault.startswith("distillation.transfer: expected 'synthetic'")


def test_what_does_not_fit_among_sections_is_told_beside_lists_and_sections_that_are_wrong(
    study_file,
) -> None:
    found = told(study_file(network="UNet", preprocessing={"shape": [16, 16]}, rounds=0))
    assert [each.partition(":")[0] for each in found] == ["network", "rounds", "preprocessing.shape"]


def test_a_misspelt_file_is_told_with_the_one_that_was_meant(study_file) -> None:
    path = study_file()
    (message,) = told(path.with_name("smal.yaml"))
    assert message.endswith(f"no such file. Did you mean {path}?")
