"""Parts of the documentation that follow from the code, between their markers.

python docs/make_tables.py          # writes them
python docs/make_tables.py --check  # exit code 1 if a page has other ones
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from models.config import Config
from models.settings.described import json_schema, keys
from privacy.audit.leaving import table as leaving
from sites.policy.policy import Policy
from sites.study import Study

HERE = Path(__file__).parent
SETTINGS: Mapping[str, tuple[type[Config], str]] = {
    "study": (Study, "What everybody agrees on before round 1: `studies/NAME.yaml`."),
    "site": (Policy, "A hospital's own limits, which no study can widen: `site.yaml` in its folder."),
}


def demo() -> str:
    """Return how the demo ends, as `benchmarks/demo.py` measured it: a row for each hospital."""
    (row,) = json.loads((HERE / "demo.json").read_text())
    heads = ("hospital", "patients (declared)", "Dice before", "Dice now", "epsilon of 8", "bytes sent")
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---|---|---|"]
    for site, each in sorted(row["sites"].items()):
        cells = (
            site, str(each["patients"]), f"{each['dice_before']:.3f}", f"{each['dice_after']:.3f}",
            f"{each['epsilon']:.2f}", f"{each['bytes']:,}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


PARTS: Sequence[tuple[str, str, Callable[[], str]]] = (
    ("fields that leave", "docs/threat-model.md", leaving),
    ("demo", "README.md", demo),
    ("demo", "README.zh-CN.md", demo),
)
"""The marker's name, the page, and the function that makes the part."""


def made(page: str, name: str, part: str) -> str:
    r"""Return a page with the part of this name between its markers.

    >>> made("a <!-- x --> old <!-- /x --> b", "x", "new")
    'a <!-- x -->\nnew<!-- /x --> b'
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"Expected {begin} and {end} in the page.")
    return pattern.sub(lambda _: f"{begin}\n{part}{end}", page)


def stale() -> list[Path]:
    """Return the pages whose parts differ from what the code says now."""
    return [path for path, text in _pages().items() if not path.exists() or path.read_text() != text]


def reference(name: str) -> str:
    """Return the page of a settings file: a row for each key."""
    config, what = SETTINGS[name]
    title = {"study": "Keys of a study", "site": "Keys of site.yaml"}[name]
    lines = [
        f"# {title}\n",
        f"{what} Made by `docs/make_tables.py` from the code;",
        f"`wardround schema {name}` prints a JSON Schema for editors.",
        "Where a key holds one of several groups, the group's kind stands in brackets:",
        "`task (segmentation).dims` is `dims` of a `task` with `kind: segmentation`.",
        "A key whose default is `null` may be left out.\n",
        "| key | meaning | type | unit | default | example |",
        "|---|---|---|---|---|---|",
    ]
    for key in keys(config, _examples(name)):
        cells = (f"`{key.path}`", key.meaning, key.type, key.unit, key.default, key.example)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _examples(name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if name == "study":
        for path in sorted((HERE.parent / "studies").glob("*.yaml")):
            found = {**_flat(yaml.safe_load(path.read_text())), **found}
    return {**found, **yaml.safe_load((HERE / "reference" / "examples.yaml").read_text())[name]}


def _flat(value: object, prefix: str = "") -> dict[str, Any]:
    """Return all values of nested keys by path."""
    found: dict[str, Any] = {}
    if isinstance(value, dict):
        for key, inner in value.items():
            found |= {f"{prefix}{key}": inner, **_flat(inner, f"{prefix}{key}.")}
    return found


def schema(name: str) -> str:
    """Return the JSON Schema of a settings file, as a text."""
    return json.dumps(json_schema(SETTINGS[name][0], f"Wardround: {name}.yaml"), indent=1) + "\n"


def _pages() -> dict[Path, str]:
    pages: dict[Path, str] = {}
    for name in SETTINGS:
        pages[HERE / "reference" / f"{name}.md"] = reference(name)
        pages[HERE.parent / "schemas" / f"{name}.schema.json"] = schema(name)
    for name, file, make in PARTS:
        path = HERE.parent / file
        pages[path] = made(pages.get(path, path.read_text()), name, make())
    return pages


def main() -> None:
    """Write the parts, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    if parser.parse_args().check:
        sys.exit("".join(f"{path}: run python docs/make_tables.py\n" for path in stale()) or 0)
    for path, text in _pages().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
