"""Where tables are printed: as wide as the terminal, and whole where a file or a pipe takes them."""

import sys

from rich.console import Console

WIDE = 240
"""Columns of a table that no terminal shows; `grep` then finds a row as a whole."""


def console() -> Console:
    """Return a console for standard output."""
    return Console(width=None if sys.stdout.isatty() else WIDE)
