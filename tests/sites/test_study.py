import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from pydantic import ValidationError

from models.settings.starts import PUBLIC_AUGMENTATION
from privacy.signing import canonical
from sites.study import Study, load_study
from sites.yaml_files import ConfigError

STUDIES = Path(__file__).parent.parent.parent / "studies"


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_ready_study_is_valid_and_named_as_its_file(path: Path) -> None:
    assert load_study(path).name == path.stem


def test_the_same_study_has_the_same_hash_and_another_has_another(study_file) -> None:
    first = load_study(study_file()).sha256
    assert load_study(study_file()).sha256 == first
    assert load_study(study_file(seed=1)).sha256 != first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 1}, "learning_rate: unknown key"),
        ({"rounds": "six"}, "rounds: expected a whole number, got 'six'"),
        ({"rounds": None}, "rounds: expected this key, and it is missing"),
        ({"network": {"name": "VNet"}}, "network.name: .*VNet"),
        ({"network": {"name": "DenseNet121"}}, "expected a network for segmentation, got DenseNet121"),
        (
            {"preprocessing": {"shape": [15, 16, 16]}},
            "preprocessing.shape: expected multiples of 2 .*got .15, 16, 16",
        ),
        ({"preprocessing": {"shape": [16, 16]}}, "preprocessing.shape: expected task.dims = 3 numbers"),
        ({"privacy": {"mode": "central_noise"}}, "privacy.mode: .*central_noise"),
        ({"privacy": {"mode": "local"}}, "privacy.unit: expected this key"),
        ({"export": "weights"}, "distillation: expected exactly where export is student"),
        ({"distillation": None}, "distillation: expected exactly where export is student"),
        ({"strategy": {"name": "fed_magic"}}, "strategy: expected a name among"),
        ({"name": "../x"}, "name: "),
        ({"synthesis": {"along": [1, 0]}}, "synthesis.along: expected task.dims = 3 numbers"),
        ({"synthesis": {"along": [0, 0, 0]}}, "along: expected a direction, got zeros"),
        (
            {"export": "predictions", "strategy": {"name": "fed_adam"}},
            "strategy: expected fed_avg where predictions leave",
        ),
        (
            {"export": "predictions", "release_bits": 8},
            "release_bits: expected 32 where releases are masked sums or predictions",
        ),
        (
            {"strategy": {"name": "scaffold"}, "release_bits": 8},
            "release_bits: expected 32 with scaffold",
        ),
        ({"release_bits": 4}, "release_bits: expected"),
        (
            {"distillation": {"transfer": {"public": "abc"}, "steps": 1}},
            "distillation.transfer.public: expected",
        ),
        (
            {"export": "weights", "distillation": None, "evaluation": {"teachers": True}},
            "evaluation.teachers: expected false",
        ),
        (
            {"training": {"steps": 2, "lr": 0.1, "lot": "all", "fewest_steps": 3}},
            "fewest_steps: expected at most the 2 steps",
        ),
        (
            {
                "training": {"steps": 2, "lr": 0.1, "lot": "all", "fewest_steps": 1},
                "strategy": {"name": "scaffold"},
            },
            "training.fewest_steps: expected none with scaffold",
        ),
        (
            {"training": {"steps": 2, "lr": 0.1, "lot": "all", "membership": {"strength": 1}}},
            "training.membership: expected none under differential privacy",
        ),
        ({"strategy": {"name": "fed_nova"}}, "strategy: expected fed_nova with export: weights only"),
        ({"strategy": {"name": "ditto", "strength": 38}}, "strategy: expected a pull below 38"),
    ],
)
def test_a_fault_names_file_key_expectation_and_what_came(
    changes: dict[str, object], message: str, study_file
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_study(study_file(**changes))
    assert "small.yaml: " in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("epsilon", -1), ("epsilon", ".inf"), ("delta", 0), ("delta", 1), ("unit", "scan")],
)
def test_an_impossible_privacy_is_refused(key: str, value: object, study_file) -> None:
    privacy = {
        "mode": "local", "unit": "patient", "epsilon": 8, "delta": 1e-4,
        "clip": {"kind": "flat", "norm": 1},
    }  # fmt: skip
    with pytest.raises(ConfigError, match=f"privacy.{key}: expected"):
        load_study(study_file(privacy={**privacy, key: value}))


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [", "\x00"])
def test_what_is_no_mapping_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="s.yaml"):
        load_study(path)
    with pytest.raises(ConfigError, match="no such file"):
        load_study(tmp_path / "absent.yaml")


