"""The `wardround review` commands: people look at a model and decide about it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.cli.errors import cli_errors
from flows.cli.options import AsJsonOption, RoundOption, RunArgument
from flows.reporting.console import console

if TYPE_CHECKING:
    from flows.decisions.verdicts import Verdict
    from flows.runs.records import RoundRecord
    from flows.runs.run import Run

app = typer.Typer(help="Decide about models: approve, refuse, revoke.", no_args_is_help=True)

AsOption = Annotated[str, typer.Option("--as", help="Your name in people.yaml.")]
KeyOption = Annotated[Path, typer.Option("--key", help="The file with your private key.")]
RoleOption = Annotated[Literal["clinician", "officer"], typer.Option(help="Your role.")]
ReasonOption = Annotated[str, typer.Option(help="The reason, which is recorded.")]
Word = Literal["approved", "refused", "revoked"]
KEY_BYTES = 32


@app.command()
def key(name: AsOption, role: RoleOption, file: KeyOption) -> None:
    """Make a person's key, on their own machine; print the line for the coordinator's people.yaml."""
    with cli_errors():
        from pydantic import TypeAdapter, ValidationError

        from flows.decisions.verdicts import BadVerdict
        from models.settings.tasks import Name
        from privacy.signing import private_key, public_hex

        try:
            TypeAdapter(Name).validate_python(name)
        except ValidationError as error:
            raise BadVerdict(f"--as {name!r}: {error.errors()[0]['msg']}.") from error
        if file.exists():
            _check_key(file)
        typer.echo(f"  {name}: {{role: {role}, key: {public_hex(private_key(file))}}}")


@app.command()
def show(run: RunArgument = None, round: RoundOption = None, as_json: AsJsonOption = False) -> None:
    """Show a model's evidence, the decisions about it, and the roles whose approval is missing."""
    with cli_errors():
        from flows.runs.paths import Home
        from flows.runs.run import named_run
        from flows.servers.environment import with_mlflow

        opened = named_run(Home(Path.cwd()), run)
        with with_mlflow(opened.home):
            from flows.release import evidence, reviews

            record = evidence.record_of(opened, round)
            if as_json:
                typer.echo(json.dumps(reviews.content(opened, record)))
                return
            console().print(reviews.evidence_table(opened, record))
            console().print(reviews.decisions_table(opened, record))
            typer.echo("To decide on another machine, sign these terms with `wardround review sign`:")
            typer.echo(reviews.terms_text(opened, record))


@app.command()
def sign(
    terms: Annotated[str, typer.Argument(help="The terms, as `review show` or the form shows them.")],
    word: Annotated[Word, typer.Option(help="The verdict.")],
    name: AsOption,
    role: RoleOption,
    key: KeyOption,
    reason: ReasonOption = "",
    days: Annotated[int, typer.Option(min=1, max=365, help="Days for which an approval counts.")] = 30,
) -> None:
    """Print a signed verdict for Prefect's form, on a machine that needs only the person's key."""
    with cli_errors():
        from pydantic import ValidationError

        from flows.decisions.verdicts import BadVerdict, Terms, signed_verdict
        from privacy.signing import private_key

        try:
            about = Terms.model_validate(json.loads(terms))
        except (ValueError, ValidationError) as error:
            raise BadVerdict("Expected the terms as `wardround review show` prints them.") from error
        _check_key(key)
        typer.echo(signed_verdict(about, word, name, role, private_key(key), days, reason))


@app.command()
def approve(
    name: AsOption, key: KeyOption, run: RunArgument = None, round: RoundOption = None,
    reason: ReasonOption = "",
) -> None:  # fmt: skip
    """Approve a model, after reading its report; `promote` releases it once both roles have."""
    _decide(run, round, "approved", name, key, reason)


@app.command()
def refuse(
    name: AsOption, key: KeyOption, reason: ReasonOption, run: RunArgument = None,
    round: RoundOption = None,
) -> None:  # fmt: skip
    """Refuse a model; earlier approvals of it no longer count."""
    _decide(run, round, "refused", name, key, reason)


@app.command()
def revoke(
    name: AsOption, key: KeyOption, reason: ReasonOption, run: RunArgument = None,
    round: RoundOption = None,
) -> None:  # fmt: skip
    """Revoke a released model, by default the champion; the approved one before it, if any, follows."""
    _decide(run, round, "revoked", name, key, reason)


