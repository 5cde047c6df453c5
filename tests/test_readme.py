"""What the README tells people to type exists."""

import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from flows.cli.main import app
from sites.policy.policy import Policy

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = sorted(set(re.findall(r"^wardround ([a-z -]*[a-z])(?: |$)", README, re.MULTILINE)))
TARGETS = sorted(set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE)))


def test_the_readme_names_commands_and_targets() -> None:
    assert len(COMMANDS) >= 5
    assert {"demo", "ui", "test", "check"} <= set(TARGETS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_there(command: str) -> None:
    words = [word for word in command.split() if not word.startswith("-")]
    assert CliRunner().invoke(app, [*words, "--help"]).exit_code == 0


@pytest.mark.parametrize("target", TARGETS)
def test_each_make_target_is_there(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_each_file_it_names_is_there() -> None:
    for path in re.findall(r"\b(?:studies|docs|flows)/[\w./-]+\.\w+", README):
        assert (ROOT / path).exists(), path


def test_the_policy_it_shows_is_valid() -> None:
    (text,) = (t for t in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "declared" in t)
    assert Policy.model_validate(yaml.safe_load(text)).declared_training == 68
