"""Commands about runs: status, verify, relog, ui."""

import json
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from flows.cli.errors import cli_errors
from flows.cli.options import AsJsonOption, RunArgument, SinceOption
from flows.reporting.console import console

if TYPE_CHECKING:
    from flows.reporting.papers.pages import Reader

app = typer.Typer()


@app.command()
def status(
    as_json: AsJsonOption = False,
) -> None:
    """Show the newest run: its hospitals, their last heartbeats, the orders that it waits for."""
    with cli_errors():
        from dataclasses import asdict

        from flows.reporting.status import status as newest_status
        from flows.reporting.status import status_table
        from flows.runs.paths import Home
        from sites.yaml_files import ConfigError

        found = newest_status(Home(Path.cwd()))
        if found is None:
            raise ConfigError(f"{Path.cwd()}: expected a run here, found none; train a study first.")
        if as_json:
            typer.echo(json.dumps(asdict(found)))
        else:
            console().print(status_table(found))


runs_app = typer.Typer(help="List and compare runs.")
app.add_typer(runs_app, name="runs")


@runs_app.callback(invoke_without_command=True)
def list_runs(ctx: typer.Context, as_json: AsJsonOption = False) -> None:
    """List the runs of this folder: study, rounds, epsilon, quality. `runs diff A B` compares two."""
    if ctx.invoked_subcommand:
        return
    with cli_errors():
        from dataclasses import asdict

        from flows.runs.comparison import lines
        from flows.runs.paths import Home

        found = lines(Home(Path.cwd()))
        if as_json:
            typer.echo(json.dumps([asdict(line) for line in found]))
            return
        if not found:
            typer.echo("No run is recorded here yet.")
            return
        table = Table()
        for heading in ("run", "rounds", "hospitals", "epsilon", "quality before", "now"):
            table.add_column(heading, overflow="fold", no_wrap=heading == "run")
        for line in found:
            shown = ["none" if line.epsilon is None else f"{line.epsilon:.2f}"]
            shown += [
                "-" if each is None else f"{line.metric} {each:.3f}" for each in (line.before, line.now)
            ]
            rounds = line.rounds if line.is_finished else f"{line.rounds} (goes on)"
            table.add_row(line.run, rounds, str(line.hospitals), *shown)
        console().print(table)


@runs_app.command()
def diff(
    first: Annotated[str, typer.Argument(help="A run's name.")],
    second: Annotated[str, typer.Argument(help="Another run's name.")],
    as_json: AsJsonOption = False,
) -> None:
    """Show what two runs differ in: the study's keys, hospitals, quality and epsilon by hospital."""
    with cli_errors():
        from dataclasses import asdict

        from flows.runs.comparison import differences
        from flows.runs.paths import Home
        from flows.runs.run import named_run

        home = Home(Path.cwd())
        found = differences(named_run(home, first), named_run(home, second))
        if as_json:
            typer.echo(json.dumps([asdict(each) for each in found]))
            return
        if not found:
            typer.echo(f"{first} and {second} differ in nothing that is compared.")
            return
        table = Table()
        for heading in ("", first, second):
            table.add_column(heading)
        for each in found:
            values = ("-" if v is None else escape(str(v)) for v in (each.first, each.second))
            table.add_row(each.what, *values)
        console().print(table)


@app.command()
def verify(
    run: RunArgument = None,
    federation: Annotated[
        Path | None,
        typer.Option(help="Your own federation.yaml: no other hospitals' keys count."),
    ] = None,
    people: Annotated[
        Path | None,
        typer.Option(help="Your own people.yaml: no other person's decisions count."),
    ] = None,
    decision: Annotated[
        str,
        typer.Option(
            help="The sha256 of a decision, as `review` printed it; the run must still have it."
        ),
    ] = "",
    as_json: AsJsonOption = False,
) -> None:
    """Check every signature and number of a run and re-compute its models; exit code 1 at a fault."""
    with cli_errors():
        from flows.runs.paths import Home
        from flows.runs.run import named_run
        from flows.servers.environment import set_prefect, with_mlflow

        opened = named_run(Home(Path.cwd()), run)
        roster = None
        if federation:
            set_prefect(opened.home)
            from flows.hospitals.federation import load_federation

            roster = load_federation(federation).roster
        with with_mlflow(opened.home):
            from flows.decisions.people import people_in
            from flows.verification.verify import Anchors, faults

            anchors = Anchors(roster, people_in(people) if people else None, decision)
            fault = next(faults(opened, anchors), None)
        if as_json:
            typer.echo(json.dumps({"run": opened.name, "fault": fault}))
        else:
            rounds = len(opened.records()) if fault is None else 0
            typer.echo(fault or f"{opened.name}: {rounds} records, and everything fits.")
        raise typer.Exit(0 if fault is None else 1)


