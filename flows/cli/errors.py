"""Errors at the command line: a message, the next step, and the exit code of the error's family."""

import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from models.errors import WardroundError

if TYPE_CHECKING:
    from models.settings.yaml_faults import Fault

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended, as shells count it."""


@contextmanager
def cli_errors(as_json: bool = False) -> Iterator[None]:
    """Turn an error of a known family into its message, its next step and its exit code.

    For programs it is also printed as JSON: `{"faults": [{"key", "line", "text"}, ...]}`. Ctrl-C ends
    with what that means for the work. Any other exception is a fault of Wardround and keeps its
    traceback.
    """
    try:
        yield
    except WardroundError as error:
        if as_json:
            typer.echo(json.dumps({"faults": [fault._asdict() for fault in _faults_of(error)]}))
        typer.echo(error, err=True)
        typer.echo(f"What to do next: {error.next_step}", err=True)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        typer.echo(
            "\nInterrupted. Nothing is lost: the same command goes on from where it stands.", err=True
        )
        _end_at_once()
        raise typer.Exit(INTERRUPTED) from None


def _faults_of(error: WardroundError) -> Sequence["Fault"]:
    from models.settings.yaml_faults import Fault
    from sites.yaml_files import ConfigError

    found = error.faults if isinstance(error, ConfigError) else ()
    return found or [Fault("", None, str(error))]


def _end_at_once() -> None:
    """End this process if a thread of it still works, such as a publication whose server has stopped.

    Everything was closed on the way here; Python would wait for the thread, and it for its retries.
    """
    others = [each for each in threading.enumerate() if each is not threading.main_thread()]
    if any(not each.daemon for each in others):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)
