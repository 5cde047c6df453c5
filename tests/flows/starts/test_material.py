"""What a study needs in `public/` is missed before anything starts."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.starts.material import missing_material
from sites.study import load_study

STAGES = [
    {"kind": "label_maps", "folder": "atlas"},
    {"kind": "checkpoint", "file": "first.safetensors"},
]


@pytest.fixture
def study(study_file) -> Path:
    return study_file(start=STAGES, validation={"folder": "others"})


def test_each_folder_and_file_that_is_not_there_is_named_by_its_key(study: Path, tmp_path: Path) -> None:
    public = tmp_path / "public"
    (public / "atlas").mkdir(parents=True)
    missing = missing_material(load_study(study), public)
    assert [each.partition(":")[0] for each in missing] == [
        "`file` of stage 2 of start (checkpoint)",
        "validation.folder",
    ]
    assert f"expected {public / 'others'}, and it is not there" in missing[1]
    (public / "first.safetensors").touch()
    (public / "others").mkdir()
    assert missing_material(load_study(study), public) == []


def test_run_ends_at_once_and_plan_and_check_warn(
    study: Path, tmp_path: Path, small_wards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small_wards(tmp_path / "wards")
    ran = CliRunner().invoke(app, ["run", str(study)])
    assert ran.exit_code == 2 and "validation.folder: expected" in ran.stderr
    assert not (tmp_path / ".wardround").exists()
    planned = CliRunner().invoke(app, ["plan", str(study)])
    assert planned.exit_code == 1 and "`folder` of stage 1 of start (" in planned.output
    checked = CliRunner().invoke(app, ["check", str(study)])
    assert checked.exit_code == 0 and "warning: `folder` of stage 1 of start" in checked.stderr
