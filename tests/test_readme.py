"""What README and pages tell people to type exists; both languages say the same; the pages are made."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from browsing import needs_chromium
from playwright.sync_api import Page, expect
from pydantic import ValidationError
from typer.testing import CliRunner

from flows.cli.main import app
from flows.hospitals.federation import Federation
from flows.reporting.papers.checklist import Answers
from flows.tracking.access import Accounts
from models.config import Config
from privacy.accounting import Budget, PrivacyEvent, most_found, noise_for
from sites.policy.policy import Policy
from sites.study import Study

ROOT = Path(__file__).parent.parent
README, CHINESE = (ROOT / "README.md").read_text(), (ROOT / "README.zh-CN.md").read_text()
PAGES = {
    path: path.read_text()
    for path in (ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "decisions" not in path.parts
}
TYPED = "\n".join(
    block for text in PAGES.values() for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
)
COMMANDS = sorted(
    set(re.findall(r"(?:^|bin/)wardround ([a-z][a-z -]*[a-z])(?: |$)", TYPED, re.MULTILINE))
)
OPTIONS = sorted(
    {
        (words.strip(), option)
        for words, rest in re.findall(r"^wardround ((?:[a-z-]+ ?)+)([^\n#]*)", TYPED, re.MULTILINE)
        for option in re.findall(r"(--[a-z-]+)", rest)
    }
)
TARGETS = sorted(set(re.findall(r"^make ([a-z-]+)", TYPED, re.MULTILINE)))


def _command(words: str) -> list[str]:
    """Return the leading words that name a command, without its arguments."""
    groups = {"site", "review", "audit"}
    first, *rest = words.split()
    return [first, rest[0]] if first in groups and rest else [first]


def test_the_readme_has_two_screens_and_three_doors() -> None:
    assert len(README.splitlines()) <= 120
    for page in ("run-a-study", "join-as-a-hospital", "review-a-model"):
        assert f"docs/{page}.md" in README and f"docs/{page}.md" in CHINESE


def test_both_languages_have_the_same_commands() -> None:
    def blocks(text: str) -> list[str]:
        return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)

    assert blocks(README) == blocks(CHINESE)


def test_both_languages_make_the_same_promises_and_comparisons() -> None:
    for pattern in (r"`(test_\w+)`", r"\]\((https?://[^)]+)\)", r"\]\((docs/images/[^)]+)\)"):
        assert re.findall(pattern, README) == re.findall(pattern, CHINESE), pattern
    tables = [[line.count("|") for line in text.splitlines() if line.startswith("|")]
              for text in (README, CHINESE)]  # fmt: skip
    assert tables[0] == tables[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_there(command: str) -> None:
    assert CliRunner().invoke(app, [*_command(command), "--help"]).exit_code == 0


@pytest.mark.parametrize(("words", "option"), OPTIONS)
def test_each_option_is_there(words: str, option: str) -> None:
    shown = CliRunner().invoke(app, [*_command(words), "--help"], env={"COLUMNS": "200"}).stdout
    assert option in shown


@pytest.mark.parametrize("target", TARGETS)
def test_each_make_target_is_there(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", list(PAGES), ids=lambda path: path.name)
def test_each_file_that_a_page_links_is_there(path: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", PAGES[path]):
        assert (path.parent / link).exists(), link


def test_each_test_that_the_pages_name_is_there() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = {name for text in PAGES.values() for name in re.findall(r"`(test_\w+)`", text)}
    assert len(named) > 40
    assert {name for name in named if f"def {name}(" not in sources} == set()


def test_the_policy_it_shows_is_valid() -> None:
    text = PAGES[ROOT / "docs" / "join-as-a-hospital.md"]
    (policy,) = (t for t in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "declared" in t)
    assert Policy.model_validate(yaml.safe_load(policy)).declared_training == 68


def test_the_figures_of_the_page_on_epsilon_are_exact() -> None:
    page = PAGES[ROOT / "docs" / "epsilon.md"]
    rows = re.findall(r"^\| ([\d.]+) \| (\d+) \| 5 \|$", page, re.MULTILINE)
    assert len(rows) == 6
    for epsilon, found in rows:
        noise = noise_for(Budget(epsilon=float(epsilon), delta=1e-4), sampling_rate=1, steps=1)
        assert round(100 * most_found([PrivacyEvent(noise, 1.0, 1)], 1e-4)) == int(found)


def test_the_examples_of_the_reference_are_keys_of_a_study_and_a_policy() -> None:
    examples = yaml.safe_load((ROOT / "docs" / "reference" / "examples.yaml").read_text())
    for name, config in (("study", Study), ("site", Policy)):
        page = PAGES[ROOT / "docs" / "reference" / f"{name}.md"]
        first = {re.split(r"[. ]", key)[0] for key in examples[name]}
        assert first <= set(config.model_fields)
        assert all(f"| `{key}` |" in page for key in config.model_fields)


@pytest.fixture(scope="module")
def website(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages as a website in a folder; a warning while it is built is an error."""
    folder = tmp_path_factory.mktemp("website")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_pages_load_nothing_from_outside(website: Path) -> None:
    pages = [path.read_text() for path in website.rglob("*.html")]
    assert len(pages) > 20
    loaded = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"?(https?:[^\"\s>]+)", "".join(pages))
    assert [url for url in loaded if "wardround" not in url] == []


@needs_chromium
def test_the_search_finds_pages_that_are_opened_as_files(website: Path, page: Page) -> None:
    page.goto((website / "run-a-study.html").as_uri())
    page.locator("input.md-search__input").click()
    page.keyboard.type("free_answers_per_week")
    found = page.locator(".md-search-result__link").filter(has_text="Keys of site.yaml").first
    expect(found).to_be_visible()
    found.click()
    page.wait_for_url("**/reference/site.html**")


BLOCKS = [
    (path.name, block)
    for path, text in PAGES.items()
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
]
FILES = (Study, Policy, Federation, Accounts, Answers)
"""What a YAML file may be."""


@pytest.mark.parametrize(
    ("page", "block"), BLOCKS, ids=[f"{page}-{i}" for i, (page, _) in enumerate(BLOCKS)]
)
def test_each_piece_of_yaml_is_valid_where_it_belongs(page: str, block: str) -> None:
    content = yaml.safe_load(block)
    found = {model.__name__: _faults(model, content) for model in FILES}
    assert [] in found.values(), f"{page}: {found}"


def _faults(model: type[Config], part: object) -> list[str]:
    """Return the faults of a part of a settings file, beside the keys that it lacks."""
    try:
        model.model_validate(part)
    except ValidationError as error:
        return [str(e) for e in error.errors() if e["type"] != "missing" or len(e["loc"]) > 1]
    return []
