"""The `wardround` command."""

import contextlib
import json
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from flows.cli.errors import clear_errors
from flows.cli.review import RoundOption, RunArgument, review_app
from flows.servers.environment import mlflow_server

if TYPE_CHECKING:
    from flows.reporting.progress import Live
    from flows.runs.run import Run
    from sites.datasets.downloads import Source
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
app.add_typer(review_app, name="review")

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
    with clear_errors():
        from flows.cli import demo as made_up

        if fresh:
            made_up.delete(Path.cwd())
        study, wards = made_up.prepare(Path.cwd(), seed)
        if not made_up.shown(Path.cwd(), study):
            _train(study, wards, test_noise)


@app.command()
def run(
    study: Annotated[Path, typer.Argument(help="The study's YAML file.")],
    sites: SitesOption = Path("wards"),
    federation: Annotated[
        Path | None, typer.Option(help="A federation.yaml: real hospitals, instead of --sites.")
    ] = None,
    new: Annotated[bool, typer.Option(help="Leave an unfinished run and begin another.")] = False,
    test_noise: TestNoiseOption = None,
    attached: Annotated[
        bool, typer.Option("--attached", hidden=True, help="End when standard input does.")
    ] = False,
) -> None:
    """Train a study among hospitals, on this machine or of a federation; an unfinished run goes on."""
    with clear_errors():
        if attached:
            _end_with_parent()
        from sites.study import load_study

        if federation is None:
            _train(load_study(study), sites, test_noise, new=new)
        else:
            _train_remotely(load_study(study), federation, new=new)


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show where the newest run stands: hospitals, when they were seen, whom the round waits for."""
    with clear_errors():
        from dataclasses import asdict

        from flows.reporting.progress import status_table
        from flows.reporting.status import status as newest_status
        from flows.runs.paths import Home
        from sites.yaml_files import ConfigError

        found = newest_status(Home(Path.cwd()))
        if found is None:
            raise ConfigError(f"{Path.cwd()}: expected a run here, found none; train a study first.")
        if as_json:
            typer.echo(json.dumps(asdict(found)))
        else:
            Console().print(status_table(found))


@app.command(name="check")
def check_hospitals(
    study: Annotated[Path, typer.Argument(help="The study's YAML file.")],
    federation: Annotated[Path, typer.Option(help="A federation.yaml.")] = Path("federation.yaml"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Ask hospitals whether they could train a study as they are now; exit code 1 if one could not."""
    with clear_errors():
        from flows.coordination.readiness import READY, readiness
        from flows.runs.paths import Home
        from sites.study import load_study

        found = readiness(Home(Path.cwd()), load_study(study), federation)
        if as_json:
            typer.echo(json.dumps(found))
        else:
            for site, said in sorted(found.items()):
                typer.echo(f"{site}: {said}")
        raise typer.Exit(0 if set(found.values()) == {READY} else 1)


