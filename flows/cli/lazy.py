"""Command groups that import a command's module when the command is called."""

from collections.abc import Mapping
from importlib import import_module, metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from flows.cli.examples import with_example


def _nothing() -> None:
    """Do nothing before a command."""


def _show_version(asked: bool) -> None:  # Typer's
    if asked:
        typer.echo(metadata.version("wardround"))
        raise typer.Exit


def _version(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version, and end."
        ),
    ] = False,
) -> None:
    """Do nothing before a command but for showing the version."""


def lazy_app(help: str, modules: Mapping[str, str], prefix: str = "") -> typer.Typer:
    """Return a command group whose commands are in other modules, each module with a Typer `app`.

    Args:
        modules: each command's module, in the order of `--help`.
        prefix: the words before these commands, such as `site`; the commands themselves have none, and
            theirs is the group that installs completions for shells.
    """

    class LazyGroup(TyperGroup):
        """The commands of `modules`; a module is imported when one of its commands is needed.

        Typer brings its own Click, whose types have no public name: hence `Any`.
        """

        def list_commands(self, ctx: Any) -> list[str]:
            """Return the names of the commands."""
            del ctx
            return list(modules)

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            """Return a command, None where there is none of this name."""
            if cmd_name not in modules:
                return None
            found = typer.main.get_command(import_module(modules[cmd_name]).app)
            inner = found.get_command(ctx, cmd_name) if isinstance(found, TyperGroup) else found
            command = inner or found
            command.name = cmd_name
            with_example(command, f"{prefix} {cmd_name}".strip())
            return command

    app = typer.Typer(
        cls=LazyGroup,
        help=help,
        no_args_is_help=True,
        add_completion=not prefix,
        pretty_exceptions_enable=False,
    )
    app.callback()(_nothing if prefix else _version)
    return app
