"""Errors sorted by what the reader can do about them.

Each error that a user may see belongs to one of four families. The command line prints its message, a
last line `What to do next: ...`, and ends with the family's exit code.

| family          | exit code | the reader                                                           |
|-----------------|-----------|----------------------------------------------------------------------|
| `FixYourInput`  | 2         | corrects a file, an argument or the environment; nothing was done    |
| `AskSomebody`   | 3         | asks the hospital, the person or the account that the message names  |
| `WaitAndRepeat` | 4         | waits and repeats the command, which goes on from where it stands    |
| `ReportToUs`    | 1         | restores what is broken from a backup, or reports a fault of ours    |
"""

from typing import ClassVar


class WardroundError(Exception):
    """An error with an exit code and a next step. `next_step` may differ by class or by instance."""

    exit_code: ClassVar[int] = 1
    next_step: str = ""


class FixYourInput(WardroundError):
    """A file, an argument or the environment is wrong."""

    exit_code = 2
    next_step = "correct what the message names and repeat the command; nothing was done."


class AskSomebody(WardroundError):
    """A hospital, a person or an account that the message names has to act first."""

    exit_code = 3
    next_step = "ask the hospital or the person that the message names, then repeat the command."


class WaitAndRepeat(WardroundError):
    """Something is busy or out of reach; nothing is lost."""

    exit_code = 4
    next_step = "nothing is lost: wait, then repeat the command; it goes on from where it stands."


class ReportToUs(WardroundError):
    """Stored state is not as Wardround left it, or Wardround has a fault."""

    exit_code = 1
    next_step = (
        "keep the folder as it is; restore it from a backup, or report this message to the developers "
        "(SECURITY.md says how)."
    )


class CorruptCheckpoint(ReportToUs, ValueError):
    """A file is not a safetensors file, or not the one with the expected sha256."""