@app.command()
def verify(
    run: RunArgument = None,
    federation: Annotated[
        Path | None,
        typer.Option(help="A federation.yaml of the reader's own: no other hospitals' keys count."),
    ] = None,
    people: Annotated[
        Path | None,
        typer.Option(help="A people.yaml of the reader's own: nobody else's decisions count."),
    ] = None,
    decision: Annotated[
        str, typer.Option(help="The sha256 that `review` told of a decision: it has to be there still.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Check every signature and number of a run and re-compute its models; exit code 1 at a fault."""
    with clear_errors():
        from flows.runs.paths import Home
        from flows.runs.run import named_run
        from flows.servers.environment import set_prefect, with_mlflow

        opened = named_run(Home(Path.cwd()), run)
        roster = None
        if federation:
            set_prefect(opened.home)
            from flows.hospitals.federation import load_federation

            roster = load_federation(federation).hospitals
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
def log(run: RunArgument = None) -> None:
    """Log in MLflow what it lacks of a run that is on record here, as when its store is a new one."""
    with clear_errors():
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
def promote(
    run: RunArgument = None,
    round: RoundOption = None,
    wait_s: Annotated[float, typer.Option(min=0, help="How long to wait for people.")] = 86400,
) -> None:
    """Release a model: check its evidence, wait for a clinician's and an officer's word, publish it."""
    with clear_errors():
        from flows.runs.paths import Home
        from flows.runs.run import named_run
        from flows.servers.environment import with_prefect_and_mlflow

        opened = named_run(Home(Path.cwd()), run)
        with with_prefect_and_mlflow(opened.home):
            from flows import promote as promotion
            from flows.release import evidence

            record = evidence.record_of(opened, round)
            typer.echo(f"{opened.name}, round {record.round}: checking its evidence ...")
            version = promotion.promote(opened.name, record.round, str(opened.home.folder), wait_s)
            typer.echo(f"Released: version {version} is the champion.")


ModelArgument = Annotated[
    str, typer.Argument(help="<study>-approved, <study>-candidates, either with /VERSION, or a run.")
]


@app.command()
def predict(
    model: ModelArgument,
    image: Annotated[Path, typer.Argument(help="NIfTI, a DICOM series' folder, PNG or JPEG.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The mask, .nii.gz, on the image's own grid.")
    ] = None,
) -> None:
    """Write what a model sees in an image: a mask, or as JSON the probability of each class."""
    with clear_errors():
        from flows import served_model
        from flows.runs.paths import Home
        from flows.serving import prediction

        if out is not None:
            prediction.check_out(out)
        with prediction.model_files(Home(Path.cwd()), model) as folder:
            loaded = served_model.load(folder)
        if out is None:
            typer.echo(json.dumps(prediction.classes_of(loaded, image)))
        else:
            prediction.write_mask(prediction.mask_of(loaded, image), out)


@app.command(name="export-bundle")
def export_bundle(
    model: ModelArgument, folder: Annotated[Path, typer.Argument(help="An empty folder.")]
) -> None:
    """Write a model as a MONAI bundle, which `python -m monai.bundle run` executes."""
    with clear_errors():
        from flows import served_model
        from flows.runs.paths import Home
        from flows.serving import bundle, prediction
        from models.files import sha256_of

        with prediction.model_files(Home(Path.cwd()), model) as files:
            weights = (files / served_model.WEIGHTS).read_bytes()
            bundle.write(served_model.load(files), weights, sha256_of(weights), folder)
        typer.echo(f"{folder} is a MONAI bundle; docs/README.md in it says how to run it.")


@app.command()
def access(
    study: Annotated[Path, typer.Argument(help="The study's YAML file.")],
    accounts: Annotated[Path, typer.Argument(help="Who has which account; see docs/access.md.")],
) -> None:
    """Make a study's accounts and roles in a protected MLflow server, as its administrator."""
    with clear_errors():
        import os

        from flows.runs.paths import Home
        from sites import yaml_files
        from sites.study import load_study

        if not os.environ.get("MLFLOW_TRACKING_URI"):
            raise yaml_files.ConfigError(
                "MLFLOW_TRACKING_URI: expected in the environment the protected server's address."
            )
        from flows.tracking.access import Accounts, set_up

        passwords = Home(Path.cwd()).state / "access"
        made = set_up(load_study(study).name, yaml_files.load(accounts, Accounts), passwords)
        for name in made:
            typer.echo(f"{name}: the password is in {(passwords / name).relative_to(Path.cwd())}")
        typer.echo("Everybody else had an account; roles are as docs/access.md says.")


@app.command()
def coordinate() -> None:
    """Train the studies in studies/ when Prefect's schedules say so, until Ctrl-C."""
    with clear_errors():
        import asyncio

        from flows.runs.paths import Home
        from flows.servers.environment import require_prefect

        home = Home(Path.cwd())
        require_prefect(home)
        from flows.coordination.coordinator_worker import CoordinatorWorker

        asyncio.run(CoordinatorWorker(home).start(printer=typer.echo))


@app.command()
def key() -> None:
    """Print the coordinator's public key, which goes into each hospital's site.yaml."""
    with clear_errors():
        from flows.coordination.remote import public_key
        from flows.runs.paths import Home

        typer.echo(public_key(Home(Path.cwd())))


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
    with clear_errors():
        from sites.datasets.phantoms import make_wards

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
        with clear_errors():
            from sites.datasets.decathlon import make_hospitals
            from sites.datasets.downloads import unpacked
            from sites.datasets.public_sets import DECATHLON

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
        with clear_errors():
            from sites.datasets.medmnist import make_hospitals
            from sites.datasets.public_sets import PICTURES

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

    from sites.datasets.downloads import fetch
    from sites.yaml_files import ConfigError

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
    with clear_errors():
        from flows.runs.paths import Home
        from flows.servers.environment import own_servers
        from sites.study import load_study
        from sites.wards import wards_in
        from sites.yaml_files import ConfigError

        if every_hours and cron:
            raise ConfigError("Expected --every-hours or --cron, got both.")
        home, asked = Home(Path.cwd()), load_study(study)
        wards_in(sites)
        with own_servers(home):
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
    with clear_errors():
        from flows.runs.paths import Home
        from flows.servers.loopback import running
        from flows.tracking.views import links
        from sites.yaml_files import ConfigError

        home = Home(Path.cwd())
        if not (home.folder / "mlruns" / "mlflow.db").exists():
            raise ConfigError(f"{home.folder}: nothing is recorded here; train a study first.")
        with running(mlflow_server(home), port) as url:
            for title, link in links(url):
                typer.echo(f"{title:<32} {link}")
            typer.echo("Ctrl-C ends it.")
            sys.stdout.flush()
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                typer.echo("")


@site_app.command()
def init(
    folder: SiteArgument = Path(),
    name: Annotated[str, typer.Option(prompt="The hospital's name")] = "",
    data: Annotated[
        str, typer.Option(help="Where the scans and their list are, from the folder.")
    ] = ".",
    declared_patients: Annotated[
        int, typer.Option(prompt="Public number of patients, rounded", min=1)
    ] = 0,
    epsilon: Annotated[float, typer.Option(prompt="Budget of all studies together: epsilon")] = 0.0,
    delta: Annotated[float, typer.Option(prompt="at delta")] = 0.0,
    metrics: Annotated[str, typer.Option(prompt="Metrics leave exact, or withheld")] = "",
    network: Annotated[list[str] | None, typer.Option(help="A network that may train here.")] = None,
    key: Annotated[str, typer.Option(prompt="The coordinator's public key")] = "",
    exchange: Annotated[str, typer.Option(prompt="The exchange's address")] = "",
    api: Annotated[str, typer.Option(prompt="Prefect's API's address")] = "",
) -> None:
    """Set up a hospital's folder: its policy and its key; print what the coordinator has to know."""
    with clear_errors():
        from sites.setup.initialise import initialise

        policy = {
            "name": name,
            "data": data,
            "declared_patients": declared_patients,
            "budget": {"epsilon": epsilon, "delta": delta},
            "metrics": metrics,
            **({"networks": network} if network else {}),
            "coordinator": {"key": key, "exchange": exchange, "api": api},
        }
        hospital = initialise(folder, policy)
        typer.echo(
            f"{folder / 'site.yaml'} is the hospital's policy; read it and narrow it as you like."
        )
        typer.echo("The coordinator puts this line under `hospitals:` in federation.yaml:")
        typer.echo(f"  {hospital.name}: {hospital.public_key}")


@site_app.command()
def work(folder: SiteArgument = Path(), test_noise: TestNoiseOption = None) -> None:
    """Ask the coordinator's Prefect for work and carry out its signed orders, until Ctrl-C."""
    with clear_errors():
        import asyncio
        import os

        from flows.servers.environment import QUIET
        from sites.hospital import Hospital
        from sites.protocol.order_inbox import coordinator_of

        hospital = Hospital.open(folder, test_noise)
        api = coordinator_of(hospital).api
        settings = {
            **QUIET,
            "PREFECT_LOGGING_LEVEL": "INFO",
            "PREFECT_HOME": str((hospital.state / "prefect").resolve()),
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_API_SSL_CERT_FILE": os.environ.get("SSL_CERT_FILE", ""),
        }
        os.environ.update({key: value for key, value in settings.items() if value} | os.environ)
        os.environ["PREFECT_API_URL"] = api
        from flows.hospitals.hospital_worker import HospitalWorker

        asyncio.run(HospitalWorker(folder, test_noise).start(printer=typer.echo))


StudyNameArgument = Annotated[str, typer.Argument(help="The study's name.")]


@site_app.command()
def train(study: StudyNameArgument, folder: SiteArgument = Path()) -> None:
    """Join, contribute or tell, as the study's coordinator has ordered, without waiting for its call."""
    with clear_errors():
        _carry_out_open(folder, study, "site-round")


@site_app.command()
def score(study: StudyNameArgument, folder: SiteArgument = Path()) -> None:
    """Evaluate global models, as the study's coordinator has ordered, without waiting for its call."""
    with clear_errors():
        _carry_out_open(folder, study, "site-score")


def _carry_out_open(folder: Path, study: str, flow: str) -> None:
    from sites.admission.approvals import ApprovalNeeded
    from sites.hospital import Hospital
    from sites.progress import ignore_progress
    from sites.protocol.order_inbox import carry_out_ref, open_orders

    hospital = Hospital.open(folder)
    refs = open_orders(hospital, study, flow)
    if not refs:
        typer.echo(f"Nothing is ordered of study {study} that waits for an answer.")
    for ref in refs:
        try:
            carry_out_ref(hospital, ref, ignore_progress)
            typer.echo(f"{ref.phase} of {ref.run}, round {ref.round}: answered.")
        except ApprovalNeeded as needed:
            typer.echo(f"{needed}; see `wardround site waiting`.")


@site_app.command()
def waiting(folder: SiteArgument = Path()) -> None:
    """List what waits for this hospital's approval, with the code that Prefect's form asks for."""
    with clear_errors():
        from flows.cli.site_tables import waiting_table

        Console().print(waiting_table(folder))


NamedArgument = Annotated[str, typer.Argument(help="The beginning of its name in `site waiting`.")]
ByOption = Annotated[str | None, typer.Option(help="Who says so; by default whoever is logged in.")]


@site_app.command()
def approve(named: NamedArgument, folder: SiteArgument = Path(), by: ByOption = None) -> None:
    """Approve what waits, and carry it out."""
    with clear_errors():
        _decide(folder, named, "approved", by)


@site_app.command()
def refuse(named: NamedArgument, folder: SiteArgument = Path(), by: ByOption = None) -> None:
    """Refuse what waits; the others go on without this hospital, and nobody learns why."""
    with clear_errors():
        _decide(folder, named, "refused", by)


def _decide(folder: Path, named: str, verdict: Literal["approved", "refused"], by: str | None) -> None:
    import getpass

    from sites.admission.approvals import ApprovalNeeded, decide
    from sites.hospital import Hospital
    from sites.progress import ignore_progress
    from sites.protocol.order_inbox import BadOrder, resume

    hospital = Hospital.open(folder)
    terms, request = decide(hospital, named, verdict, by or getpass.getuser())
    typer.echo(f"{verdict}: {request.act} of {request.run}, round {request.round}")
    try:
        if resume(hospital, terms, ignore_progress):
            typer.echo("The answer lies in the exchange.")
    except BadOrder as late:
        typer.echo(f"It was too late for this time: {late}.")
    except ApprovalNeeded as more:
        typer.echo(f"Now {more.act} waits; see `wardround site waiting`.")


@site_app.command()
def drain(
    folder: SiteArgument = Path(),
    off: Annotated[bool, typer.Option("--off", help="Take orders again.")] = False,
) -> None:
    """Take no more orders, as before an upgrade, and wait for the one at work."""
    with clear_errors():
        from sites.hospital import Hospital
        from sites.protocol.order_inbox import drain as drain_hospital

        drain_hospital(Hospital.open(folder), on=not off)
        typer.echo("Orders are taken again." if off else "Nothing is at work, and no order is taken.")


@site_app.command()
def rehearse(
    study: Annotated[Path, typer.Argument(help="The study's YAML file.")], folder: SiteArgument = Path()
) -> None:
    """Try a whole round on made-up patients; nothing is charged, and nothing of it leaves."""
    with clear_errors():
        from flows.cli.rehearsal import rehearse as try_round
        from sites.hospital import Hospital
        from sites.study import load_study

        is_fine = True
        for tried in try_round(Hospital.open(folder), load_study(study)):
            typer.echo(f"rehearsal, {tried.what}: {tried.result} ({tried.seconds:.1f} s)")
            is_fine &= tried.is_fine
        raise typer.Exit(0 if is_fine else 1)


@site_app.command()
def leave(
    study: StudyNameArgument,
    folder: SiteArgument = Path(),
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Leave a study for good: unsent work is given up, what was charged stays charged."""
    with clear_errors():
        from sites.hospital import Hospital
        from sites.protocol.departure import leave as leave_study

        hospital = Hospital.open(folder)
        if yes or typer.confirm(f"{hospital.name} leaves {study} for good. Go on?"):
            runs, untold = leave_study(hospital, study)
            for run in runs:
                typer.echo(f"{run}: nothing of {hospital.name} counts from now on.")
            for url in untold:
                typer.echo(f"{url} could not be told; here the study is left. Leave again to tell it.")


@site_app.command(name="change-key")
def change_key(
    folder: SiteArgument = Path(),
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also where the old key can't be revoked everywhere.")
    ] = False,
) -> None:
    """Revoke the key with which this hospital signs, because others may have it, and make a new one."""
    with clear_errors():
        from sites.hospital import Hospital
        from sites.protocol.departure import change_key as change

        hospital = Hospital.open(folder)
        if yes or typer.confirm("Nothing that is signed with the old key counts any more. Go on?"):
            public, unrevoked = change(hospital, force=force)
            for url in unrevoked:
                typer.echo(
                    f"{url}: the old key could not be revoked; it counts there until this is done:"
                )
            typer.echo("The coordinator puts this into federation.yaml instead of this hospital's line:")
            typer.echo(f"  {hospital.name}: {public}")


@site_app.command(name="ui")
def own_ui(
    folder: SiteArgument = Path(),
    port: Annotated[int, typer.Option(help="The port on this machine.")] = 5001,
) -> None:
    """Show, here alone, how models do on the hospital's own hardest cases, until Ctrl-C."""
    with clear_errors():
        import os

        from flows.servers.environment import QUIET

        os.environ.update({**QUIET, **os.environ})
        from flows.tracking.hospital_store import fill, own_store

        with own_store(folder, port) as url:
            pages = fill(folder, url)
            typer.echo("\n".join(pages) or "No model that segments has been seen here yet.")
            typer.echo("Ctrl-C ends it.")
            sys.stdout.flush()
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()


@site_app.command()
def ledger(
    folder: SiteArgument = Path(),
    verify: Annotated[bool, typer.Option(help="Check the chain and the outbox alone.")] = False,
) -> None:
    """Show what the hospital's patients have spent, charge by charge."""
    with clear_errors():
        from flows.cli.site_tables import ledger_table, verified_entries
        from sites.hospital import Hospital

        if verify:
            typer.echo(f"{verified_entries(folder)} entries, the chain and the outbox hold.")
            for seq, version in Hospital.open(folder).ledger.writers():
                typer.echo(f"from entry {seq} on written by Wardround {version}")
        else:
            Console().print(ledger_table(folder))


@site_app.command()
def scores(folder: SiteArgument = Path()) -> None:
    """Show how the hospital's personal models do; they and these figures never leave under privacy."""
    with clear_errors():
        from flows.cli.site_tables import scores_table

        Console().print(scores_table(folder))


@site_app.command()
def withdrawn(folder: SiteArgument = Path()) -> None:
    """List the rounds in which patients who have withdrawn took part before."""
    with clear_errors():
        from flows.cli.site_tables import withdrawn_table

        Console().print(withdrawn_table(folder))


@site_app.command()
def resolve(
    folder: SiteArgument = Path(),
    exchange: Annotated[
        list[str] | None,
        typer.Option(help="An exchange to look into, beside those that the hospital remembers."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Charge what a ledger restored from a backup misses, and accept the clock as it is."""
    with clear_errors():
        from flows.cli.site_tables import missing_table
        from sites.admission.ledger_recovery import recover_ledger
        from sites.exchange.exchange import Exchange
        from sites.hospital import Hospital

        hospital = Hospital.open(folder)
        exchanges = [Exchange(url) for url in sorted(hospital.exchanges | {*(exchange or ())})]
        table, count = missing_table(hospital, exchanges)
        if count:
            Console().print(table)
            typer.echo("Each patient of the hospital is charged for them.")
        else:
            typer.echo("The ledger knows everything that was said; only the clock is accepted.")
        if yes or typer.confirm("Go on?"):
            with hospital.lock():
                recover_ledger(hospital, exchanges)
            typer.echo(f"Done: epsilon {hospital.ledger.spent(hospital.policy.budget.delta):.3f}.")


@site_app.command()
def outbox(folder: SiteArgument = Path()) -> None:
    """List everything that left the hospital."""
    with clear_errors():
        from flows.cli.site_tables import outbox_table

        Console().print(outbox_table(folder))


@site_app.command(name="import")
def take_in(
    export: Annotated[Path, typer.Argument(help="The folder that an archive exported.")],
    folder: SiteArgument = Path(),
) -> None:
    """Take scans into the hospital's data without what names the patients."""
    with clear_errors():
        from sites.deidentification.archive_import import take_in as import_export
        from sites.hospital import Hospital

        hospital = Hospital.open(folder)
        with hospital.lock():
            done = import_export(hospital, export)
        typer.echo(f"{done.cases} new cases of {done.patients} patients are in {hospital.data}.")
        for reason, count in sorted(done.left_out.items()):
            typer.echo(f"left out, {count}: {reason}")
        typer.echo("`wardround site check` says which of them can be used.")


@site_app.command()
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
    """Check every scan as a round would; exit code 1 if one is left out or the hospital is stopped.

    With a study's name, answer its coordinator's question whether this hospital could train it.
    """
    with clear_errors():
        if not what.is_dir():
            _carry_out_open(folder, str(what), "site-check")
            return
        from flows.cli.site_tables import check_lines, check_table

        lines = check_lines(what, study)
        if as_json:
            typer.echo(json.dumps([vars(line) for line in lines]))
        else:
            Console().print(check_table(lines) if lines else "Every case can be used.")
        raise typer.Exit(1 if any(line.severity != "warn" for line in lines) else 0)


def _end_with_parent() -> None:
    """End this process when its standard input closes, which the system does when its parent dies."""
    import os

    def wait() -> None:
        sys.stdin.read()
        os._exit(1)  # the run goes on from its last finished round

    threading.Thread(target=wait, daemon=True).start()


def _train(study: "Study", sites: Path, test_noise: int | None, *, new: bool = False) -> None:
    from flows.coordination.local import train
    from flows.reporting.progress import Live
    from flows.runs.paths import Home
    from sites.wards import wards_in

    live = Live(Console())
    wards = wards_in(sites, test_noise)
    finished = train(Home(Path.cwd()), study, wards, live, test_noise=test_noise, new=new)
    _tell(live, finished)
    live.print("see it in MLflow: make ui")


def _train_remotely(study: "Study", federation: Path, *, new: bool) -> None:
    from flows.coordination.remote import train
    from flows.reporting.progress import Live
    from flows.runs.paths import Home

    live = Live(Console())
    _tell(live, train(Home(Path.cwd()), study, federation, live, new=new))


def _tell(live: "Live", finished: "Run") -> None:
    from flows.reporting.progress import summary

    live.console.print(summary(finished))
    live.print(f"records, models and releases: {finished.folder.relative_to(Path.cwd())}")


if __name__ == "__main__":
    app()
