"""`wardround init study` writes a file that is right, with what each key means."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from flows.cli.main import app
from sites.study import load_study


@pytest.mark.parametrize("kind", ["segmentation", "classification", "regression"])
@pytest.mark.parametrize("dims", ["2", "3"])
@pytest.mark.parametrize("epsilon", ["8", "0"])
def test_what_it_writes_is_a_study(tmp_path: Path, kind: str, dims: str, epsilon: str) -> None:
    path = tmp_path / "mine.yaml"
    command = ["init", "study", str(path), "--kind", kind, "--dims", dims, "--epsilon", epsilon, "--yes"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    study = load_study(path)
    assert (study.name, study.task.kind, study.task.dims) == ("mine", kind, int(dims))
    assert (study.privacy.mode == "none") == (epsilon == "0")
    assert (tmp_path / "study.schema.json").exists()
    assert path.read_text().startswith("# yaml-language-server: $schema=study.schema.json")
    assert yaml.safe_load(path.read_text()).keys() >= {"task", "network", "privacy"}


def test_it_asks_for_what_is_not_given(tmp_path: Path) -> None:
    path = tmp_path / "asked.yaml"
    answers = "clasification\nclassification\n5\n2\nno no\nno yes\n-3\n4\n"  # wrong ones are asked again
    done = CliRunner().invoke(app, ["init", "study", str(path)], input=answers)
    assert done.exit_code == 0, done.output
    study = load_study(path)
    assert dict(study.task.labels) == {0: "no", 1: "yes"}
    assert study.privacy.epsilon == 4


def test_names_may_be_parted_by_commas_and_one_that_is_none_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "asked.yaml"
    answers = "segmentation\n2\nVessel disc\nvessel, disc\n8\n"
    done = CliRunner().invoke(app, ["init", "study", str(path)], input=answers)
    assert done.exit_code == 0, done.output
    assert "lower-case letters, digits, `_` or `-`, got 'Vessel'" in done.output
    assert dict(load_study(path).task.labels) == {1: "vessel", 2: "disc"}
    wrong = CliRunner().invoke(app, ["init", "study", str(tmp_path / "b.yaml"), "--label", "A", "--yes"])
    assert wrong.exit_code == 2 and "got 'A'" in wrong.output


def test_a_private_segmentation_has_a_start_and_a_rate_that_follows_from_the_noise(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mine.yaml"
    CliRunner().invoke(app, ["init", "study", str(path), "--yes"])
    study = load_study(path)
    assert [stage.kind for stage in study.start] == ["synthetic"]
    assert study.training.lr == "auto"


def test_a_file_that_is_there_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("mine")
    done = CliRunner().invoke(app, ["init", "study", str(path), "--yes"])
    assert done.exit_code == 2
    assert path.read_text() == "mine"