@app.command()
def enter(
    signed: Annotated[str, typer.Argument(help="The text that `review sign` has printed.")],
    run: RunArgument = None,
) -> None:
    """Record a verdict that a person has signed on another machine."""
    with cli_errors():
        from flows.runs.paths import Home
        from flows.runs.run import named_run
        from flows.servers.environment import with_mlflow

        opened = named_run(Home(Path.cwd()), run)
        with with_mlflow(opened.home):
            from flows.decisions import verdicts
            from flows.release import evidence, reviews

            about = verdicts.round_in(signed)
            record = evidence.record_of(opened, about)
            _print_verdict(opened, record, reviews.enter(opened, record, signed))


@app.command()
def withdraw(run: RunArgument = None) -> None:
    """Withdraw revoked models in MLflow, under the officer's account, where `revoke` could not."""
    with cli_errors():
        from flows.runs.paths import Home
        from flows.runs.run import named_run
        from flows.servers.environment import with_mlflow

        opened = named_run(Home(Path.cwd()), run)
        with with_mlflow(opened.home):
            from flows.release import champion
            from flows.reporting.publish import publish_decisions_page

            versions = champion.withdraw(opened)
            publish_decisions_page(opened)  # also what an interruption has kept from MLflow
            typer.echo(f"Withdrawn: version {', '.join(versions) or 'none'}.")
            _print_champion(opened)


def _decide(run: str | None, round: int | None, word: Word, name: str, key: Path, reason: str) -> None:
    with cli_errors():
        from flows.decisions.verdicts import BadVerdict
        from flows.runs.paths import Home
        from flows.runs.run import named_run
        from flows.servers.environment import with_mlflow
        from privacy.signing import private_key

        opened = named_run(Home(Path.cwd()), run)
        if word == "revoked" and round is None:
            opened, round = _released(opened, run)
        if round is None and not opened.is_finished:
            raise BadVerdict(
                f"{opened.name} is not finished, so its newest model may not be the one that you looked "
                f"at; name the round with --round."
            )
        _check_key(key)
        with with_mlflow(opened.home):
            from flows.release import evidence, reviews

            record = evidence.record_of(opened, round)
            verdict = reviews.decide(opened, record, word, name, private_key(key), reason)
            _print_verdict(opened, record, verdict)


def _released(run: "Run", named: str | None) -> tuple["Run", int]:
    """Return the run and round of the study's champion; `named`, if given, has to be its run."""
    from flows.decisions import release_status
    from flows.decisions.verdicts import BadVerdict
    from flows.runs.run import Run

    chains = release_status.chains_of(run.home, run.study.name)
    champion = release_status.champion(chains)
    stands = [each for chain in chains for each in release_status.released(chain).values()]
    for each in stands:
        if each.version == champion and named in (None, each.terms.run):
            return Run.open(run.home, each.terms.run), each.terms.round
    raise BadVerdict(
        f"No model of {named or run.study.name} is the champion; name the round to revoke with --round."
    )


def _print_verdict(run: "Run", record: "RoundRecord", verdict: "Verdict") -> None:
    """Print the recorded verdict, and what follows from it."""
    from flows.decisions import chain, release_status
    from flows.release import reviews

    typer.echo(f"{verdict.word} by {verdict.person} ({verdict.role}): {run.name}, round {record.round}.")
    typer.echo(f"Keep this for `wardround verify --decision`: {chain.heads(run)[-1]}")
    if verdict.word == "revoked":
        if not release_status.was_released(chain.decisions(run), verdict.terms):
            typer.echo("That model was never released, so nothing was withdrawn.")
        _print_champion(run)
    elif missing := reviews.missing(run, record):
        typer.echo(f"Still missing: {', '.join(missing)}.")


def _print_champion(run: "Run") -> None:
    from flows.tracking import registry

    typer.echo(f"The champion is version {registry.champion(run.study.name) or 'none'}.")


def _check_key(file: Path) -> None:
    from sites.yaml_files import ConfigError

    if not file.is_file():
        raise ConfigError(f"{file}: no such file; `wardround review key` makes a person's key.")
    if file.stat().st_size != KEY_BYTES:
        raise ConfigError(
            f"{file}: expected a key as `wardround review key` makes it ({KEY_BYTES} bytes), got "
            f"{file.stat().st_size} bytes."
        )
