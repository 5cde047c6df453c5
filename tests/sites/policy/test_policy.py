from pathlib import Path

import pytest

from sites.hospital import Hospital
from sites.policy.policy import load_policy
from sites.yaml_files import ConfigError


@pytest.fixture
def ward(tmp_path: Path, small_wards) -> Path:
    return small_wards(tmp_path) / "north"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, "colour: unknown key"),
        ({"metrics": None}, "metrics: expected this key, and it is missing"),
        (
            {"metrics": "everything"},
            "metrics: expected 'exact', 'noised' or 'withheld', got 'everything'",
        ),
        ({"metrics": "noised"}, "noised_metrics: expected {epsilon, evaluations}"),
        ({"networks": ["VNet"]}, "'VNet' is none of them"),
        ({"budget": {"epsilon": -1, "delta": 1e-5}}, "budget.epsilon: expected .*greater than 0"),
        ({"declared_patients": 0}, "declared_patients"),
        ({"metrics": "withheld", "worst_case": "tell"}, "worst_case: expected withhold"),
        ({"data": "elsewhere"}, "data: expected a folder, got 'elsewhere'"),
        ({"approve": {"join": "perhaps"}}, "approve.join: expected 'auto' or 'manual'"),
    ],
)
def test_a_fault_names_file_key_and_what_was_expected(
    changes: dict[str, object], message: str, ward: Path, edit
) -> None:
    edit(ward / "site.yaml", **changes)
    with pytest.raises(ConfigError, match=message) as caught:
        load_policy(ward)
    assert "site.yaml" in str(caught.value)


def test_the_declared_number_of_training_patients_follows_the_declared_numbers_alone(
    ward: Path, edit
) -> None:
    edit(ward / "site.yaml", declared_patients=60, evaluation_fraction=0.25)
    assert load_policy(ward).declared_training == 45


def test_repeatable_noise_is_for_made_up_hospitals_alone(ward: Path, edit) -> None:
    assert Hospital.open(ward, test_noise=1).noise("x")[1] == "test"
    assert Hospital.open(ward).noise("x")[1] == "system"
    edit(ward / "site.yaml", phantom=False)
    with pytest.raises(ConfigError, match="phantom: expected true"):
        Hospital.open(ward, test_noise=1)
