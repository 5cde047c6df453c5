"""The page on architecture names the rooms, modules and tests that there are."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text()
ROOMS = ("flows", "sites", "privacy", "models")
NAMED_TESTS = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
MODULES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
LONG = 400
"""Lines from which on a module has to say why."""


def test_it_names_each_room_and_no_other() -> None:
    named = set(re.findall(r"^\| `((?:flows|sites|privacy|models)/[\w/]*)`", PAGE, re.MULTILINE))
    folders = {path.parent for path in MODULES}
    assert named == {f"{folder.relative_to(ROOT)}/" for folder in folders}


@pytest.mark.parametrize(("path", "test"), NAMED_TESTS)
def test_each_promise_has_a_test_that_is_there(path: str, test: str) -> None:
    assert f"\ndef {test}(" in (ROOT / path).read_text()


def test_it_lists_the_promises() -> None:
    assert len(NAMED_TESTS) >= 12


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_has_more_than_about_a_dozen_modules(room: str) -> None:
    for folder in {path.parent for path in MODULES if path.is_relative_to(ROOT / room)}:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        limit = 17 if folder.parent == ROOT else 14  # privacy and models have no rooms inside
        assert len(modules) <= limit, f"{folder}: {len(modules)} modules"


def test_no_module_is_longer_than_a_reader_holds_in_mind() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: count for name, count in lines.items() if count > LONG} == {}


def test_no_function_has_more_than_fifty_lines() -> None:
    long = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > 50:
                    long.append(f"{path.relative_to(ROOT)}: {node.name}, {length} lines")
    assert long == []


@pytest.mark.parametrize(
    "module",
    ["flows.cli.site.tables", "flows.reporting.status", "sites.setup.wards", "sites.study"],
)
def test_what_shows_the_books_imports_neither_torch_nor_a_server(module: str) -> None:
    """People wait for `status`, `site ledger`, `site outbox`, `site waiting`; torch takes seconds."""
    heavy = ("torch", "monai", "opacus", "mlflow", "prefect", "pydicom", "nibabel")
    script = f"import {module}, sys; print(*(name for name in {heavy} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == []
