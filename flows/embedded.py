"""A federation whose hospitals all live on this machine: servers, processes and the flow, together."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flows import fusion, hospitals
from flows.home import Home
from flows.live import Live
from flows.rounds import TooFewHospitals
from flows.run import Run, runs_of
from flows.servers import Server, running
from sites.documents import ConfigError
from sites.hospital import Hospital
from sites.study import Study


def wards_in(folder: Path, test_noise: int | None = None) -> dict[str, Path]:
    """Return the hospitals in `folder` by name, after checking every policy.

    Raises:
        ConfigError: no hospital, a wrong policy, or one name twice.
    """
    wards: dict[str, Path] = {}
    for path in sorted(folder.glob("*/site.yaml")):
        hospital = Hospital.open(path.parent, test_noise)
        _ = hospital.listing
        name = hospital.name
        if name in wards:
            raise ConfigError(f"{path}: name: expected a name of its own, {name!r} is taken.")
        wards[name] = path.parent
    if not wards:
        raise ConfigError(
            f"{folder}: expected hospitals (folders with a site.yaml), found none. "
            f"`wardround data` makes some."
        )
    return wards


def train(
    home: Home,
    study: Study,
    wards: Mapping[str, Path],
    live: Live,
    *,
    test_noise: int | None = None,
    new: bool = False,
) -> Run:
    """Train `study` among the hospitals in `wards`; an unfinished run goes on unless `new`.

    Raises:
        TooFewHospitals: too few accept (then nothing was recorded), or too few contribute.
        NoTransferImages: the coordinator lacks the public set on which the study distils.
    """
    fusion.check_ready(study, home)
    with ExitStack() as stack:
        stack.enter_context(hospitals.warm(wards, live.step, test_noise))
        live.say("starting the Prefect and MLflow servers and a process for each hospital ...")
        stack.enter_context(servers(home))
        roster = {name: hospitals.WARM[name].public_key() for name in wards}
        unfinished = None if new else _unfinished(home, study, roster)
        run = unfinished or Run.create(home, study, roster)
        live.say(f"run {run.name}")
        if study.prior and not run.records():
            live.say("the first model learns from synthetic images, which can take minutes ...")
        stack.enter_context(live.showing())
        _federate(run, sorted(wards), live)
    return Run.open(home, run.name)


@contextmanager
def servers(home: Home) -> Iterator[None]:
    """Run the Prefect and MLflow servers of a home, and let this process know them.

    Prefect reads its environment when it is imported: import it within.
    """
    os.environ.update(home.prefect_environment)
    with _all_running([home.prefect, home.mlflow]) as (prefect, mlflow):
        os.environ["PREFECT_API_URL"] = f"{prefect}/api"
        os.environ["MLFLOW_TRACKING_URI"] = mlflow
        yield


def _federate(run: Run, sites: list[str], live: Live) -> None:
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from flows import federate  # Prefect reads its environment when it is imported

    federate.ON_RECORD.append(live.round)
    try:
        # Without heartbeats a flow ends at once, not a second later; nobody listens to them here.
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            federate.federate(run.name, str(run.home.folder), sites)
    except TooFewHospitals:
        if not Run.open(run.home, run.name).description.participants:
            shutil.rmtree(run.folder)
        raise
    finally:
        federate.ON_RECORD.remove(live.round)


def _unfinished(home: Home, study: Study, roster: Mapping[str, str]) -> Run | None:
    """Return the newest run of the study among these very hospitals that can go on."""
    runs = [run for run in runs_of(home, study) if run.description.roster == roster]
    return runs[-1] if runs and not runs[-1].is_finished else None


@contextmanager
def _all_running(servers: Sequence[Server]) -> Iterator[list[str]]:
    """Start servers side by side, give their URLs, and let go of them together."""
    with ExitStack() as stack, ThreadPoolExecutor(len(servers)) as threads:
        started = [threads.submit(stack.enter_context, running(server)) for server in servers]
        urls = [future.result() for future in started]
        yield urls
