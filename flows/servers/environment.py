"""The Prefect and MLflow servers of a coordinator, and the one place that sets their environment.

Prefect and MLflow read their environment when they are imported: import them only after a call of the
functions of this module.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flows.runs.paths import Home
from flows.servers.loopback import Server, ServerError, running
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


def prefect_settings(home: Home) -> dict[str, str]:
    """Return the settings of Prefect's client and server."""
    return {**QUIET, "PREFECT_HOME": str((home.state / "prefect").resolve())}


def prefect_server(home: Home) -> Server:
    """Return a Prefect server on loopback with its own database.

    Prefect uses a single connection, which its SQLite needs under load, when the database's URL contains
    `:memory:`; a folder of that name makes such a database last.
    """
    database = home.state / "prefect" / ":memory:"
    database.mkdir(parents=True, exist_ok=True)
    url = f"sqlite+aiosqlite:///{database.resolve() / 'prefect.db'}"
    return Server(
        folder=home.state / "servers" / "prefect",
        command=[
            sys.executable, "-m", "prefect", "server", "start",
            "--host", "127.0.0.1", "--port", "{port}",
        ],
        health="/api/health",
        environment={**prefect_settings(home), "PREFECT_API_DATABASE_CONNECTION_URL": url},
    )  # fmt: skip


def mlflow_server(home: Home) -> Server:
    """Return the lean MLflow server of `mlruns/`; the one process that writes there."""
    return store_server(home.folder / "mlruns", home.state / "servers" / "mlflow")


def store_server(store: Path, folder: Path) -> Server:
    """Return a lean MLflow server, on loopback, that stores everything in the folder `store`.

    Raises:
        ConfigError: the folder has another program's database, or another version's.
    """
    store.mkdir(parents=True, exist_ok=True)
    check_store(store / "mlflow.db")
    database = f"sqlite:///{(store / 'mlflow.db').resolve()}"
    upgrade = [sys.executable, "-m", "mlflow", "db", "upgrade", database]
    return Server(
        folder=folder,
        command=[
            sys.executable, "-m", "mlflow", "server", "--app-name", "wardround", "--workers", "1",
            "--host", "127.0.0.1", "--port", "{port}",
            "--backend-store-uri", database,
            "--artifacts-destination", str((store / "artifacts").resolve()),
        ],
        health="/health",
        environment=QUIET,
        prepare=[] if (store / "mlflow.db").exists() else [upgrade],
    )  # fmt: skip


@contextmanager
def own_servers(home: Home) -> Iterator[None]:
    """Run this home's own Prefect and MLflow servers, whatever the environment names."""
    os.environ.update(prefect_settings(home))
    with _side_by_side([prefect_server(home), mlflow_server(home)]) as (prefect, mlflow):
        os.environ["PREFECT_API_URL"] = f"{prefect}/api"
        os.environ["MLFLOW_TRACKING_URI"] = mlflow
        yield


@contextmanager
def _side_by_side(servers: Sequence[Server]) -> Iterator[list[str]]:
    """Start servers side by side, yield their URLs, and leave them together."""
    with ExitStack() as stack, ThreadPoolExecutor(len(servers)) as threads:
        started = [threads.submit(stack.enter_context, running(server)) for server in servers]
        yield [future.result() for future in started]


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
