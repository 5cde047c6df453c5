"""What a study may say about its task."""

import pytest
from pydantic import ValidationError

from models.settings.tasks import ClassificationConfig, RegressionConfig, SegmentationConfig

LESION = {"kind": "segmentation", "dims": 3, "labels": {1: "lesion"}}
AGE = {"kind": "regression", "dims": 3, "labels": {0: "age"}, "low": 18, "high": 90, "tolerance": 5}


def test_a_study_names_its_channels_or_has_one_image() -> None:
    assert SegmentationConfig(**LESION).input_names == ("image",)
    assert SegmentationConfig(**LESION, channels=["t1", "flair"]).in_channels == 2
    coloured = ClassificationConfig(
        kind="classification", dims=2, labels={0: "a", 1: "b"}, channels="rgb"
    )
    assert coloured.input_names == ("red", "green", "blue") and coloured.channel_names == ("image",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"channels": []}, "channels"),
        ({"channels": ["t1", "t1"]}, "expected distinct names"),
        ({"channels": ["T1"]}, "channels"),
        ({"channels": "rgb"}, "three dimensions, got rgb"),
        ({"missing_channel": "zeros"}, "refuse or skip with one channel"),
    ],
)
def test_channels_that_are_unclear_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SegmentationConfig(**LESION, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": {1: "age"}}, "the name of the one number"),
        ({"labels": {0: "age", 1: "sex"}}, "the name of the one number"),
        ({"low": 90}, "ends of a range"),
        ({"high": float("inf")}, "finite number"),
        ({"tolerance": 0}, "tolerance"),
    ],
)
def test_a_regression_without_a_range_or_a_name_is_refused(
    changes: dict[str, object], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        RegressionConfig(**AGE | changes)
