"""Training among real hospitals: servers that run already, hospitals that are asked through Prefect."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.coordination.resume import alone, run_for, train_rounds
from flows.hospitals.processes import reachable
from flows.reporting.progress import Live
from flows.rounds import ensemble_distillation
from flows.runs.paths import QUIET, Home
from flows.runs.run import Run
from flows.servers.loopback import ServerError, running
from privacy.signing import private_key, public_hex
from sites.exchange.exchange import Exchange
from sites.study import Study
from sites.yaml_files import ConfigError


def public_key(home: Home) -> str:
    """Return the coordinator's public key, made on first use."""
    return public_hex(private_key(home.coordinator_key))


def train(home: Home, study: Study, federation: Path, live: Live, *, new: bool = False) -> Run:
    """Train `study` among the hospitals of a `federation.yaml`; an unfinished run goes on unless `new`.

    Raises:
        ConfigError: the file is wrong, or it is not said where Prefect's API is.
        RunBusy: another coordinator trains this study.
        TooFewHospitals: too few accept (then nothing was recorded), or too few contribute.
    """
    ensemble_distillation.check_ready(study, home)
    with alone(home, study), _servers(home):
        from flows.hospitals.federation import (  # Prefect reads its environment
            RemoteHospital,
            load_federation,
        )

        members = load_federation(federation)
        exchange, key = Exchange(members.exchange), private_key(home.coordinator_key)
        asked = {name: RemoteHospital(name, exchange, key) for name in members.hospitals}
        with reachable(asked):
            run = run_for(home, study, members.hospitals, members.exchange, new=new)
            try:
                return train_rounds(run, live)
            finally:
                for hospital in asked.values():
                    hospital.withdraw()


@contextmanager
def _servers(home: Home) -> Iterator[None]:
    """Let this process know Prefect's server, and MLflow's."""
    use_prefect(home)
    with mlflow(home):
        yield


@contextmanager
def mlflow(home: Home) -> Iterator[None]:
    """Let this process know MLflow's server: this home's own where the environment names none."""
    if os.environ.get("MLFLOW_TRACKING_URI"):
        yield
        return
    os.environ.update({**QUIET, **os.environ})
    with running(home.mlflow) as url:
        os.environ["MLFLOW_TRACKING_URI"] = url
        try:
            yield
        finally:
            del os.environ["MLFLOW_TRACKING_URI"]


def prefect_environment(home: Home) -> None:
    """Set what Prefect reads when it is imported, where the environment does not."""
    os.environ.update({**home.prefect_environment, **os.environ})


@contextmanager
def prefect_and_mlflow(home: Home) -> Iterator[None]:
    """Let this process know both servers: this home's own where the environment names none.

    Raises:
        ServerError: Prefect's API, which the environment names, can't be reached.
    """
    prefect_environment(home)
    if named := os.environ.get("PREFECT_API_URL"):
        _check_answers(named)
        with mlflow(home):
            yield
        return
    with running(home.prefect) as url, mlflow(home):
        os.environ["PREFECT_API_URL"] = f"{url}/api"
        try:
            yield
        finally:
            del os.environ["PREFECT_API_URL"]


def _check_answers(api: str) -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        if error := client.api_healthcheck():
            raise ServerError(
                f"PREFECT_API_URL: {api} can't be reached ({error}). Start that server, or take the "
                f"address out of the environment; the same command goes on then."
            )


def use_prefect(home: Home) -> None:
    """Set what Prefect needs where the environment does not; import Prefect afterwards.

    Raises:
        ConfigError: the environment does not say where Prefect's API is.
    """
    if not os.environ.get("PREFECT_API_URL"):
        raise ConfigError(
            "PREFECT_API_URL: expected in the environment the address of Prefect's API, which the "
            "hospitals' workers ask for work, and it is missing."
        )
    os.environ.update({**home.prefect_environment, **os.environ})
