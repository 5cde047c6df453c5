"""The `wardround` command."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from rich.console import Console

if TYPE_CHECKING:
    from sites.downloads import Source
    from sites.study import Study

# The commands import what they need themselves: `--help` and a typo answer without loading torch.

app = typer.Typer(
    help="Hospitals train one medical-imaging model together.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Make hospitals out of made-up or public data.", no_args_is_help=True)
site_app = typer.Typer(help="At one hospital: its ledger, its outbox.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(site_app, name="site")

BAD_INPUT = 2
"""The exit code where a study, a policy or an argument is at fault and nothing was done."""

SitesOption = Annotated[Path, typer.Option(help="The folder with the hospitals.")]
SiteArgument = Annotated[Path, typer.Argument(help="The hospital's folder.")]
TestNoiseOption = Annotated[
    int | None,
    typer.Option(help="Repeatable noise from this seed; made-up hospitals only.", hidden=True),
]


@app.command()
def demo(
    fresh: Annotated[bool, typer.Option(help="Delete the demo's wards and runs first.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Other made-up patients, another start.")] = 0,
    test_noise: TestNoiseOption = None,
) -> None:
    """Make four made-up hospitals and train on them, from scans to MLflow."""
    with _clear_errors():
        from flows import demo as made_up

        if fresh:
            made_up.delete(Path.cwd())
        study, wards = made_up.prepare(Path.cwd(), seed)
        if not made_up.shown(Path.cwd(), study):
            _train(study, wards, test_noise)


@app.command()
def run(
    study: Annotated[Path, typer.Argument(help="The study's YAML file.")],
    sites: SitesOption = Path("wards"),
    new: Annotated[bool, typer.Option(help="Leave an unfinished run and begin another.")] = False,
    test_noise: TestNoiseOption = None,
) -> None:
    """Train a study among the hospitals on this machine; an unfinished run goes on."""
    with _clear_errors():
        from sites.study import load_study

        _train(load_study(study), sites, test_noise, new=new)


FromOption = Annotated[Path | None, typer.Option("--from", help="Where the set lies, unpacked.")]
DownloadOption = Annotated[bool, typer.Option("--download", help="Fetch it from its public home.")]
DownloadsOption = Annotated[Path, typer.Option(help="Where downloads are kept.")]
MirrorOption = Annotated[
    str | None, typer.Option(help="Fetch it from this address instead; its sum has to be the same.")
]
OutOption = Annotated[Path, typer.Option(help="Where the hospitals go.")]
HospitalsOption = Annotated[int, typer.Option(min=1)]
SeedOption = Annotated[int, typer.Option(min=0)]


@data_app.command()
def phantoms(
    out: OutOption = Path("wards"),
    seed: SeedOption = 0,
) -> None:
    """Make four made-up hospitals."""
    with _clear_errors():
        from sites.phantoms import make_wards

        for ward in make_wards(out, seed):
            typer.echo(ward)


DOWNLOADS = Path(".wardround/downloads")


def _decathlon(name: str) -> Callable[..., None]:
    def make(
        source: FromOption = None,
        download: DownloadOption = False,
        mirror: MirrorOption = None,
        downloads: DownloadsOption = DOWNLOADS,
        out: OutOption = Path("wards"),
        hospitals: HospitalsOption = 4,
        channel: Annotated[
            int | None, typer.Option(min=0, help="Which channel, where images have several.")
        ] = None,
        skew: Annotated[
            Literal["patients", "intensity", "size", "labels"],
            typer.Option(help="In what the hospitals are unlike."),
        ] = "patients",
        seed: SeedOption = 0,
    ) -> None:
        with _clear_errors():
            from sites.decathlon import make_hospitals
            from sites.downloads import unpacked
            from sites.public_sets import DECATHLON

            folder = source or unpacked(_fetched(DECATHLON[name], download, mirror, downloads))
            for ward in make_hospitals(folder, out, hospitals, seed, channel, skew):
                typer.echo(ward)

    make.__doc__ = f"Divide the Decathlon's {name} scans among hospitals, by patient."
    return make


def _pictures(name: str) -> Callable[..., None]:
    def make(
        source: FromOption = None,
        download: DownloadOption = False,
        mirror: MirrorOption = None,
        downloads: DownloadsOption = DOWNLOADS,
        out: OutOption = Path("wards"),
        hospitals: HospitalsOption = 4,
        skew: Annotated[
            float, typer.Option(min=0.01, help="Dirichlet's concentration: small for unlike hospitals.")
        ] = 0.5,
        seed: SeedOption = 0,
    ) -> None:
        with _clear_errors():
            from sites.medmnist import make_hospitals
            from sites.public_sets import PICTURES

            pictures = PICTURES[name]
            file = source or _fetched(pictures.source, download, mirror, downloads)
            for ward in make_hospitals(file, out, hospitals, pictures, skew=skew, seed=seed):
                typer.echo(ward)

    make.__doc__ = f"Divide MedMNIST's {name} set among hospitals that differ in their labels."
    return make


for _name in ("braintumour", "heart", "liver", "hippocampus", "prostate", "lung", "pancreas",
              "hepaticvessel", "spleen", "colon"):  # fmt: skip
    data_app.command(_name)(_decathlon(_name))
for _name in ("pneumonia", "breast", "oct", "chest", "nodule3d", "adrenal3d", "fracture3d"):
    data_app.command(_name)(_pictures(_name))


def _fetched(source: "Source", download: bool, mirror: str | None, downloads: Path) -> Path:
    """Return the file of a public set, with a bar while it comes."""
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    from sites.documents import ConfigError
    from sites.downloads import fetch

    if not download:
        raise ConfigError("Expected --from with the set's place, or --download to fetch it.")
    if mirror:
        source = replace(source, url=f"{mirror.rstrip('/')}/{source.name}")
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        bar = bars.add_task(source.name, total=None)
        return fetch(source, downloads, lambda have, of: bars.update(bar, completed=have, total=of))


@app.command()
def survey(
    study: Annotated[Path, typer.Argument(help="The study's YAML file.")],
    sites: SitesOption = Path("wards"),
    every_hours: Annotated[
        float | None, typer.Option(min=0.001, help="Again and again, until Ctrl-C.")
    ] = None,
    cron: Annotated[str | None, typer.Option(help="The same, at these times, in UTC.")] = None,
) -> None:
    """Ask the hospitals what their scans are like, and what has moved since the last time."""
    with _clear_errors():
        from flows.embedded import servers, wards_in
        from flows.home import Home
        from sites.documents import ConfigError
        from sites.study import load_study

        if every_hours and cron:
            raise ConfigError("Expected --every-hours or --cron, got both.")
        home, asked = Home(Path.cwd()), load_study(study)
        wards_in(sites)
        with servers(home):
            from flows import survey as surveys

            if every_hours or cron:
                typer.echo("Surveys are on schedule; Ctrl-C ends them.")
                try:
                    surveys.schedule(study, sites, home, every_hours, cron)
                except KeyboardInterrupt:
                    typer.echo("")
                return
            surveys.survey(str(study), str(sites), str(home.folder))
        if newest := surveys.last(home, asked.name):
            Console().print(surveys.table(newest))


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="The port on this machine.")] = 5000,
) -> None:
    """Open MLflow's UI on what was made, until Ctrl-C."""
    with _clear_errors():
        from flows.home import Home
        from flows.servers import running
        from flows.tracking import links
        from sites.documents import ConfigError

        home = Home(Path.cwd())
        if not (home.folder / "mlruns" / "mlflow.db").exists():
            raise ConfigError(f"{home.folder}: nothing is recorded here; train a study first.")
        with running(home.mlflow, port) as url:
            for title, link in links(url):
                typer.echo(f"{title:<32} {link}")
            typer.echo("Ctrl-C ends it.")
            sys.stdout.flush()
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                typer.echo("")


