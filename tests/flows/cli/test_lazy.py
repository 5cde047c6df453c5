"""Commands are imported when they are called."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from flows.cli import main
from flows.cli.main import app
from flows.cli.site import commands as site

HEAVY = "{'torch', 'numpy', 'monai', 'mlflow', 'prefect', 'opacus'}"


@pytest.mark.parametrize("words", [["--help"], ["site", "--help"], ["review", "--help"]])
def test_help_imports_no_heavy_library(words: list[str]) -> None:
    code = (
        "import sys\nfrom flows.cli.main import app\n"
        f"try:\n    app({words!r})\nexcept SystemExit:\n    pass\n"
        f"print('heavy:', sorted({HEAVY} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


@pytest.mark.parametrize("name", main.COMMANDS)
def test_each_command_is_where_the_table_says(name: str) -> None:
    done = CliRunner().invoke(app, [name, "--help"])
    assert done.exit_code == 0 and f" {name}" in done.stdout


@pytest.mark.parametrize("name", site.COMMANDS)
def test_each_command_of_a_hospital_is_where_the_table_says(name: str) -> None:
    done = CliRunner().invoke(app, ["site", name, "--help"])
    assert done.exit_code == 0 and f"site {name}" in done.stdout


@pytest.mark.parametrize(
    "words", [["log"], ["key"], ["site", "work"], ["site", "resolve"], ["nonsense"]]
)
def test_a_command_that_is_not_there_is_an_error_with_its_name(words: list[str]) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2 and f"No such command '{words[-1]}'" in done.output
