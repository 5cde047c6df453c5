"""What the how-to guides install and start exists, and systemd accepts it.

`.ci/run` lets apt look up every package that a page installs.
"""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.main import app

ROOT = Path(__file__).parent.parent
UNITS = sorted((ROOT / "deploy").glob("*.service"))
PAGES = "\n".join(path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
INSTALLED = "/opt/wardround/bin/"
"""Where the how-to guides install Wardround, and the units look for it."""
OWN = Path(sys.executable).parent
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

pytestmark = pytest.mark.slow  # each program is started; .ci/run has these
needs_systemd = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="Debian's systemd is absent"
)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def commands_of(unit: Path) -> list[list[str]]:
    """Return the commands that a unit runs, as words."""
    text = unit.read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"^Exec\w+=(.*)$", text, re.MULTILINE)]


def test_each_service_that_a_page_starts_or_stops_is_there() -> None:
    named = set(
        re.findall(r"wardround-[a-z-]+(?=[^\n]*)", "\n".join(re.findall(r"systemctl .*", PAGES)))
    )
    assert len(named) >= 5
    assert named <= {unit.stem for unit in UNITS}


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_accepts_each_unit(unit: Path, tmp_path: Path) -> None:
    copied = tmp_path / unit.name
    copied.write_text(unit.read_text().replace(INSTALLED, f"{OWN}/"))
    assert verified(copied) == (0, "")
    copied.write_text(copied.read_text().replace("ExecStart=", "ExecStart=/no-such-place"))
    assert verified(copied)[0] != 0  # it does look


def verified(unit: Path) -> tuple[int, str]:
    """Return how systemd's own check of a unit ends, and what it says."""
    done = run("systemd-analyze", "verify", "--man=no", str(unit))
    return done.returncode, done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_each_program_of_a_unit_knows_its_command_and_options(unit: Path) -> None:
    found = commands_of(unit)
    assert found
    for program, *words in found:
        assert program.startswith(INSTALLED)
        name = program.removeprefix(INSTALLED)
        options = [word for word in words if re.fullmatch("--[a-z-]+", word)]
        named = [word for word in words[:2] if re.fullmatch(r"[a-z]+", word)]
        if name == "wardround":
            told = CliRunner().invoke(app, [*named, "--help"], env={"COLUMNS": "200"})
            text, code = told.stdout, told.exit_code
        else:
            done = run(str(OWN / name), *named, "--help")
            text, code = done.stdout, done.returncode
        assert code == 0, (unit.name, named)
        assert [option for option in options if option not in text] == []


def test_each_extra_that_a_page_installs_is_there() -> None:
    named = set(re.findall(r"pip install[^\n`]*\[([a-z,]+)\]", PAGES))
    assert named >= {"access", "cluster", "pdf"}
    assert {extra for each in named for extra in each.split(",")} <= EXTRAS.keys()


def test_what_ci_has_apt_look_up_is_every_package_of_the_pages() -> None:
    (pattern,) = re.findall(r"grep -rhoP '([^']+)' README\.md docs", (ROOT / ".ci" / "run").read_text())
    found = re.findall(pattern.replace(r"\K", "").replace("apt install ", "apt install (") + ")", PAGES)
    assert {"nginx", "postgresql", "python3-venv", "sudo", "make"} <= set(" ".join(found).split())
