"""Progress of a hospital's work, as a viewer may see it: constants of the study only."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with `(what, step, of)`, all of them constants of the study."""


def ignore_progress(_what: str, _step: int, _of: int) -> None:
    """Report progress to nobody."""
