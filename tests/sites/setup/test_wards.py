"""Hospitals beside each other on one machine."""

from collections.abc import Callable
from pathlib import Path

import yaml

from sites.hospital import Hospital
from sites.policy.policy import load_policy
from sites.setup.wards import introduce, wards_in


def test_hospitals_that_are_introduced_list_each_others_keys_and_keep_their_policies_words(
    tmp_path: Path, small_wards: Callable[[Path], Path]
) -> None:
    wards = wards_in(small_wards(tmp_path / "wards"))
    before = {name: (ward / "site.yaml").read_text() for name, ward in wards.items()}
    introduce(wards.values())
    for name, ward in wards.items():
        text = (ward / "site.yaml").read_text()
        assert text.startswith(before[name].rstrip())
        peers = load_policy(ward).peers
        assert peers == {
            other: Hospital.open(wards[other]).public_key for other in wards if other != name
        }
        added = set(yaml.safe_load(text)) - set(yaml.safe_load(before[name]))
        assert added == {"peers", "shared_noise"}


def test_peers_that_a_hospital_has_listed_itself_stay(
    tmp_path: Path, small_wards: Callable[[Path], Path], edit: Callable[..., None]
) -> None:
    wards = wards_in(small_wards(tmp_path / "wards"))
    own = {"elsewhere": "ab" * 32}
    edit(wards["north"] / "site.yaml", peers=own)
    introduce(wards.values())
    assert load_policy(wards["north"]).peers == own


def test_what_a_policy_says_about_secure_sums_stays(
    tmp_path: Path, small_wards: Callable[[Path], Path], edit: Callable[..., None]
) -> None:
    wards = wards_in(small_wards(tmp_path / "wards"))
    edit(wards["north"] / "site.yaml", shared_noise="refuse")
    introduce(wards.values())
    north = load_policy(wards["north"])
    assert north.shared_noise == "refuse" and len(north.peers) == len(wards) - 1
