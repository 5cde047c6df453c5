"""Commands that measure what a study claims: audit mechanism, audit run."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.cli.errors import cli_errors
from flows.cli.options import AsJsonOption, RoundOption, RunArgument, SitesOption, StudyArgument
from flows.reporting.console import console

if TYPE_CHECKING:
    from flows.audits.records import AuditRecord
    from sites.audit.mechanism import Measured

app = typer.Typer(no_args_is_help=True, help="Measure the privacy that a study claims.")


@app.command()
def mechanism(
    study: StudyArgument,
    seed: Annotated[int, typer.Option(min=0, help="Which patients are made up.")] = 0,
    trials: Annotated[
        int | None,
        typer.Option(min=10, help="Trainings of the white-box attack, with the patient and without."),
    ] = None,
    as_json: AsJsonOption = False,
) -> None:
    """Check clipping, noise, sampling and accounting on made-up patients; exit code 1 if one fails.

    No hospital is asked and nothing is charged. Example: wardround audit mechanism studies/demo.yaml
    """
    with cli_errors():
        from sites.study import load_study

        asked = load_study(study)
        from sites.audit.made_up import DECLARED, Bench
        from sites.audit.mechanism import examine

        bench = Bench.of(asked)
        if not as_json:
            typer.echo(
                f"reduced setting: {bench.patients} made-up patients of {DECLARED} declared, "
                f"{'all in each step' if bench.mechanism.sampling_rate == 1 else 'sampled'}; the "
                f"study's own network, loss and noise multiplier {bench.mechanism.noise_multiplier:.4g}"
            )
        started = time.monotonic()
        found = list(examine(bench, seed, trials))
        if as_json:
            typer.echo(json.dumps([each.model_dump() for each in found]))
        else:
            console().print(_checks(found))
            typer.echo(f"{time.monotonic() - started:.0f} s")
        raise typer.Exit(0 if all(each.holds for each in found) else 1)


@app.command()
def run(
    name: RunArgument = None,
    sites: SitesOption = Path("wards"),
    federation: Annotated[
        Path | None, typer.Option(help="A federation.yaml with remote hospitals, instead of --sites.")
    ] = None,
    round: RoundOption = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each gradient inversion.")] = 300,
    canaries: Annotated[
        int, typer.Option(min=0, help="Gradients planted in one training; 0 for none.")
    ] = 10_000,
    partial: Annotated[
        bool, typer.Option("--partial", help="Record it though a hospital does not answer.")
    ] = False,
    as_json: AsJsonOption = False,
) -> None:
    """Audit a run's model: its mechanism, inversion, provenance, and attacks at each hospital.

    What hospitals publish is as their policy's `audit` says, and charged there. The result is in MLflow
    and in the report. Example: wardround audit run --sites wards
    """
    with cli_errors():
        from flows.coordination.audit import Setting, audit_here, audit_remotely
        from flows.runs.paths import Home

        home, setting = Home(Path.cwd()), Setting(steps, canaries, partial)
        if federation:
            done = audit_remotely(home, name, federation, round, setting)
        else:
            done = audit_here(home, name, sites, round, setting)
        from flows.audits.records import audits_of

        newest = max(audits_of(done), key=lambda each: each.at_ms)
        if as_json:
            typer.echo(newest.model_dump_json())
        else:
            _show(newest)
        raise typer.Exit(1 if newest.alarms else 0)


def _checks(found: "list[Measured]") -> Table:
    table = Table(title="the mechanism, on made-up patients")
    for heading in ("check", "expected", "found", ""):
        table.add_column(heading)
    for each in found:
        verdict = "holds" if each.holds else "[bold red]FAILED[/]"
        table.add_row(each.name, escape(each.due), escape(each.found), verdict)
    return table


def _show(audit: "AuditRecord") -> None:
    """Print an audit: the checks, and a line for each attack."""
    console = Console()
    if audit.checks:
        console.print(_checks(list(audit.checks)))
    if run_ := audit.one_run:
        console.print(
            f"canaries in one training: {run_.right} of {run_.made} guesses right, epsilon at least "
            f"{run_.epsilon_lower:.2f} (confidence {run_.confidence}), {run_.claimed:.2f} charged"
        )
    if found := audit.reconstruction:
        private = f", from what leaves {found.private.ssim:.3f}" if found.private else ""
        console.print(
            f"gradient inversion, SSIM: from the bare gradient {found.plain.ssim:.3f}{private}, from "
            f"nothing {found.blind.ssim:.3f} ({found.steps} steps)"
        )
    if who := audit.releases:
        console.print(
            f"releases told apart: {who.right} of {who.guesses} ({who.low:.2f} to {who.high:.2f}; by "
            f"chance {who.chance:.2f})"
        )
    for site, each in audit.hospitals.items():
        figures = audit.figures.get(site)
        words = "withheld by its policy" if not figures and hasattr(each, "statement") else str(each)
        if figures:
            words = (
                f"AUC {figures['mia_auc']:.3f} ({figures['low/mia_auc']:.3f} to "
                f"{figures['high/mia_auc']:.3f}, noise charged)"
            )
        console.print(f"{site}: membership attack: {escape(words)}")
    console.print(f"{audit.seconds:.0f} s; in MLflow and the report: wardround ui")
