"""Commands that train: demo, run, survey, check, coordinate, coordinator-key."""

import json
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from flows.cli.errors import cli_errors
from flows.cli.options import (
    AsJsonOption,
    SitesOption,
    StudyArgument,
    TestNoiseOption,
)
from flows.reporting.console import console

if TYPE_CHECKING:
    from flows.coordination.beginning import Means
    from flows.reporting.progress import Live
    from flows.runs.run import Run
    from sites.study import Study

app = typer.Typer()


@app.command()
def demo(
    fresh: Annotated[bool, typer.Option(help="Delete the demo's hospitals and runs first.")] = False,
    seed: Annotated[
        int, typer.Option(min=0, help="The seed of the made-up patients and of the training.")
    ] = 0,
    test_noise: TestNoiseOption = None,
) -> None:
    """Train among four made-up hospitals, from scans to MLflow."""
    with cli_errors():
        _stay_forkable()
        from flows.cli import demo as made_up
        from flows.coordination.beginning import Means

        if fresh:
            made_up.delete(Path.cwd())
        study, wards = made_up.prepare(Path.cwd(), seed)
        if not made_up.show_finished(Path.cwd(), study):
            _train(study, wards, Means(test_noise))


@app.command()
def run(
    study: StudyArgument,
    sites: SitesOption = Path("wards"),
    federation: Annotated[
        Path | None, typer.Option(help="A federation.yaml with remote hospitals, instead of --sites.")
    ] = None,
    new: Annotated[bool, typer.Option(help="Leave an unfinished run and begin another.")] = False,
    test_noise: TestNoiseOption = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="Write where the time goes here, as a Chrome trace; with --sites only."),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="A Dask scheduler, as tcp://10.0.0.5:8786: its machines train; with --sites only."
        ),
    ] = None,
    attached: Annotated[
        bool, typer.Option("--attached", hidden=True, help="End when standard input does.")
    ] = False,
) -> None:
    """Train a study among hospitals, here or in a federation; an unfinished run goes on."""
    with cli_errors():
        _stay_forkable()
        from flows.coordination.beginning import Means
        from sites.study import load_study
        from sites.yaml_files import ConfigError

        if attached:
            _end_with_parent()
        asked = load_study(study)
        _check_material(asked)
        if federation is None:
            _train(asked, sites, Means(test_noise, profile, cluster), new=new)
        elif profile or cluster:
            raise ConfigError(
                "--profile, --cluster: expected --sites beside them, got --federation: how long a "
                "hospital takes, and on which machines, is its own affair."
            )
        else:
            _train_remotely(asked, federation, new=new)


@app.command()
def survey(
    study: StudyArgument,
    sites: SitesOption = Path("wards"),
    every_hours: Annotated[
        float | None, typer.Option(min=0.001, help="Hours between surveys, until Ctrl-C.")
    ] = None,
    cron: Annotated[str | None, typer.Option(help="Times of surveys in UTC, until Ctrl-C.")] = None,
    as_json: AsJsonOption = False,
) -> None:
    """Ask the hospitals for statistics of their scans, and show the drift since the last survey."""
    with cli_errors(as_json):
        from flows.runs.paths import Home
        from flows.servers.environment import own_servers
        from sites.setup.wards import wards_in
        from sites.study import load_study
        from sites.yaml_files import ConfigError

        if every_hours and cron:
            raise ConfigError("Expected --every-hours or --cron, got both.")
        home, asked = Home(Path.cwd()), load_study(study)
        wards_in(sites)
        if cron:
            _check_cron(cron)
        with own_servers(home) as servers:
            from flows import survey as surveys

            servers.ready()
            if every_hours or cron:
                typer.echo("Surveys run on the schedule; Ctrl-C ends them.")
                try:
                    surveys.schedule(study, sites, home, every_hours, cron)
                except KeyboardInterrupt:
                    typer.echo("")
                return
            surveys.survey(str(study), str(sites), str(home.folder))
        if newest := surveys.last(home, asked.name):
            if as_json:
                typer.echo(newest.model_dump_json())
            else:
                console().print(surveys.table(newest))