def test_seeds_differ_by_round_site_and_purpose(study_with) -> None:
    study = study_with()
    seeds = {
        study.seed_for(r, s, p) for r in (1, 2) for s in ("north", "east") for p in ("distil", "lots")
    }
    assert len(seeds) == 8


def test_the_first_and_last_model_are_always_evaluated(study_with) -> None:
    study = study_with(rounds=7, evaluation={"every": 3})
    assert [r for r in range(8) if study.is_evaluated(r)] == [0, 3, 6, 7]


def test_a_strategy_that_needs_more_hospitals_than_the_quorum_is_refused(study_with) -> None:
    with pytest.raises(ValidationError, match=r"sites\.min: expected at least 5, which krum needs"):
        study_with(strategy={"name": "krum", "faulty": 1})
    study_with(strategy={"name": "krum", "faulty": 1}, sites={"min": 5})


def test_scaffold_with_a_teacher_of_another_network_is_refused(study_with) -> None:
    teacher = {"name": "SegResNet", "init_filters": 8}
    distillation = {"transfer": "synthetic", "steps": 4, "images": 16, "teacher": teacher}
    with pytest.raises(ValidationError, match=r"expected no distillation\.teacher with scaffold"):
        study_with(strategy={"name": "scaffold"}, distillation=distillation)


def test_fed_bn_with_a_network_whose_norm_layers_learn_nothing_is_refused(study_with) -> None:
    with pytest.raises(ValidationError, match="fed_bn: expected a network of which some layers stay"):
        study_with(strategy={"name": "fed_bn"})


def test_a_promotion_asks_for_what_is_measured(study_with) -> None:
    for changes, message in (
        ({"metric": "hd95_mm"}, "promotion.metric: expected one of"),
        ({"metric": "dice", "calibration_error": 0.1}, "segmentation has no such metric"),
    ):
        with pytest.raises(ValueError, match=message):
            study_with(promotion=changes)
    with pytest.raises(ValueError, match="which has no epsilon"):
        study_with(
            promotion={"metric": "dice", "epsilon": 8}, privacy={"mode": "none"}, distillation=None,
            export="weights",
        )  # fmt: skip


SUMMED = {
    "sites": {"min": 4},
    "privacy": {"sum": {"dropouts": 1, "colluding": 1}},
    "training": {"steps": 1, "lr": 0.1, "lot": "all", "momentum": 0},
    "export": "gradient_sum",
    "distillation": None,
}


def summed(study_with: Callable[..., Study], mode: str = "shared_noise", **changes: object) -> Study:
    known = study_with().privacy.model_dump()
    keys = SUMMED | changes
    keys["privacy"] = {**known, **SUMMED["privacy"], "mode": mode, **changes.get("privacy", {})}
    return study_with(**keys)


def test_a_study_with_a_secure_sum_and_one_masked_are_read(study_with) -> None:
    assert summed(study_with).content_of(1) == "gradient_sum"
    assert summed(study_with, "masked", export="weights").is_summed
    assert not study_with().is_summed


