"""Where everything of the coordinator lies: `.wardround/` and `mlruns/` under one folder."""

import sys
from dataclasses import dataclass
from pathlib import Path

from flows.servers.loopback import Server
from flows.servers.mlflow_store import check_store

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # the command line says what went wrong, once
    "PREFECT_CLIENT_MAX_RETRIES": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "GIT_PYTHON_REFRESH": "quiet",
}


@dataclass(frozen=True)
class Home:
    """The coordinator's folder, by default the current one."""

    folder: Path

    @property
    def state(self) -> Path:
        """Everything that is not MLflow's."""
        return self.folder / ".wardround"

    @property
    def runs(self) -> Path:
        """A folder for each run: round records, global models, releases."""
        return self.state / "runs"

    @property
    def public(self) -> Path:
        """The sets of images that the coordinator calls public."""
        return self.folder / "public"

    @property
    def exchange(self) -> str:
        """The exchange of federations on this machine."""
        return str(self.state / "exchange")

    @property
    def coordinator_key(self) -> Path:
        """The coordinator's private key."""
        return self.state / "keys" / "coordinator"

    @property
    def former_keys(self) -> list[str]:
        """The public keys with which the coordinator signed before: `.wardround/keys/former/KEY.pub`."""
        return sorted(path.stem for path in (self.state / "keys" / "former").glob("*.pub"))

    @property
    def prefect(self) -> Server:
        """A Prefect server with its own database.

        Prefect uses a single connection, which its SQLite needs under load, when the database's
        URL contains `:memory:`; a folder of that name makes such a database last.
        """
        database = self.state / "prefect" / ":memory:"
        database.mkdir(parents=True, exist_ok=True)
        return Server(
            folder=self.state / "servers" / "prefect",
            command=[
                sys.executable, "-m", "prefect", "server", "start",
                "--host", "127.0.0.1", "--port", "{port}",
            ],
            health="/api/health",
            environment={
                **self.prefect_environment,
                "PREFECT_API_DATABASE_CONNECTION_URL": (
                    f"sqlite+aiosqlite:///{database.resolve() / 'prefect.db'}"
                ),
            },
        )  # fmt: skip

    @property
    def prefect_environment(self) -> dict[str, str]:
        """What Prefect's client and server need; to be set before Prefect is imported."""
        return {**QUIET, "PREFECT_HOME": str((self.state / "prefect").resolve())}

    @property
    def mlflow(self) -> Server:
        """A lean MLflow server on `mlruns/`; the one process that writes there."""
        return mlflow_server(self.folder / "mlruns", self.state / "servers" / "mlflow")


def mlflow_server(store: Path, folder: Path) -> Server:
    """Return a lean MLflow server, on loopback, that keeps everything in the folder `store`.

    Raises:
        ConfigError: another program's database lies there, or another version's.
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
