"""Commands before a training: init, plan, doctor, schema."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from flows.cli.errors import cli_errors
from flows.cli.options import AsJsonOption, StudyArgument, YesOption
from flows.cli.site.data import init as init_site
from flows.reporting.console import console

if TYPE_CHECKING:
    from flows.planning.plan import Plan

app = typer.Typer()


init_app = typer.Typer(help="Write a commented first file.", no_args_is_help=True)
app.add_typer(init_app, name="init")
init_app.command(name="site")(init_site)


LABELS = {"segmentation": "head tail", "classification": "normal abnormal", "regression": "age"}
"""First names: the structures of made-up hospitals (`wardround data phantoms`), classes, a number."""


def _kind(answer: str) -> str:
    if answer not in LABELS:
        raise typer.BadParameter(f"expected {', '.join(LABELS)}, got {answer!r}")
    return answer


def _dims(answer: str) -> int:
    if str(answer) not in ("2", "3"):
        raise typer.BadParameter(f"expected 2 or 3, got {answer!r}")
    return int(answer)


def _names(answer: str) -> list[str]:
    from models.settings.tasks import NAME_IN_WORDS, NAME_PATTERN

    names = re.split(r"[,\s]+", answer.strip(", "))
    for name in names:
        if not re.fullmatch(NAME_PATTERN, name):
            raise typer.BadParameter(f"expected names of {NAME_IN_WORDS}, got {name!r}")
    if len(names) != len(set(names)):
        raise typer.BadParameter(f"expected names that differ, got {answer!r}")
    return names


def _epsilon(answer: str) -> float:
    try:
        value = float(answer)
    except ValueError:
        raise typer.BadParameter(f"expected a number, got {answer!r}") from None
    if not 0 <= value < float("inf"):
        raise typer.BadParameter(f"expected 0 or more, got {answer!r}")
    return value


@init_app.command(name="study")
def init_study(
    ctx: typer.Context,
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("studies/first.yaml"),
    kind: Annotated[
        Literal["segmentation", "classification", "regression"],
        typer.Option(help="What the network answers."),
    ] = "segmentation",
    dims: Annotated[int, typer.Option(min=2, max=3, help="Dimensions of the images.")] = 3,
    label: Annotated[
        list[str] | None, typer.Option(help="Name of a structure or class; again for each.")
    ] = None,
    epsilon: Annotated[float, typer.Option(min=0, help="0 for a study without privacy.")] = 8.0,
    yes: YesOption = False,
) -> None:
    """Write a commented study file, asking for what is not given. Example: wardround init study --yes"""
    with cli_errors():
        from flows.planning.new_study import first_study, write_study

        def ask(name: str, words: str, value: Any, check: Callable[[str], Any]) -> Any:  # noqa: ANN401  # of each kind
            source = ctx.get_parameter_source(name)
            if yes or (source and source.name == "COMMANDLINE"):
                return value
            return typer.prompt(words, default=value, value_proc=check)

        kind = ask("kind", "Kind: segmentation, classification or regression", kind, _kind)
        dims = ask("dims", "Dimensions of the images: 2 or 3", dims, _dims)
        for name in label or ():
            _names(name)
        names = ask("label", "Names of structures or classes", label or LABELS[kind], _names)
        epsilon = ask("epsilon", "Epsilon for each patient; 0 for none", epsilon, _epsilon)
        name = re.sub("[^a-z0-9_-]+", "-", path.stem.lower()).strip("-_")[:40] or "first"
        labels = names.split() if isinstance(names, str) else names
        content = first_study(name, kind, dims, labels, epsilon or None)
        write_study(path, content)
        typer.echo(f"{path}: edit it, then: wardround check {path}; wardround plan {path} --sites wards")


@app.command()
def plan(
    study: StudyArgument,
    sites: Annotated[Path | None, typer.Option(help="The folder with the hospitals.")] = None,
    patients: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Training patients that a hospital declares; again for each."),
    ] = None,
    as_json: AsJsonOption = False,
) -> None:
    """Show what a study will cost each hospital, before anything is spent; exit code 1 at a warning.

    Example: wardround plan studies/hippocampus.yaml --patients 28 --patients 28 --patients 40
    """
    with cli_errors(as_json):
        from sites.setup.wards import wards_in
        from sites.study import load_study
        from sites.yaml_files import ConfigError

        asked = load_study(study)
        if sites is None and patients is None and Path("wards").is_dir():
            sites = Path("wards")  # as `run` does
        if (sites is None) == (patients is None):
            raise ConfigError("Expected --sites or --patients, one of both.")
        wards = wards_in(sites) if sites else {}
        from flows.planning.plan import plan_of_patients, plan_of_wards
        from flows.runs.paths import Home
        from flows.starts.material import missing_material

        found = plan_of_wards(asked, wards) if sites else plan_of_patients(asked, patients or [])
        missing = missing_material(asked, Home(Path.cwd()).public)
        found = replace(found, warnings=[*missing, *found.warnings])
        if as_json:
            content = {**asdict(found), "study": asked.name, "strength_needed": found.strength_needed}
            typer.echo(json.dumps(content))
        else:
            _show(found)
        raise typer.Exit(1 if found.warnings else 0)


def _show(found: "Plan") -> None:
    out, study = console(), found.study
    table = Table(title=f"{study.name}: {study.rounds} rounds of {study.training.steps} steps")
    for heading in (
        "hospital",
        "training patients",
        "noise",
        "epsilon by round",
        "budget then",
        "a round",
    ):
        table.add_column(heading)
    for each in found.hospitals:
        if each.refusal:
            table.add_row(each.name, str(each.patients), "[bold]takes no part[/]")
            continue
        table.add_row(
            each.name,
            str(each.patients),
            "none" if each.noise is None else f"{each.noise:.3g}",
            _rounds(each.epsilons),
            "" if each.budget is None else f"{each.budget[0]:.2f} of {each.budget[1]:g}",
            f"{each.seconds:.0f} s" if each.seconds >= 1 else "under 1 s",
        )
    out.print(table)
    for each in found.hospitals:
        if each.refusal:
            out.print(f"{each.name}: {escape(each.refusal)}")
    sent = (
        "depends on the images" if found.release_bytes is None else f"{found.release_bytes / 1e6:.2f} MB"
    )
    out.print(
        f"{found.parameters:,} parameters; a release: {sent}; a step takes about {found.memory_mib} MiB "
        f"more than the idle process (times of training alone, on this machine, one scan a patient)"
    )
    if found.strength is not None:
        out.print(
            f"strength of the signal: {found.strength:.3g}; below {found.strength_needed:g} training "
            f"gained nothing where it was measured (docs/public-scans-and-epsilon.md)"
        )
    for warning in found.warnings:
        out.print(f"[bold]warning:[/] {escape(warning)}")


def _rounds(values: Sequence[float]) -> str:
    if not values:
        return "none: no privacy"
    shown = [f"{value:.2f}" for value in values]
    return ", ".join(shown if len(shown) <= 5 else [*shown[:2], "...", *shown[-2:]])


@app.command()
def doctor(
    folder: Annotated[Path, typer.Argument(help="A hospital's folder, or the coordinator's.")] = Path(),
    as_json: AsJsonOption = False,
) -> None:
    """Look whether all is well here: versions, disk, clock, reach, rights, GPU; exit code 1 if not.

    Nothing is changed. Example: wardround doctor /srv/wardround
    """
    with cli_errors(as_json):
        from flows.planning.doctor import signs

        found = list(signs(folder))
        if as_json:
            typer.echo(json.dumps([asdict(sign) for sign in found]))
        else:
            marks = {"well": "well", "look": "[yellow]look[/]", "wrong": "[bold red]wrong[/]"}
            table = Table(show_header=False, box=None)
            for sign in found:
                table.add_row(marks[sign.state], sign.what, escape(sign.found))
            console().print(table)
        raise typer.Exit(1 if any(sign.state == "wrong" for sign in found) else 0)


@app.command()
def schema(
    what: Annotated[Literal["study", "site"], typer.Argument(help="Which file's schema.")],
) -> None:
    """Print a JSON Schema for editors. Example: wardround schema study > study.schema.json"""
    with cli_errors():
        from models.config import Config
        from models.settings.described import json_schema
        from sites.policy.policy import Policy
        from sites.study import Study

        config: type[Config] = Study if what == "study" else Policy
        typer.echo(json.dumps(json_schema(config, f"Wardround: {what}.yaml"), indent=1))
