import json
from pathlib import Path

import pytest

from privacy.signing import public_hex
from sites.hospital import Hospital
from sites.setup.initialise import initialise, wrong
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


def test_the_file_says_what_each_key_means_and_names_its_schema_for_editors(tmp_path: Path) -> None:
    initialise(tmp_path, POLICY)
    text = (tmp_path / "site.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=site.schema.json\n")
    assert text.index("name:") < text.index("declared_patients:") < text.index("coordinator:")
    for line in text.splitlines():
        assert len(line) <= 110 or not line.startswith("#")
    keys = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all("\n# " in text[: text.index(key)].rpartition("\n\n")[0] + "\n# " for key in keys)
    assert json.loads((tmp_path / "site.schema.json").read_text())["properties"]["budget"]["description"]


@pytest.mark.parametrize(
    ("path", "right", "bad"),
    [
        ("name", "north", "North"),
        ("declared_patients", 90, 0),
        ("budget.epsilon", 8.0, -1.0),
        ("budget.epsilon", 8.0, float("inf")),
        ("budget.delta", 1e-4, 2.0),
        ("metrics", "exact", "perhaps"),
        ("coordinator.key", "0" * 64, "abc"),
        ("coordinator.api", "https://hub.example.org/api", "http://hub.example.org/api"),
    ],
)
def test_an_answer_is_checked_by_the_key_that_it_is_for(path: str, right: object, bad: object) -> None:
    assert wrong(path, right) is None
    assert wrong(path, bad)
