"""Licence, citation, contributing, security and glossary agree with the code and with one another."""

import re
import shlex
import tomllib
from hashlib import sha256
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
"""The sha256 of apache.org's LICENSE-2.0.txt."""
DOCUMENTS = ("CONTRIBUTING.md", "SECURITY.md", "docs/glossary.md")
FOLDERS = "flows|sites|privacy|models|tests|docs|studies|benchmarks|deploy|\\.ci"
PATH = re.compile(rf"(?:(?:{FOLDERS})/[\w./-]*|[\w.-]+\.(?:md|toml|txt|cff)|LICENSE|Makefile)(?:::\w+)?")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()
TERMS = re.findall(r"^\*\*(.+?)\*\*", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)


def prose(document: str) -> str:
    return (ROOT / document).read_text()


def code_in(document: str) -> list[str]:
    """Return what stands in backticks, outside of blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", prose(document), flags=re.DOTALL))


def places_in(document: str) -> list[str]:
    """Return the paths, and tests behind `::`, that a document names in backticks."""
    return sorted({code for code in code_in(document) if PATH.fullmatch(code)})


NAMED = [(document, place) for document in DOCUMENTS for place in places_in(document)]


def test_the_licence_is_the_apache_licence_unchanged() -> None:
    assert sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2


def test_package_and_citation_name_the_same_licence_and_authors() -> None:
    assert PROJECT["license"] == CITATION["license"] == "Apache-2.0"
    assert PROJECT["license-files"] == ["LICENSE"]
    assert PROJECT["authors"] == CITATION["authors"] == [{"name": "The Wardround developers"}]


def test_package_citation_changelog_and_security_name_the_same_version() -> None:
    newest = re.search(r"^## (\S+)", prose("CHANGELOG.md"), re.MULTILINE)
    assert newest is not None
    assert PROJECT["version"] == CITATION["version"] == newest[1]
    assert f"| {PROJECT['version'].rpartition('.')[0]}.x |" in prose("SECURITY.md")


def test_the_citation_has_what_its_format_requires_and_each_method_can_be_found() -> None:
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["title"] and CITATION["message"]
    assert all(method["title"] and method["authors"] for method in CITATION["references"])
    assert all("doi" in method or "identifiers" in method for method in CITATION["references"])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_names_places_at_all(document: str) -> None:
    assert len(places_in(document)) >= 10


@pytest.mark.parametrize(("document", "place"), NAMED)
def test_each_module_and_test_that_is_named_is_there(document: str, place: str) -> None:
    path, _, test = place.partition("::")
    assert (ROOT / path).exists(), f"{document} names {path}"
    assert not test or f"\ndef {test}(" in (ROOT / path).read_text(), f"{document} names {place}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_link_leads_somewhere(document: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", prose(document)):
        assert ((ROOT / document).parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_make_target_that_is_named_is_there(document: str) -> None:
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", prose(document), re.MULTILINE):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target


def test_each_name_of_the_code_in_the_how_tos_is_still_in_the_code() -> None:
    folders = ("flows", "sites", "privacy", "models", "tests")
    others = (path for name in folders for path in (ROOT / name).rglob("*.py") if path != Path(__file__))
    words = {word for path in others for word in re.findall(r"\w+", path.read_text())}
    how_tos = prose("CONTRIBUTING.md").partition("## How to add")[2]
    named = {part for code in re.findall(r"`@?([\w.]+)`", how_tos) for part in code.split(".")}
    assert len(named) > 30
    assert not named - words


def test_the_glossary_is_in_alphabetical_order_and_gives_each_word_a_place() -> None:
    assert sorted(set(TERMS)) == TERMS
    entries = prose("docs/glossary.md").split("\n\n")[2:]
    assert len(entries) == len(TERMS)
    assert all(any(PATH.fullmatch(code) for code in re.findall(r"`(.+?)`", entry)) for entry in entries)


def test_the_hooks_before_a_commit_run_what_make_check_runs_and_fetch_nothing() -> None:
    (here,) = yaml.safe_load(prose(".pre-commit-config.yaml"))["repos"]
    assert here["repo"] == "local"
    assert {hook["language"] for hook in here["hooks"]} == {"system"}
    recipe = re.search(r"^check:.*\n((?:\t.+\n)+)", MAKEFILE, re.MULTILINE)
    assert recipe is not None
    checked = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    assert [shlex.split(hook["entry"]) for hook in here["hooks"]] == [shlex.split(c) for c in checked]