@pytest.mark.parametrize(
    ("mode", "changes", "words"),
    [
        ("shared_noise", {"export": "weights"}, "no student, weights or predictions. Take `masked`"),
        ("shared_noise", {"export": "student", "distillation": {"transfer": "synthetic", "steps": 1}},
         "no student, weights or predictions"),
        ("masked", {}, "expected shared_noise exactly with export: gradient_sum"),
        ("masked", {"export": "predictions", "distillation": {"transfer": "synthetic", "steps": 1}},
         "their ensemble is no plain sum"),
        ("masked", {"export": "weights", "strategy": {"name": "krum"}, "sites": {"min": 5}},
         "in a secure sum nobody can"),
        ("masked", {"export": "weights", "strategy": {"name": "fed_nova"}},
         "in a secure sum nobody can"),
        ("masked", {"export": "weights", "sites": {"min": 4, "staleness": {"rounds": 1}}},
         "in a secure sum nobody can"),
        ("shared_noise", {"training": {"steps": 2, "lr": 0.1, "lot": "all", "momentum": 0}},
         "expected steps: 1, lot: all and momentum: 0"),
        ("shared_noise", {"training": {"steps": 1, "lr": 0.1, "lot": 4, "momentum": 0}},
         "expected steps: 1, lot: all and momentum: 0"),
        ("shared_noise", {"strategy": {"name": "fed_prox"}}, "without local steps or layers"),
        ("shared_noise", {"strategy": {"name": "ditto"}}, "without local steps or layers"),
        ("shared_noise", {"sites": {"min": 3}}, "Expected 2 (hospitals - dropouts) > hospitals + coll"),
        ("shared_noise", {"distillation": {"transfer": "synthetic", "steps": 1}},
         "expected rounds: last and no teacher with shared_noise"),
    ],
)  # fmt: skip
def test_what_a_share_of_noise_does_not_protect_and_what_no_sum_can_do_is_refused_with_the_reason(
    study_with, mode: str, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        summed(study_with, mode, **changes)


def of_hospitals(study_with: Callable[..., Study], **changes: object) -> Study:
    privacy = {"unit": "hospital", "clip": {"kind": "flat", "norm": 0.1}}
    keys = {"export": "weights", "privacy": privacy, "training": {"steps": 9, "lr": 0.1, "lot": 4}}
    return summed(study_with, **{**keys, **changes})


def test_a_study_with_the_hospital_as_the_unit_trains_plainly_for_as_many_steps_as_it_likes(
    study_with,
) -> None:
    adamw = {"steps": 50, "lr": 1e-3, "lot": 4, "optimizer": "adamw", "longest_gradient": 1.0}
    study = of_hospitals(study_with, training=adamw)
    assert study.shares_noise and not study.clips_patients and not study.samples_patients
    assert study.preprocessing.augmentation == PUBLIC_AUGMENTATION  # as in any plain training
    distilled = {"transfer": "synthetic", "steps": 1, "rounds": "last"}
    assert of_hospitals(study_with, distillation=distilled).content_of(1) == "weights"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"export": "gradient_sum"}, "export: expected weights with privacy.unit: hospital"),
        ({"strategy": {"name": "fed_bn"}}, "no noise covers what stays in them"),
        ({"strategy": {"name": "ditto"}}, "no noise covers what stays in them"),
        (
            {"training": {"steps": 9, "lr": "auto", "lot": 4}},
            "expected a number where training is plain",
        ),
        ({"evaluation": {"teachers": True}}, "no hospital distils a teacher"),
        ({"mode": "masked"}, "unit"),
        ({"mode": "local"}, "unit"),
    ],
)
def test_what_a_clipped_change_does_not_cover_is_refused_with_the_reason(
    study_with, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        of_hospitals(study_with, **changes)


def test_a_key_that_came_later_leaves_the_hash_of_studies_without_it(study_with) -> None:
    """Else no run of an earlier version could be verified, or go on."""
    plain, short = study_with(), study_with(release_bits=8)
    told = plain.model_dump(mode="json")
    del told["release_bits"]
    assert plain.sha256 == sha256(canonical(told)).hexdigest() != short.sha256
