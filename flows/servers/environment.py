"""The Prefect and MLflow servers of a coordinator, and the one place that sets their environment.

Prefect and MLflow read their environment when they are imported: import them only after a call of the
functions of this module.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from flows.runs.paths import Home
from flows.servers.decision_page import HOME
from flows.servers.first_database import FirstDatabase, ServerError
from flows.servers.loopback import Server, Starting, running, starting
from flows.servers.mlflow_store import check_store
from sites.yaml_files import ConfigError

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # the command line reports errors, once
    "PREFECT_CLIENT_MAX_RETRIES": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Settings for no telemetry, no unpickling and little output."""
LEAN = {
    "PREFECT_SERVER_SERVICES_FOREMAN_ENABLED": "false",  # looks after workers, which are all remote
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TRIGGERS_READ_BATCH_SIZE": "50",
}
"""Settings of a Prefect server for one coordinator on its own machine: states are stored in batches."""
PREFECT_DATABASE = "PREFECT_API_DATABASE_CONNECTION_URL"
SERVE = [sys.executable, "-m", "flows.servers.serve"]


def prefect_settings(home: Home) -> dict[str, str]:
    """Return the settings of Prefect's client and server."""
    return {**QUIET, "PREFECT_HOME": str((home.state / "prefect").resolve())}


def prefect_server(home: Home) -> Server:
    """Return a Prefect server on loopback with its own database.

    Prefect uses a single connection, which its SQLite needs under load, when the database's URL contains
    `:memory:`; a folder of that name makes such a database last.
    """
    path = (home.state / "prefect" / ":memory:" / "prefect.db").resolve()
    settings = {**prefect_settings(home), **LEAN, PREFECT_DATABASE: "sqlite+aiosqlite:///{path}"}
    return Server(
        folder=home.state / "servers" / "prefect",
        command=[*SERVE, "prefect.server.api.server:create_app", "{port}"],
        health="/api/health",
        environment={
            **settings,
            PREFECT_DATABASE: f"sqlite+aiosqlite:///{path}",
            "PREFECT_SERVER_UI_API_URL": "http://127.0.0.1:{port}/api",  # else its pages ask port 4200
        },
        database=FirstDatabase(
            path,
            name=f"prefect-{version('prefect')}",
            command=[sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"],
            environment=settings,
        ),
    )  # fmt: skip


def mlflow_server(home: Home) -> Server:
    """Return the lean MLflow server of `mlruns/`; the one process that writes there."""
    server = store_server(home.folder / "mlruns", home.state / "servers" / "mlflow")
    return replace(server, environment={**server.environment, HOME: str(home.folder.resolve())})


def store_server(store: Path, folder: Path) -> Server:
    """Return a lean MLflow server, on loopback, that stores everything in the folder `store`.

    Raises:
        ConfigError: the folder has another program's database, or another version's.
    """
    store.mkdir(parents=True, exist_ok=True)
    path = (store / "mlflow.db").resolve()
    check_store(path)
    return Server(
        folder=folder,
        command=[*SERVE, "flows.servers.mlflow_app:create_app", "{port}"],
        health="/health",
        environment={
            **QUIET,
            # what `mlflow server` hands to its own worker processes, without a process for handing it
            "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{path}",
            "_MLFLOW_SERVER_REGISTRY_STORE": f"sqlite:///{path}",
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str((store / "artifacts").resolve()),
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "_MLFLOW_IN_JOB_EXECUTOR": "false",
        },
        database=FirstDatabase(
            path,
            name=f"mlflow-{version('mlflow')}",
            command=[sys.executable, "-m", "mlflow", "db", "upgrade", "sqlite:///{path}"],
            environment=QUIET,
        ),
    )


@dataclass(frozen=True)
class OwnServers:
    """The servers of a home itself, which may still be starting; the environment has their addresses."""

    servers: tuple[Starting, ...]

    def ready(self) -> None:
        """Wait until both answer; raise `ServerError` if one does not."""
        for server in self.servers:
            server.ready()


@contextmanager
def own_servers(home: Home) -> Iterator[OwnServers]:
    """Begin to start this home's own Prefect and MLflow servers, whatever the environment names."""
    os.environ.update(prefect_settings(home))
    with starting(prefect_server(home)) as prefect, starting(mlflow_server(home)) as mlflow:
        os.environ["PREFECT_API_URL"] = f"{prefect.url}/api"
        os.environ["MLFLOW_TRACKING_URI"] = mlflow.url
        yield OwnServers((prefect, mlflow))


@contextmanager
def with_mlflow(home: Home) -> Iterator[None]:
    """Use the MLflow server that the environment names, or run this home's own."""
    if os.environ.get("MLFLOW_TRACKING_URI"):
        yield
        return
    set_quiet()
    with running(mlflow_server(home)) as url:
        os.environ["MLFLOW_TRACKING_URI"] = url
        try:
            yield
        finally:
            del os.environ["MLFLOW_TRACKING_URI"]


@contextmanager
def with_prefect_and_mlflow(home: Home) -> Iterator[None]:
    """Use the servers that the environment names, or run this home's own.

    Raises:
        ServerError: the environment names a Prefect API that can't be reached.
    """
    set_prefect(home)
    if named := os.environ.get("PREFECT_API_URL"):
        _check_answers(named)
        with with_mlflow(home):
            yield
        return
    with running(prefect_server(home)) as url, with_mlflow(home):
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
                f"PREFECT_API_URL: {api} can't be reached ({error}). Start that server, or remove "
                f"the address from the environment; then repeat the command."
            )


def set_quiet() -> None:
    """Set what keeps both servers quiet, where the environment sets nothing else."""
    os.environ.update({**QUIET, **os.environ})


def set_prefect(home: Home) -> None:
    """Set Prefect's settings, where the environment sets nothing else."""
    os.environ.update({**prefect_settings(home), **os.environ})


def require_prefect(home: Home) -> None:
    """Set Prefect's settings for a coordinator of remote hospitals.

    Raises:
        ConfigError: the environment does not name Prefect's API.
    """
    if not os.environ.get("PREFECT_API_URL"):
        raise ConfigError(
            "PREFECT_API_URL: expected the address of Prefect's API in the environment, got nothing. "
            "The hospitals' workers ask that API for work."
        )
    set_prefect(home)
    Path(os.environ["PREFECT_HOME"]).mkdir(mode=0o700, parents=True, exist_ok=True)


def set_hospital_worker(state: Path, api: str) -> None:
    """Set the environment of a hospital's worker.

    Args:
        state: the hospital's private folder.
        api: the address of Prefect's API, as the hospital's policy has it.
    """
    settings = {
        **QUIET,
        "PREFECT_LOGGING_LEVEL": "INFO",
        "PREFECT_HOME": str((state / "prefect").resolve()),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_API_SSL_CERT_FILE": os.environ.get("SSL_CERT_FILE", ""),
    }
    os.environ.update({key: value for key, value in settings.items() if value} | os.environ)
    os.environ["PREFECT_API_URL"] = api
