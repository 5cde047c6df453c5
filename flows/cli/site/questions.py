"""Questions at the terminal whose answers are checked at once: a wrong one is asked again, alone."""

from dataclasses import dataclass
from typing import Any, TypeVar

import typer

from sites.setup.initialise import wrong
from sites.yaml_files import ConfigError

T = TypeVar("T", str, int, float)


@dataclass(frozen=True)
class Questions:
    """Questions about keys of a policy.

    Attributes:
        yes: whether what would be proposed is taken without a question.
    """

    yes: bool

    def __call__(self, path: str, text: str, given: T | None, proposed: T | None = None) -> T:
        """Return the value of a key: what was given, else the answer, else what is proposed.

        Raises:
            ConfigError: what was given does not fit, or nothing can be proposed.
        """
        if given is not None:
            if fault := wrong(path, given):
                raise ConfigError(f"{path}: {fault}, got {given!r}.")
            return given
        if self.yes:
            if proposed is None:
                raise ConfigError(f"{path}: expected a value, which --yes can't propose, got none.")
            return proposed
        kind: Any = str if proposed is None else type(proposed)

        def checked(answer: str) -> Any:  # noqa: ANN401  # of the kind of what is proposed
            try:
                value = kind(answer)
            except ValueError:
                raise typer.BadParameter(f"expected a number, got {answer!r}") from None
            if fault := wrong(path, value):
                raise typer.BadParameter(fault)
            return value

        answer: T = typer.prompt(text, default=proposed, value_proc=checked)
        return answer

    def confirm(self, text: str) -> bool:
        """Ask a question that is answered by yes or no; no without a question."""
        return not self.yes and typer.confirm(text, default=False)