@app.command(name="check")
def check_hospitals(
    study: StudyArgument,
    federation: Annotated[
        Path | None,
        typer.Option(help="A federation.yaml; by default the one in this folder, if there is one."),
    ] = None,
    as_json: AsJsonOption = False,
) -> None:
    """Check a study, and ask hospitals whether they could train it now; exit code 1 if one can't."""
    with cli_errors(as_json):
        from flows.runs.paths import Home
        from flows.starts.material import missing_material
        from sites.study import load_study

        asked = load_study(study)
        warned, answers = missing_material(asked, Home(Path.cwd()).public), None
        if federation is None and Path("federation.yaml").exists():
            federation = Path("federation.yaml")
        if federation is not None:
            from flows.coordination.readiness import expectations, readiness

            answers = readiness(Home(Path.cwd()), asked, federation)
            warned += expectations(asked, federation)
        for warning in warned:
            typer.echo(f"warning: {warning}", err=True)
        if as_json:
            typer.echo(json.dumps({"faults": [], "warnings": warned, "hospitals": answers}))
        if answers is None:
            if not as_json:
                alone = "without a federation.yaml nobody was asked"
                typer.echo(f"{study}: its keys are right and fit each other; {alone}.")
            return
        raise typer.Exit(_readiness_told(answers, asked.sites.min, as_json=as_json))


def _readiness_told(answers: Mapping[str, str], least: int, *, as_json: bool) -> int:
    """Print what hospitals answer, and return the exit code."""
    from flows.coordination.readiness import READY

    if not as_json:
        for site, answer in sorted(answers.items()):
            typer.echo(f"{site}: {answer}")
    ready = sum(answer == READY for answer in answers.values())
    if ready < least:
        typer.echo(f"{ready} hospitals are ready, the study's sites.min is {least}.", err=True)
    return 0 if ready == len(answers) >= least else 1


@app.command()
def coordinate() -> None:
    """Train the studies in studies/ on Prefect's schedules, until Ctrl-C."""
    with cli_errors():
        import asyncio

        from flows.runs.paths import Home
        from flows.servers.environment import require_prefect

        home = Home(Path.cwd())
        require_prefect(home)
        from flows.coordination.coordinator_worker import CoordinatorWorker

        asyncio.run(CoordinatorWorker(home).start(printer=typer.echo))


@app.command()
def coordinator_key() -> None:
    """Print the coordinator's public key, for each hospital's site.yaml."""
    with cli_errors():
        from flows.coordination.remote import public_key
        from flows.runs.paths import Home

        typer.echo(public_key(Home(Path.cwd())))


def _check_material(study: "Study") -> None:
    """Raise `ConfigError` unless the public material that a study names is there."""
    from flows.runs.paths import Home
    from flows.starts.material import missing_material
    from sites.yaml_files import ConfigError

    if missing := missing_material(study, Home(Path.cwd()).public):
        raise ConfigError("\n".join(missing))


def _check_cron(text: str) -> None:
    """Raise `ConfigError` unless a text names times as cron does."""
    from cronsim import CronSim, CronSimError

    from sites.yaml_files import ConfigError

    try:
        CronSim(text, datetime.now(UTC))
    except CronSimError:
        raise ConfigError(
            f"--cron: expected five fields (minute hour day month weekday), such as '0 3 * * 1' for "
            f"Mondays at three, got {text!r}."
        ) from None


def _stay_forkable() -> None:
    """Keep libraries from starting threads when they are imported: hospitals' processes are forks."""
    import os

    from sites.template import THREADS

    os.environ.update({**THREADS, **os.environ})


def _end_with_parent() -> None:
    """End this process when its standard input closes, which the system does when its parent dies."""
    import os

    def wait() -> None:
        sys.stdin.read()
        os._exit(1)  # the run goes on from its last finished round

    threading.Thread(target=wait, daemon=True).start()


def _train(
    study: "Study",
    sites: Path,
    means: "Means",
    *,
    new: bool = False,
) -> None:
    """Train a study among hospitals here: servers start, and modules are imported, side by side."""
    from flows.coordination.beginning import begun
    from flows.runs.paths import Home
    from sites.setup.wards import wards_in

    home, console = Home(Path.cwd()), Console()
    wards = wards_in(sites, means.test_noise)
    console.print("starting the Prefect and MLflow servers and a process for each hospital ...")
    with begun(home) as beginning:
        from flows.coordination.local import train
        from flows.reporting.progress import Live

        live = Live(console)
        finished = train(home, study, wards, live, beginning, means, new=new)
        _summarise(live, finished)
    live.print("see it in MLflow: wardround ui")


def _train_remotely(study: "Study", federation: Path, *, new: bool) -> None:
    from flows.coordination.remote import train
    from flows.reporting.progress import Live
    from flows.runs.paths import Home

    live = Live(Console())
    _summarise(live, train(Home(Path.cwd()), study, federation, live, new=new))


def _summarise(live: "Live", finished: "Run") -> None:
    from flows.reporting.progress import summary

    live.console.print(summary(finished))
    live.print(f"records, models and releases: {finished.folder.relative_to(Path.cwd())}")
