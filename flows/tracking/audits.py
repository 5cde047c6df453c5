"""An audit in MLflow: metrics of each line at the audited round, and its files beside the report."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from flows.audits.metrics import global_metrics, site_metrics
from flows.audits.records import AuditRecord, path_of, picture_of, sacro_of
from flows.runs.run import Run, StoreFailed
from flows.tracking.errors import writing
from flows.tracking.metrics import GLOBAL
from flows.tracking.tracking import COORDINATORS, lines_of


def log_audit(run: Run, audit: AuditRecord) -> None:
    """Log an audit; logging it again changes nothing.

    Raises:
        NotAllowed: this account may not write the study's runs.
        StoreFailed: MLflow has no run of this name, or did not store all of it.
    """
    client = MlflowClient()
    with writing(f"the audit of {run.name}", COORDINATORS):
        known = lines_of(client, run)
        if GLOBAL not in known:
            raise StoreFailed(
                f"MLflow has no run of {run.name} yet, as with a new store: "
                f"`wardround relog {run.name}` logs the recorded rounds"
            )
        for name, mlflow_run in known.items():
            metrics = [Metric(*each, audit.at_ms, audit.round) for each in _values(audit, name)]
            client.log_batch(mlflow_run, metrics=metrics)
        for path in (path_of, picture_of, sacro_of):
            _log_file(client, run, known[GLOBAL], path(audit.round))


def _values(audit: AuditRecord, name: str) -> Iterator[tuple[str, float]]:
    values = global_metrics(audit) if name == GLOBAL else site_metrics(audit, name)
    yield from values.items()


def _log_file(client: MlflowClient, run: Run, mlflow_run: str, path: str) -> None:
    """Log a file of the run's folder under the same path; MLflow names it after a local file."""
    folder, _, name = path.rpartition("/")
    with TemporaryDirectory() as temporary:
        copy = Path(temporary) / name
        copy.write_bytes((run.folder / path).read_bytes())
        client.log_artifact(mlflow_run, str(copy), folder)
