"""What README and pages tell people to type is accepted, and what can run here runs, page by page."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from deciders import KEYS
from homes import moved
from typer.main import get_command

import wardround
from flows.cli.main import app

ROOT = Path(__file__).parent.parent
PAGES = {
    path.name: path.read_text()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "decisions" not in path.parts
}
ELSEWHERE = {
    "--download": "asks a public server",
    "wards-pneumonia": "needs what --download brings",
    "--federation": "needs servers and hospitals of their own; tests/flows/hospitals has them",
    "--cluster": "needs a cluster; tests/flows/hospitals/test_cluster.py has one",
    "access": "needs a server with accounts; tests/flows/tracking/test_access.py has one",
    "worker": "runs until Ctrl-C; tests/flows/hospitals has it",
    "ui": "runs until Ctrl-C; tests/flows/tracking/test_pages.py opens it",
    "--cron": "runs until Ctrl-C",
    "site train": "needs open orders of another machine",
    "site import": "needs an archive's export; tests/sites/deidentification has them",
    "promote": "waits for people; tests/flows/test_promote.py has them",
    "hippocampus-approved": "needs a released model; tests/flows/serving has one",
    "verify-bundle": "needs a released model",
    "review sign TERMS": "needs the terms that `review show` prints",
    "site leave": "would end the hospital's part",
    "site recover-ledger": "asks; tests/sites/admission has it",
    "audit run": "takes minutes; tests/flows/test_audit.py has it",
}
"""Words of lines that do not run here, and why."""
PLACES = {
    "studies/hippocampus-plain.yaml": "small.yaml", "studies/hippocampus.yaml": "small.yaml",
    "hippocampus.yaml": "small.yaml", "/srv/wardround": "wards/north", "EXPORT": "export",
    "site audit": "site audit wards/north", "--sites hospitals": "--sites wards",
}  # fmt: skip
"""What stands in for the places of a reader's machine."""


def typed(page: str) -> Iterator[str]:
    """Yield the `wardround` lines of a page, without comments."""
    for block in re.findall(r"```sh\n(.*?)```", PAGES[page], re.DOTALL):
        for line in block.splitlines():
            words = re.sub(r"\s+#\s.*$", "", line).strip()
            if words.startswith("wardround "):
                yield words


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command that words name, and its arguments."""
    found = get_command(app)
    while hasattr(found, "get_command") and words and (inner := found.get_command(None, words[0])):
        found, words = inner, words[1:]
    return found, words


LINES = sorted({(page, line) for page in PAGES for line in typed(page)})


@pytest.mark.parametrize(("page", "line"), LINES, ids=str)
def test_each_line_is_accepted_with_its_arguments(page: str, line: str) -> None:
    del page
    command, given = command_of(shlex.split(line)[1:])
    made = command.make_context("x", given)  # raises for an option or an argument that is not there
    assert made.command is command


@pytest.fixture
def home(finished: Path, tmp_path: Path, edit) -> Path:
    """A coordinator's folder with a finished run, hospitals, and studies as the pages name them."""
    folder = moved(finished, tmp_path / "home").home.folder
    (folder / "studies").mkdir()
    for ward in (folder / "wards").iterdir():  # a page trains several times
        edit(ward / "site.yaml", budget={"epsilon": 500.0, "delta": 1e-3})
    (folder / "ada.key").write_bytes(KEYS["ada"].private_bytes_raw())
    return folder


def run(line: str, home: Path, small_study: dict) -> subprocess.CompletedProcess[str]:
    for place, other in PLACES.items():
        line = line.replace(place, other)
    if line == "wardround site init wards/north":
        line = "wardround site init wards/new"
    words = [sys.executable, "-m", "flows.cli", *shlex.split(line)[1:]]
    answers = "\n" * 12 if " init " in line else ""
    done = subprocess.run(
        words, cwd=home, input=answers, capture_output=True, text=True, timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if line == "wardround init study studies/mine.yaml":  # what it wrote is checked, a small one runs
        assert yaml.safe_load((home / "studies" / "mine.yaml").read_text())["name"] == "mine"
        (home / "studies" / "mine.yaml").write_text(yaml.safe_dump({**small_study, "name": "mine"}))
    return done


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if list(typed(page))])
def test_what_can_run_here_runs_page_by_page(page: str, home: Path, small_study: dict) -> None:
    lines = [line for line in typed(page) if not any(word in line for word in ELSEWHERE)]
    people = home / "people.yaml"
    for line in lines:
        if line.startswith("wardround review key"):
            made = run(line, home, small_study).stdout
            people.write_text(f"people:\n{made}")
            continue
        if line == "wardround plan studies/hippocampus.yaml --sites wards":
            shutil.copy(home / "small.yaml", home / "studies" / "hippocampus.yaml")
        done = run(line, home, small_study)
        allowed = (0, 1) if line.split()[1] == "plan" or "site check" in line else (0,)
        assert done.returncode in allowed, f"{line}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, line


def test_each_reason_why_a_line_does_not_run_here_is_of_a_line() -> None:
    every = "\n".join(line for _, line in LINES)
    assert {word for word in ELSEWHERE if word not in every} == set()


def test_the_python_of_a_page_runs(finished: Path, tmp_path: Path, monkeypatch) -> None:
    home = moved(finished, tmp_path / "home").home.folder
    monkeypatch.chdir(home)
    name = wardround.runs()["run"][0]
    (home / "studies").mkdir()
    shutil.copy(home / "small.yaml", home / "studies" / "mine.yaml")
    blocks = re.findall(r"```python\n(.*?)```", PAGES["run-a-study.md"], re.DOTALL)
    assert blocks
    for block in blocks:
        monkeypatch.setattr(wardround, "run", lambda *_, **__: name)  # trained already; has its own test
        exec(block, {})
