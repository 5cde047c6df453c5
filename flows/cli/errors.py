"""Errors at the command line: a message, the next step, and the exit code of the error's family."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from models.errors import WardroundError


@contextmanager
def cli_errors() -> Iterator[None]:
    """Turn an error of a known family into its message, its next step and its exit code.

    Any other exception is a fault of Wardround and keeps its traceback.
    """
    try:
        yield
    except WardroundError as error:
        typer.echo(error, err=True)
        typer.echo(f"What to do next: {error.next_step}", err=True)
        raise typer.Exit(error.exit_code) from error
