"""Each command's `--help` ends with an example that the command itself accepts."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from flows.cli.examples import EXAMPLES
from flows.cli.main import app


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each command with its words; a group only if it does something itself."""
    names = command.list_commands(None) if hasattr(command, "list_commands") else []
    if not names or (path and command.invoke_without_command):
        yield path, command
    for name in names:
        yield from commands(command.get_command(None, name), (*path, name))


EVERY = dict(commands(get_command(app)))


def example_of(path: tuple[str, ...]) -> str:
    command = EVERY[path]
    found = [line for text in (command.help, command.epilog) for line in (text or "").splitlines()]
    return next(line.partition("Example: ")[2] for line in found if "Example: " in line)


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_each_command_has_an_example_that_it_accepts(path: tuple[str, ...]) -> None:
    words = shlex.split(example_of(path))
    assert tuple(words[: len(path) + 1]) == ("wardround", *path)
    given = words[len(path) + 1 :]
    EVERY[path].make_context("x", given[: _end(given)])
    shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "300"})
    assert "Example: wardround" in shown.stdout


def _end(words: list[str]) -> int | None:
    return words.index(">") if ">" in words else None


def test_no_example_is_of_a_command_that_is_not_there() -> None:
    assert EXAMPLES.keys() <= {" ".join(path) for path in EVERY}


def test_shells_complete_commands_and_options() -> None:
    def completed(line: str) -> str:
        environment = {
            **os.environ, "_WARDROUND_COMPLETE": "complete_bash", "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1),
        }  # fmt: skip
        command = [sys.executable, "-c", "from flows.cli.main import app; app(prog_name='wardround')"]
        return subprocess.run(command, env=environment, capture_output=True, text=True).stdout

    assert completed("wardround ver").split() == ["verify", "verify-bundle"]
    assert "ledger" in completed("wardround site led").split()
    assert "--sites" in completed("wardround run --si").split()


def test_no_color_is_heeded_and_color_is_there_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def printed(**environment: str) -> str:
        base = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
        command = [sys.executable, "-m", "flows.cli", "doctor", "--help"]
        return subprocess.run(
            command, env={**base, **environment}, capture_output=True, text=True
        ).stdout

    assert "\x1b[3" in printed(FORCE_COLOR="1") or "\x1b[1;3" in printed(FORCE_COLOR="1")
    plain = printed(FORCE_COLOR="1", NO_COLOR="1")
    assert "\x1b[3" not in plain and "\x1b[1;3" not in plain
