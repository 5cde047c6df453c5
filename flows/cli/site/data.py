"""`wardround site` commands about data: init, import, check, rehearse."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.errors import cli_errors
from flows.cli.options import AsJsonOption, SiteArgument, StudyArgument, YesOption
from flows.cli.site.orders import carry_out_open
from flows.reporting.console import console

if TYPE_CHECKING:
    from flows.cli.site.questions import Questions

app = typer.Typer()


@app.command()
def init(
    folder: SiteArgument = Path(),
    name: Annotated[str | None, typer.Option(help="The hospital's name.")] = None,
    data: Annotated[
        str, typer.Option(help="The path of the scans and their list, from the hospital's folder.")
    ] = ".",
    declared_patients: Annotated[
        int | None, typer.Option(help="Public number of patients, rounded.")
    ] = None,
    epsilon: Annotated[float | None, typer.Option(help="Budget of all studies together.")] = None,
    delta: Annotated[float | None, typer.Option(help="The budget's delta.")] = None,
    metrics: Annotated[str | None, typer.Option(help="exact, or withheld.")] = None,
    network: Annotated[list[str] | None, typer.Option(help="A network that may train here.")] = None,
    key: Annotated[str | None, typer.Option(help="The coordinator's public key.")] = None,
    exchange: Annotated[str | None, typer.Option(help="The exchange's address.")] = None,
    api: Annotated[str | None, typer.Option(help="The address of Prefect's API.")] = None,
    yes: YesOption = False,
) -> None:
    """Set up a hospital's folder: a commented policy, and keys; print the line for the coordinator.

    It asks for what is not given, and asks again where an answer does not fit. With --yes it takes what
    it would propose.
    """
    with cli_errors():
        from flows.cli.site.questions import Questions
        from sites.setup.initialise import initialise

        ask = Questions(yes=yes)
        proposed = re.sub("[^a-z0-9_-]+", "-", folder.resolve().name.lower()).strip("-_")
        policy: dict[str, Any] = {
            "name": ask("name", "The hospital's name", name, proposed or "hospital"),
            "data": data,
            "declared_patients": ask(
                "declared_patients", "Public number of patients, rounded", declared_patients, 20
            ),
            "budget": {
                "epsilon": ask("budget.epsilon", "Budget of all studies: epsilon", epsilon, 8.0),
                "delta": ask("budget.delta", "at delta", delta, 1e-4),
            },
            "metrics": ask("metrics", "Metrics: exact, or withheld", metrics, "withheld"),
            **({"networks": network} if network else {}),
            **_coordinator(ask, {"key": key, "exchange": exchange, "api": api}),
        }
        hospital = initialise(folder, policy)
        typer.echo(
            f"{folder / 'site.yaml'} is the hospital's policy; read it and restrict it as you like."
        )
        typer.echo("The coordinator puts this line under `hospitals:` in federation.yaml:")
        patients = hospital.policy.declared_patients
        typer.echo(f"  {hospital.name}: {{key: {hospital.public_key}, patients: {patients}}}")


def _coordinator(ask: "Questions", given: dict[str, str | None]) -> dict[str, Any]:
    """Return the policy's `coordinator`, where it is on another machine."""
    if not any(given.values()) and not ask.confirm("Is the coordinator on another machine?"):
        return {}
    words = {"key": "key", "exchange": "exchange", "api": "Prefect API"}
    found = {k: ask(f"coordinator.{k}", f"The coordinator's {v}", given[k]) for k, v in words.items()}
    return {"coordinator": found}


@app.command(name="import")
def import_scans(
    export: Annotated[Path, typer.Argument(help="The folder that an archive exported.")],
    folder: SiteArgument = Path(),
) -> None:
    """Import scans into the hospital's data, without anything that names the patients."""
    with cli_errors():
        from sites.deidentification.archive_import import import_export
        from sites.hospital import Hospital

        hospital = Hospital.open(folder)
        with hospital.lock():
            done = import_export(hospital, export)
        typer.echo(f"{done.cases} new cases of {done.patients} patients are in {hospital.data}.")
        if done.replaced:
            typer.echo(f"{done.replaced} scans were imported before with other content; replaced.")
        for reason, count in sorted(done.left_out.items()):
            names = ", ".join(done.named[reason][:3])
            typer.echo(f"left out, {count}: {reason} ({names}{', ...' if count > 3 else ''})")
        if done.cases:
            typer.echo("`wardround site check` shows which of them can be used.")
        elif done.left_out:
            typer.echo(
                "Without a list an export's DICOM files are imported alone. NIfTI files and pictures "
                "need one beside them: cases.csv, dataset.json or BIDS (docs/reference/lists.md)."
            )


@app.command()
def check(
    what: Annotated[
        Path,
        typer.Argument(help="The hospital's folder, or a study's name."),
    ] = Path(),
    folder: Annotated[
        Path, typer.Argument(help="The hospital's folder, after a study's name.")
    ] = Path(),
    study: Annotated[Path | None, typer.Option(help="Check against this study's task.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list.")] = False,
) -> None:
    """Check every scan as a round would; exit code 1 if one is left out or a person has to look.

    With a study's name: answer its coordinator's open question whether this hospital could train it.
    """
    with cli_errors():
        from sites.yaml_files import ConfigError

        if not what.is_dir():
            if not (folder / "site.yaml").exists():
                raise ConfigError(
                    f"{what}: expected a hospital's folder, or a study's name and a hospital's folder."
                )
            carry_out_open(folder, str(what), "site-check")
            return
        from flows.cli.site.check_tables import check_lines, check_table

        lines = check_lines(what, study)
        if as_json:
            typer.echo(json.dumps([vars(line) for line in lines]))
        else:
            console().print(check_table(lines) if lines else "Every case can be used.")
        raise typer.Exit(1 if any(line.severity != "warn" for line in lines) else 0)


@app.command()
def rehearse(study: StudyArgument, folder: SiteArgument = Path(), as_json: AsJsonOption = False) -> None:
    """Rehearse a round on made-up patients; nothing is charged and nothing leaves."""
    with cli_errors(as_json):
        from flows.cli.site.rehearsal import rehearse as try_round
        from sites.hospital import Hospital
        from sites.study import load_study

        found = []
        asked = load_study(study)
        for tried in try_round(Hospital.open(folder), asked):
            found.append(tried)
            if not as_json:
                typer.echo(f"rehearsal, {tried.what}: {tried.result} ({tried.seconds:.1f} s)")
        if as_json:
            typer.echo(json.dumps([asdict(tried) for tried in found]))
        raise typer.Exit(0 if all(tried.is_fine for tried in found) else 1)
