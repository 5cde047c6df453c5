from pathlib import Path

import pytest

from privacy.signing import public_hex
from sites.hospital import Hospital
from sites.setup.initialise import initialise
from sites.yaml_files import ConfigError

POLICY = {
    "name": "north",
    "declared_patients": 90,
    "budget": {"epsilon": 8, "delta": 1e-4},
    "metrics": "withheld",
    "coordinator": {
        "key": "0" * 64,
        "exchange": "https://hub.example.org/exchange/",
        "api": "https://hub.example.org/api",
    },
}


def test_a_new_hospital_has_a_policy_and_keys_that_nobody_else_can_read(tmp_path: Path) -> None:
    hospital = initialise(tmp_path / "north", POLICY)
    again = Hospital.open(tmp_path / "north")
    assert again.public_key == hospital.public_key == public_hex(hospital.key)
    assert again.policy.coordinator and again.policy.coordinator.api == "https://hub.example.org/api"
    assert again.policy.plain_studies == "refuse"
    assert (again.state.stat().st_mode & 0o777) == 0o700
    assert ((again.state / "keys" / "hospital").stat().st_mode & 0o777) == 0o600


def test_a_policy_that_is_there_stays(tmp_path: Path) -> None:
    initialise(tmp_path, POLICY)
    before = (tmp_path / "site.yaml").read_bytes()
    with pytest.raises(ConfigError, match="Edit it instead"):
        initialise(tmp_path, {**POLICY, "name": "other"})
    assert (tmp_path / "site.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"metrics": "perhaps"}, "metrics"),
        ({"name": "North Hospital"}, "name"),
        ({"coordinator": {**POLICY["coordinator"], "key": "abc"}}, "coordinator.key"),
        ({"data": "nowhere"}, "data"),
        ({"declared_patients": 0}, "declared_patients"),
    ],
)
def test_a_wrong_answer_is_named_and_leaves_nothing(
    tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigError, match=rf"site\.yaml: {named}: expected"):
        initialise(tmp_path, POLICY | changes)
    assert not (tmp_path / "site.yaml").exists()
    assert not (tmp_path / "state").exists()
