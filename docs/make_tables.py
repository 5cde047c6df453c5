"""Parts of the documentation that follow from the code, between their markers.

python docs/make_tables.py          # writes them
python docs/make_tables.py --check  # exit code 1 if a page has other ones
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from privacy.audit.leaving import table as leaving

HERE = Path(__file__).parent
PARTS: Mapping[str, tuple[str, Callable[[], str]]] = {
    "fields that leave": ("threat-model.md", leaving),
}
"""By the marker's name: the page, and the function that makes the part."""


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
    return [path for path, text in _pages().items() if path.read_text() != text]


def _pages() -> dict[Path, str]:
    pages: dict[Path, str] = {}
    for name, (file, make) in PARTS.items():
        path = HERE / file
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