@app.command()
def events(since: SinceOption = None, as_json: AsJsonOption = False) -> None:
    """Show the coordinator's security events: who decided, which answers were rejected.

    Example: wardround events --since 2026-12-01 --json
    """
    with cli_errors():
        from flows.reporting.event_table import print_events
        from flows.runs.paths import Home

        print_events(Home(Path.cwd()).security_log, since, as_json=as_json)


@app.command(name="report")
def write_report(
    run: RunArgument = None,
    reader: Annotated[
        Literal["clinician", "dpo", "regulator"],
        typer.Option("--for", help="Whom it is for; dpo: data-protection officers."),
    ] = "clinician",
    site: Annotated[
        Path | None,
        typer.Option(help="A hospital's folder: its own sheet for its officer, over all studies."),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(help="A YAML file with the authors' answers where the record is silent."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The file; .pdf makes a PDF.", show_default=False)
    ] = None,
) -> None:
    """Write a paper about a run from what is on record: report, officers' sheet, or checklists.

    Example: wardround report --for regulator -o checklists.pdf
    """
    with cli_errors():
        from flows.reporting.papers.pdf import as_pdf
        from models.files import write_atomically
        from sites.yaml_files import ConfigError

        if site and (reader != "dpo" or run):
            raise ConfigError(
                "--site: expected --for dpo beside it and no run; its sheet is of all studies."
            )
        if answers and reader != "regulator":
            raise ConfigError("--answers: expected --for regulator beside it.")
        if out and out.suffix not in (".html", ".pdf"):
            raise ConfigError(f"-o {out}: expected a name that ends in .html or .pdf.")
        name, page = _sheet(site) if site else (reader, _paper(run, reader, answers))
        out = out or Path(f"{name}.html")
        write_atomically(out, as_pdf(page) if out.suffix == ".pdf" else page)
        typer.echo(f"{out}: made from what is on record; what nobody has recorded is called that.")


def _sheet(site: Path) -> tuple[str, bytes]:
    """Return the name and the page of a hospital's own sheet."""
    from flows.reporting.officer_sheet import officer_sheet
    from sites.hospital import Hospital

    hospital = Hospital.open(site)
    return f"officer-of-{hospital.name}", officer_sheet(hospital)


def _paper(run: str | None, reader: "Reader", answers: Path | None) -> bytes:
    from flows.reporting.papers.checklist import Answers, load_answers
    from flows.reporting.papers.pages import paper
    from flows.runs.paths import Home
    from flows.runs.run import named_run

    known = load_answers(answers) if answers else Answers()
    return paper(named_run(Home(Path.cwd()), run), reader, known)


@app.command()
def relog(run: RunArgument = None) -> None:
    """Log the entries of a recorded run that MLflow lacks, as in a new store."""
    with cli_errors():
        from flows.runs.paths import Home
        from flows.runs.run import named_run
        from flows.servers.environment import with_mlflow

        opened = named_run(Home(Path.cwd()), run)
        with with_mlflow(opened.home), opened.locked():
            from flows.reporting.publish import backfill
            from flows.tracking.tracking import Tracking

            with Tracking(opened) as tracking:
                backfill(opened, tracking, opened.records())
                typer.echo(f"MLflow has all of {opened.name}: {tracking.page}")


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port on this machine.")] = 5000,
) -> None:
    """Open MLflow's UI on this folder's store, until Ctrl-C."""
    with cli_errors():
        from flows.runs.paths import Home
        from flows.servers.environment import mlflow_server
        from flows.servers.loopback import running
        from flows.tracking.views import links
        from sites.yaml_files import ConfigError

        home = Home(Path.cwd())
        if not (home.folder / "mlruns" / "mlflow.db").exists():
            raise ConfigError(f"{home.folder}: nothing is recorded here; train a study first.")
        typer.echo("starting MLflow ...")
        with running(mlflow_server(home), port) as url:
            for title, link in links(url):
                typer.echo(f"{title:<32} {link}")
            typer.echo("Ctrl-C ends it.")
            sys.stdout.flush()
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                typer.echo("")
