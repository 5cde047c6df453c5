"""A federation whose hospitals all live on this machine: servers, processes and the flow, together."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flows.coordination.resume import alone, run_for, train_rounds
from flows.hospitals import processes as hospitals
from flows.reporting.progress import Live
from flows.rounds import ensemble_distillation
from flows.runs.paths import Home
from flows.runs.run import Run
from flows.servers.loopback import Server, running
from sites.hospital import Hospital
from sites.study import Study
from sites.yaml_files import ConfigError


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
        RunBusy: another coordinator trains this study.
        TooFewHospitals: too few accept (then nothing was recorded), or too few contribute.
        NoTransferImages: the coordinator lacks the public set on which the study distils.
    """
    ensemble_distillation.check_ready(study, home)
    with alone(home, study), hospitals.warm(wards, live.step, test_noise) as processes:
        live.say("starting the Prefect and MLflow servers and a process for each hospital ...")
        with servers(home):
            roster = {name: process.public_key() for name, process in processes.items()}
            run = run_for(home, study, roster, home.exchange, new=new)
            return train_rounds(run, live)


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


@contextmanager
def _all_running(servers: Sequence[Server]) -> Iterator[list[str]]:
    """Start servers side by side, give their URLs, and let go of them together."""
    with ExitStack() as stack, ThreadPoolExecutor(len(servers)) as threads:
        started = [threads.submit(stack.enter_context, running(server)) for server in servers]
        urls = [future.result() for future in started]
        yield urls
