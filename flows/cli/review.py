"""The `wardround review` commands: people look at a model and say what they think of it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from flows.cli.errors import cli_errors
from flows.cli.options import RoundOption, RunArgument

if TYPE_CHECKING:
    from flows.decisions.verdicts import Verdict
    from flows.runs.records import RoundRecord
    from flows.runs.run import Run

app = typer.Typer(help="Decide about models: approve, refuse, revoke.", no_args_is_help=True)

AsOption = Annotated[str, typer.Option("--as", help="Who says it, as people.yaml names him.")]
KeyOption = Annotated[Path, typer.Option("--key", help="The file with his private key.")]
RoleOption = Annotated[Literal["clinician", "officer"], typer.Option(help="In which role.")]
ReasonOption = Annotated[str, typer.Option(help="For the record.")]
Word = Literal["approved", "refused", "revoked"]
KEY_BYTES = 32


@app.command()
def key(name: AsOption, role: RoleOption, file: KeyOption) -> None:
    """Make a person's key, on his own machine; print the line for the coordinator's people.yaml."""
    with cli_errors():
        from pydantic import TypeAdapter, ValidationError

        from flows.decisions.verdicts import BadVerdict
        from models.objectives import Name
        from privacy.signing import private_key, public_hex

        try:
            TypeAdapter(Name).validate_python(name)
        except ValidationError as error:
            raise BadVerdict(f"--as {name!r}: {error.errors()[0]['msg']}.") from error
        if file.exists():
            _check_key(file)
        typer.echo(f"  {name}: {{role: {role}, key: {public_hex(private_key(file))}}}")


@app.command()
def show(run: RunArgument = None, round: RoundOption = None) -> None:
    """Show a model's evidence, who has decided, and whose word is missing."""
    with cli_errors():
        from flows.runs.paths import Home
        from flows.runs.run import named_run
        from flows.servers.environment import with_mlflow

        opened = named_run(Home(Path.cwd()), run)
        with with_mlflow(opened.home):
            from flows.release import evidence, reviews

            record = evidence.record_of(opened, round)
            Console().print(reviews.evidence_table(opened, record))
            Console().print(reviews.decisions_table(opened, record))
            typer.echo("To decide elsewhere, sign these terms with `wardround review sign`:")
            typer.echo(reviews.terms_text(opened, record))


@app.command()
def sign(
    terms: Annotated[str, typer.Argument(help="The terms, as `review show` or the form shows them.")],
    word: Annotated[Word, typer.Option(help="What is said.")],
    name: AsOption,
    role: RoleOption,
    key: KeyOption,
    reason: ReasonOption = "",
    days: Annotated[int, typer.Option(min=1, max=365, help="How long an approval counts.")] = 30,
) -> None:
    """Print a signed verdict for Prefect's form, on a machine that has the person's key alone."""
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
    """Refuse a model; earlier approvals of it count no more."""
    _decide(run, round, "refused", name, key, reason)


@app.command()
def revoke(
    name: AsOption, key: KeyOption, reason: ReasonOption, run: RunArgument = None,
    round: RoundOption = None,
) -> None:  # fmt: skip
    """Take back what was released, by default the champion: the model before it is again, or none."""
    _decide(run, round, "revoked", name, key, reason)


@app.command()
def enter(
    signed: Annotated[str, typer.Argument(help="What `review sign` has printed elsewhere.")],
    run: RunArgument = None,
) -> None:
    """Put on record what a person has signed on another machine."""
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
            _told(opened, record, reviews.enter(opened, record, signed))


@app.command()
def withdraw(run: RunArgument = None) -> None:
    """Take what was revoked back in MLflow, as the officer's account, where `revoke` could not."""
    with cli_errors():
        from flows.runs.paths import Home
        from flows.runs.run import named_run
        from flows.servers.environment import with_mlflow

        opened = named_run(Home(Path.cwd()), run)
        with with_mlflow(opened.home):
            from flows.release import champion
            from flows.reporting.publish import publish_decisions_page

            taken_back = champion.withdraw(opened)
            publish_decisions_page(opened)  # also what an interruption has kept from MLflow
            typer.echo(f"Taken back: version {', '.join(taken_back) or 'none'}.")
            _tell_champion(opened)


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
                f"{opened.name} is not finished, so that its newest model may be another than the one "
                f"that was looked at; say which with --round."
            )
        _check_key(key)
        with with_mlflow(opened.home):
            from flows.release import evidence, reviews

            record = evidence.record_of(opened, round)
            said = reviews.decide(opened, record, word, name, private_key(key), reason)
            _told(opened, record, said)


def _released(run: "Run", named: str | None) -> tuple["Run", int]:
    """Return the champion's run and round: the study's, or that of a run that was named."""
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
        f"No model of {named or run.study.name} is the champion; say which is revoked with --round."
    )


def _told(run: "Run", record: "RoundRecord", said: "Verdict") -> None:
    """Say what was put on record, and what follows."""
    from flows.decisions import chain, release_status
    from flows.release import reviews

    typer.echo(f"{said.word} by {said.person} ({said.role}): {run.name}, round {record.round}.")
    typer.echo(f"Keep this for `wardround verify --decision`: {chain.heads(run)[-1]}")
    if said.word == "revoked":
        if not release_status.was_released(chain.decisions(run), said.terms):
            typer.echo("That model was never released, so nothing was taken back.")
        _tell_champion(run)
    elif missing := reviews.missing(run, record):
        typer.echo(f"Still missing: {', '.join(missing)}.")


def _tell_champion(run: "Run") -> None:
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
