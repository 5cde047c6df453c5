from pathlib import Path

import pytest

from flows.cli.site.rehearsal import rehearse
from sites.hospital import Hospital
from sites.study import load_study

PICTURES = {
    "name": "pictures",
    "task": {"kind": "classification", "dims": 2, "labels": {0: "well", 1: "ill"}},
    "network": {"name": "resnet10"},
    "preprocessing": {"shape": [32, 32]},
    "distillation": None,
    "export": "weights",
}


@pytest.mark.parametrize("changes", [{}, pytest.param(PICTURES, marks=pytest.mark.slow)])
def test_a_round_on_made_up_patients_ends_in_a_release_and_leaves_the_hospital_as_it_was(
    tmp_path: Path, small_wards, study_file, edit, changes: dict
) -> None:
    ward = small_wards(tmp_path / "wards") / "north"
    edit(
        ward / "site.yaml", networks=["UNet", "resnet10"], approve={"join": "manual", "export": "manual"}
    )
    hospital, study = Hospital.open(ward), load_study(study_file(**changes))
    before = {path: path.read_bytes() for path in ward.rglob("*") if path.is_file()}
    tried = list(rehearse(hospital, study))
    assert [(each.what, each.is_fine) for each in tried] == [
        ("join", True), ("evaluate", True), ("contribute", True),
    ]  # fmt: skip
    assert "bytes, epsilon" in tried[-1].result
    assert {path: path.read_bytes() for path in ward.rglob("*") if path.is_file()} == before


def test_what_would_be_refused_in_earnest_is_refused_and_who_is_out_of_reach_is_named(
    tmp_path: Path, small_wards, study_file, edit
) -> None:
    ward = small_wards(tmp_path / "wards") / "north"
    known = {
        "key": "0" * 64,
        "exchange": "https://127.0.0.1:9/exchange/",
        "api": "https://127.0.0.1:9/api",
    }
    edit(ward / "site.yaml", budget={"epsilon": 1.0, "delta": 1e-3}, coordinator=known)
    tried = list(rehearse(Hospital.open(ward), load_study(study_file())))
    assert [(each.what, each.is_fine) for each in tried] == [
        ("join", False), ("exchange", False), ("Prefect's API", False),
    ]  # fmt: skip
    assert "asks for epsilon 20, the policy allows 1" in tried[0].result
