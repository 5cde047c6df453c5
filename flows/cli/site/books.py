"""`wardround site` commands about the hospital's books: ledger, outbox, scores, and its own pages."""

import contextlib
import json
import re
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.errors import cli_errors
from flows.cli.options import AsJsonOption, SinceOption, SiteArgument, YesOption
from flows.reporting.console import console

app = typer.Typer()


def _public_key(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise typer.BadParameter("expected 64 hexadecimal digits.")
    return text


@app.command()
def ledger(
    folder: SiteArgument = Path(),
    verify: Annotated[bool, typer.Option(help="Only check the chain and the outbox.")] = False,
    as_json: AsJsonOption = False,
) -> None:
    """Show the hospital's ledger, charge by charge."""
    with cli_errors():
        from flows.cli.site.tables import ledger_rows, ledger_table, verified_entries
        from sites.hospital import Hospital

        if verify:
            typer.echo(f"{verified_entries(folder)} entries; the chain and the outbox are intact.")
            for seq, version in Hospital.open(folder).ledger.writers():
                typer.echo(f"from entry {seq} on written by Wardround {version}")
        elif as_json:
            typer.echo(json.dumps(ledger_rows(folder)))
        else:
            console().print(ledger_table(folder))


@app.command()
def outbox(folder: SiteArgument = Path(), as_json: AsJsonOption = False) -> None:
    """List everything that has left the hospital."""
    with cli_errors():
        from flows.cli.site.tables import outbox_rows, outbox_table

        if as_json:
            typer.echo(json.dumps(outbox_rows(folder)))
        else:
            console().print(outbox_table(folder))


@app.command()
def events(
    folder: SiteArgument = Path(), since: SinceOption = None, as_json: AsJsonOption = False
) -> None:
    """Show the hospital's security events: who did what, and who was turned away.

    Example: wardround site events /srv/wardround --since 2026-12-01
    """
    with cli_errors():
        from flows.reporting.event_table import print_events
        from sites.hospital import Hospital

        print_events(Hospital.open(folder).security_log, since, as_json=as_json)


@app.command()
def audit(folder: SiteArgument = Path(), as_json: AsJsonOption = False) -> None:
    """Show the attacks on models that this hospital trained; the report never leaves.

    Audits are made when the coordinator asks for them and site.yaml has `audit: {epsilon: ...}`.
    """
    with cli_errors():
        from sites.audit.audit import reports
        from sites.hospital import Hospital

        found = reports(Hospital.open(folder))
        if as_json:
            typer.echo(json.dumps([each.model_dump(mode="json") for each in found]))
            return
        from flows.cli.site.audit_table import audit_lines

        for line in audit_lines(found):
            console().print(line)


@app.command()
def sheet(
    folder: SiteArgument = Path(),
    out: Annotated[Path, typer.Option("-o", "--out", help="The HTML file.")] = Path("sheet.html"),
) -> None:
    """Write a sheet for the data-protection officer: cost, what left and who approved it, attacks.

    Example: wardround site sheet /srv/wardround -o sheet.html
    """
    with cli_errors():
        from flows.reporting.officer_sheet import officer_sheet
        from models.files import write_atomically
        from sites.hospital import Hospital

        write_atomically(out, officer_sheet(Hospital.open(folder)))
        typer.echo(
            f"{out}: made from this hospital's records; it stays here until you give it to somebody."
        )


@app.command()
def scores(folder: SiteArgument = Path(), as_json: AsJsonOption = False) -> None:
    """Show the scores of the hospital's personal models; under privacy they never leave."""
    with cli_errors():
        from flows.cli.site.tables import scores_rows, scores_table

        if as_json:
            typer.echo(json.dumps(scores_rows(folder)))
        else:
            console().print(scores_table(folder))


@app.command()
def withdrawn(folder: SiteArgument = Path(), as_json: AsJsonOption = False) -> None:
    """List the rounds in which patients who have withdrawn took part."""
    with cli_errors():
        from flows.cli.site.tables import withdrawn_rows, withdrawn_table

        if as_json:
            typer.echo(json.dumps(withdrawn_rows(folder)))
        else:
            console().print(withdrawn_table(folder))


@app.command(name="recover-ledger")
def recover(
    folder: SiteArgument = Path(),
    exchange: Annotated[
        list[str] | None,
        typer.Option(help="Another exchange to search, besides those that the hospital knows."),
    ] = None,
    former_key: Annotated[
        list[str] | None,
        typer.Option(
            help="A former public key of this hospital, where all of state/ was lost.",
            parser=_public_key,
        ),
    ] = None,
    yes: YesOption = False,
) -> None:
    """Charge the statements that a restored ledger lacks, and accept the clock as it is."""
    with cli_errors():
        from flows.cli.site.tables import missing_table
        from sites.admission.ledger_recovery import foreign_statements, recover_ledger
        from sites.exchange.exchange import Exchange
        from sites.hospital import Hospital

        hospital = Hospital.open(folder)
        exchanges = [Exchange(url) for url in sorted(hospital.exchanges | {*(exchange or ())})]
        keys = former_key or []
        table, count = missing_table(hospital, exchanges, keys)
        if count:
            console().print(table)
            typer.echo("Each patient of the hospital is charged for them.")
        else:
            typer.echo("The ledger has every published statement; only the clock is accepted.")
        if foreign := len(list(foreign_statements(hospital, exchanges, keys))):
            typer.echo(
                f"{foreign} statements under this hospital's name were signed by none of its keys. They "
                f"are not charged. If an earlier installation of this hospital made them, name its "
                f"public key (in the coordinator's federation.yaml) with --former-key."
            )
        if yes or typer.confirm("Go on?"):
            with hospital.lock():
                recover_ledger(hospital, exchanges, keys)
            hospital.security_log.write("ledger_recovered", statements=count)
            typer.echo(f"Done: epsilon {hospital.ledger.spent(hospital.policy.budget.delta):.3f}.")
            if keys:
                typer.echo(f"The new key for the coordinator's federation.yaml: {hospital.public_key}")


@app.command(name="ui")
def own_ui(
    folder: SiteArgument = Path(),
    port: Annotated[int, typer.Option(help="The port on this machine.")] = 5001,
) -> None:
    """Show the hospital's own hardest cases, on this machine only, until Ctrl-C."""
    with cli_errors():
        from flows.servers.environment import set_quiet

        set_quiet()
        from flows.tracking.hospital_store import fill, own_store

        with own_store(folder, port) as url:
            pages = fill(folder, url)
            typer.echo("\n".join(pages) or "This hospital has seen no segmentation model yet.")
            typer.echo("Ctrl-C ends it.")
            sys.stdout.flush()
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
