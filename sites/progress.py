"""Progress reports of a hospital's work: they hold only constants of the study."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with `(what, step, of)`, all of them constants of the study."""


def ignore_progress(_what: str, _step: int, _of: int) -> None:
    """Do nothing with a progress report."""
