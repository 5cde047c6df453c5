"""`wardround site` commands about orders and membership."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.cli.errors import cli_errors
from flows.cli.options import AsJsonOption, SiteArgument, StudyNameArgument, TestNoiseOption, YesOption
from flows.reporting.console import console

app = typer.Typer()


@app.command()
def worker(folder: SiteArgument = Path(), test_noise: TestNoiseOption = None) -> None:
    """Run this hospital's worker: fetch signed orders and carry them out, until Ctrl-C."""
    with cli_errors():
        import asyncio
        import signal

        from flows.hospitals.reach import check_reach
        from flows.servers.environment import set_hospital_worker
        from sites.hospital import Hospital
        from sites.protocol.order_inbox import coordinator_of

        hospital = Hospital.open(folder, test_noise)
        coordinator = coordinator_of(hospital)
        for problem in check_reach(hospital.name, coordinator):
            typer.echo(f"{problem}; the worker keeps trying.", err=True)
        set_hospital_worker(hospital.state, coordinator.api)
        from flows.hospitals.hospital_worker import HospitalWorker

        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # systemd's stop
        hospital.security_log.write_if_changed("policy_changed", hospital.folder / "site.yaml")
        hospital.security_log.write("worker_started")
        try:
            asyncio.run(HospitalWorker(folder, test_noise).start(printer=typer.echo))
        finally:
            hospital.security_log.write("worker_stopped")


@app.command()
def train(study: StudyNameArgument, folder: SiteArgument = Path()) -> None:
    """Carry out open orders of a study now: join, contribute, survey."""
    with cli_errors():
        carry_out_open(folder, study, "site-round")


@app.command()
def score(study: StudyNameArgument, folder: SiteArgument = Path()) -> None:
    """Carry out open orders of a study now: evaluate and compare global models."""
    with cli_errors():
        carry_out_open(folder, study, "site-score")


def carry_out_open(folder: Path, study: str, flow: str) -> None:
    """Carry out a study's orders that wait for an answer; `flow` is one of `order_inbox.FLOWS`."""
    from sites.admission.approvals import ApprovalNeeded
    from sites.hospital import Hospital
    from sites.progress import ignore_progress
    from sites.protocol.order_inbox import carry_out_ref, open_orders

    hospital = Hospital.open(folder)
    refs = open_orders(hospital, study, flow)
    if not refs:
        typer.echo(f"No order of study {study} waits for an answer.")
    for ref in refs:
        try:
            carry_out_ref(hospital, ref, ignore_progress)
            typer.echo(f"{ref.phase} of {ref.run}, round {ref.round}: answered.")
        except ApprovalNeeded as needed:
            typer.echo(f"{needed}; see `wardround site waiting`.")


@app.command()
def waiting(folder: SiteArgument = Path(), as_json: AsJsonOption = False) -> None:
    """List the requests that wait for approval, with the codes that Prefect's form asks for."""
    with cli_errors():
        from flows.cli.site.tables import waiting_rows, waiting_table

        if as_json:
            typer.echo(json.dumps(waiting_rows(folder)))
        else:
            console().print(waiting_table(folder))


NamedArgument = Annotated[str, typer.Argument(help="The start of the request's name in `site waiting`.")]
ByOption = Annotated[
    str | None, typer.Option(help="Name of the person who decides; by default the logged-in user.")
]


@app.command()
def approve(named: NamedArgument, folder: SiteArgument = Path(), by: ByOption = None) -> None:
    """Approve a request, and carry it out."""
    with cli_errors():
        _decide(folder, named, "approved", by)


@app.command()
def refuse(named: NamedArgument, folder: SiteArgument = Path(), by: ByOption = None) -> None:
    """Refuse a request; the others go on without this hospital and do not learn the reason."""
    with cli_errors():
        _decide(folder, named, "refused", by)


def _decide(folder: Path, named: str, answer: Literal["approved", "refused"], by: str | None) -> None:
    import getpass

    from sites.admission.approvals import ApprovalNeeded
    from sites.admission.requests import decide
    from sites.hospital import Hospital
    from sites.progress import ignore_progress
    from sites.protocol.order_inbox import BadOrder, resume

    hospital = Hospital.open(folder)
    terms, request = decide(hospital, named, answer, by or getpass.getuser())
    typer.echo(f"{answer}: {request.act} of {request.run}, round {request.round}")
    try:
        if resume(hospital, terms, ignore_progress):
            typer.echo("The answer is in the exchange.")
    except BadOrder as late:
        typer.echo(f"The answer is too late: {late}.")
    except ApprovalNeeded as more:
        typer.echo(f"Now {more.act} waits; see `wardround site waiting`.")


@app.command()
def drain(
    folder: SiteArgument = Path(),
    off: Annotated[bool, typer.Option("--off", help="Accept orders again.")] = False,
) -> None:
    """Stop accepting orders, as before an upgrade, and wait for the running one."""
    with cli_errors():
        from sites.hospital import Hospital
        from sites.protocol.order_inbox import drain as drain_hospital

        drain_hospital(Hospital.open(folder), on=not off)
        typer.echo("Orders are accepted again." if off else "No order is running, and none is accepted.")


@app.command()
def leave(
    study: StudyNameArgument,
    folder: SiteArgument = Path(),
    yes: YesOption = False,
) -> None:
    """Leave a study permanently: unsent work is deleted, charges stay."""
    with cli_errors():
        from sites.hospital import Hospital
        from sites.protocol.departure import check_takes_part, has_left
        from sites.protocol.departure import leave as leave_study

        hospital = Hospital.open(folder)
        check_takes_part(hospital, study)
        if again := has_left(hospital, study):
            typer.echo(f"{hospital.name} has left {study} before; this is published again.")
        if again or yes or typer.confirm(f"{hospital.name} leaves {study} permanently. Go on?"):
            runs, unreached = leave_study(hospital, study)
            for run in runs:
                typer.echo(f"{run}: nothing of {hospital.name} counts from now on.")
            for url in unreached:
                typer.echo(
                    f"{url} can't be reached; here the hospital has left. Leave again to publish it."
                )


@app.command(name="change-key")
def change_key(
    folder: SiteArgument = Path(),
    yes: YesOption = False,
    force: Annotated[
        bool, typer.Option("--force", help="Even if the old key can't be revoked everywhere.")
    ] = False,
) -> None:
    """Revoke this hospital's signing key, because others may have it, and make a new one."""
    with cli_errors():
        from sites.hospital import Hospital
        from sites.protocol.departure import change_key as change

        hospital = Hospital.open(folder)
        if yes or typer.confirm("Statements signed with the old key will no longer count. Go on?"):
            public, unrevoked = change(hospital, force=force)
            for url in unrevoked:
                typer.echo(
                    f"{url}: the old key could not be revoked; it counts there until this is done:"
                )
            typer.echo(f"The coordinator replaces the key of {hospital.name} in federation.yaml with:")
            typer.echo(f"  {public}")