@site_app.command()
def ledger(
    folder: SiteArgument = Path(),
    verify: Annotated[bool, typer.Option(help="Check the chain and the outbox alone.")] = False,
) -> None:
    """Show what the hospital's patients have spent, charge by charge."""
    with _clear_errors():
        from flows.site_tables import ledger_table, verified_entries

        if verify:
            typer.echo(f"{verified_entries(folder)} entries, the chain and the outbox hold.")
        else:
            Console().print(ledger_table(folder))


@site_app.command()
def scores(folder: SiteArgument = Path()) -> None:
    """Show how the hospital's personal models do; they and these figures never leave under privacy."""
    with _clear_errors():
        from flows.site_tables import scores_table

        Console().print(scores_table(folder))


@site_app.command()
def resolve(
    folder: SiteArgument = Path(),
    exchange: Annotated[
        list[str] | None,
        typer.Option(help="An exchange to look into, beside those that the hospital remembers."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Charge what a ledger restored from a backup has forgotten, and accept the clock as it is."""
    with _clear_errors():
        from flows.site_tables import forgotten_table
        from sites.exchange import Exchange
        from sites.forgotten import resolve as charge_forgotten
        from sites.hospital import Hospital

        hospital = Hospital.open(folder)
        exchanges = [Exchange(url) for url in sorted(hospital.exchanges | {*(exchange or ())})]
        table, count = forgotten_table(hospital, exchanges)
        if count:
            Console().print(table)
            typer.echo("Each patient of the hospital is charged for them.")
        else:
            typer.echo("The ledger knows everything that was said; only the clock is accepted.")
        if yes or typer.confirm("Go on?"):
            with hospital.alone():
                charge_forgotten(hospital, exchanges)
            typer.echo(f"Done: epsilon {hospital.ledger.spent(hospital.policy.budget.delta):.3f}.")


@site_app.command()
def outbox(folder: SiteArgument = Path()) -> None:
    """List everything that left the hospital."""
    with _clear_errors():
        from flows.site_tables import outbox_table

        Console().print(outbox_table(folder))


@site_app.command(name="import")
def take_in(
    export: Annotated[Path, typer.Argument(help="The folder that an archive exported.")],
    folder: SiteArgument = Path(),
) -> None:
    """Take scans into the hospital's data without what names the patients."""
    with _clear_errors():
        from sites.archive import take_in as import_export
        from sites.hospital import Hospital

        hospital = Hospital.open(folder)
        with hospital.alone():
            done = import_export(hospital, export)
        typer.echo(f"{done.cases} new cases of {done.patients} patients are in {hospital.data}.")
        for reason, count in sorted(done.left_out.items()):
            typer.echo(f"left out, {count}: {reason}")
        typer.echo("`wardround site check` says which of them can be used.")


@site_app.command()
def check(
    folder: SiteArgument = Path(),
    study: Annotated[Path | None, typer.Option(help="Check against this study's task.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list.")] = False,
) -> None:
    """Check every scan as a round would; exit code 1 if one is left out or the hospital is stopped."""
    with _clear_errors():
        from flows.site_tables import check_lines, check_table

        lines = check_lines(folder, study)
        if as_json:
            typer.echo(json.dumps([vars(line) for line in lines]))
        else:
            Console().print(check_table(lines) if lines else "Every case can be used.")
        raise typer.Exit(1 if any(line.severity != "warn" for line in lines) else 0)


def _train(study: "Study", sites: Path, test_noise: int | None, *, new: bool = False) -> None:
    from flows.embedded import train, wards_in
    from flows.home import Home
    from flows.live import Live, summary

    live = Live(Console())
    wards = wards_in(sites, test_noise)
    finished = train(Home(Path.cwd()), study, wards, live, test_noise=test_noise, new=new)
    live.console.print(summary(finished))
    live.say(f"records, models and releases: {finished.folder.relative_to(Path.cwd())}")
    live.say("see it in MLflow: make ui")


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Turn our own errors into one message and an exit code; anything else is a fault of ours."""
    from flows.rounds import TooFewHospitals
    from flows.run import BrokenRun, RunBusy
    from flows.servers import ServerError
    from models.checkpoints import CorruptCheckpoint
    from privacy.ledger import LedgerError
    from sites.documents import ConfigError

    try:
        yield
    except ConfigError as error:
        _stop(str(error), BAD_INPUT)
    except TooFewHospitals as error:
        hint = "\nThe same command goes on from the last finished round, `--new` begins another run."
        _stop(f"{error}{hint}" if error.begun else str(error), 1 if error.begun else BAD_INPUT)
    except (BrokenRun, RunBusy, ServerError, LedgerError, CorruptCheckpoint) as error:
        _stop(str(error), 1)


def _stop(message: str, code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
