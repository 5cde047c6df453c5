"""Checks of MLflow against the records of a run: metrics, tags, texts, pictures, models."""

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml
from mlflow.entities import Run as MlflowRun
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

from flows import served_model
from flows.audits import metrics as audits
from flows.audits.records import audits_of
from flows.decisions import chain
from flows.runs import artifacts
from flows.runs.records import RoundRecord
from flows.runs.run import Run, StoreFailed
from flows.tracking import download, metrics, pictures, registry
from flows.tracking.errors import ERRORS
from flows.tracking.metrics import GLOBAL
from models.files import sha256_of

TOLERANCE = 1e-9
LOG_AGAIN = "`wardround relog` logs what is missing"


def metric_faults(run: Run, records: Sequence[RoundRecord]) -> Iterator[str]:
    """Yield the faults of a run in MLflow: all that differs from its records, one sentence each."""
    client = MlflowClient()
    try:
        yield from _faults(client, run, records)
    except (*ERRORS, StoreFailed) as error:
        yield f"MLflow can't be read: {error}"


def _faults(client: MlflowClient, run: Run, records: Sequence[RoundRecord]) -> Iterator[str]:
    experiment = client.get_experiment_by_name(run.study.name)
    if experiment is None:
        yield f"MLflow has no experiment {run.study.name}; {LOG_AGAIN}"
        return
    found = client.search_runs([experiment.experiment_id], f"tags.`wardround.run` = '{run.name}'")
    by_site = {each.data.tags.get("wardround.site", ""): each for each in found}
    if len(by_site) < len(found) or by_site.keys() - {GLOBAL, *run.description.everybody}:
        yield f"MLflow has more runs of {run.name} than one for each hospital and one for all together"
    for name in (GLOBAL, *sorted(run.description.everybody)):
        if name not in by_site:
            yield f"MLflow has no run of {run.name} for {name}; {LOG_AGAIN}"
            return
        yield from _run_faults(client, by_site[name], run, records, name)
    if by_site[GLOBAL].info.start_time != run.description.started_ms:
        yield f"MLflow's run of {run.name} was begun at another time than run.json states"
    yield from _stored_faults(client, by_site[GLOBAL].info.run_id, run, records)
    for name in sorted(run.description.everybody):
        for path in _every_file(client, by_site[name].info.run_id):
            yield f"MLflow shows {path} of {name}, which the coordinator has not signed"
    decision = by_site[GLOBAL].data.tags.get("wardround.decisions", "")
    if decision and decision not in chain.heads(run):
        yield "MLflow names a decision that is not one of the run's"


def _run_faults(
    client: MlflowClient, line: MlflowRun, run: Run, records: Sequence[RoundRecord], name: str
) -> Iterator[str]:
    """Yield the faults of one hospital's MLflow run, or of the run for all together."""
    if line.data.tags.get("wardround.chain_head") != records[-1].sha256:
        yield (
            f"MLflow's run of {name} names another head of the chain than the newest record, as after "
            f"an interruption; {LOG_AGAIN}"
        )
    yield from _line_faults(client, line, _expected(run, records, name), name)
    yield from _text_faults(line, run, records, name)
    yield from _state_faults(line, run, records[-1], name)


def _stored_faults(
    client: MlflowClient, parent: str, run: Run, records: Sequence[RoundRecord]
) -> Iterator[str]:
    """Yield the faults of records, models and files that MLflow stores for all together."""
    with tempfile.TemporaryDirectory() as folder:
        for record in records:
            yield from _record_faults(client, parent, record, Path(folder))
        for record in records[1:]:
            yield from _model_faults(client, run, record, Path(folder))
        yield from _alias_faults(client, run, records[-1])
        yield from _artifact_faults(client, parent, run, records, Path(folder))


def _expected(run: Run, records: Sequence[RoundRecord], name: str) -> dict[str, dict[int, float]]:
    """Return the expected values by metric and round, from the records."""
    expected: dict[str, dict[int, float]] = {}
    for record in records:
        values = (
            metrics.global_metrics(record, run.description.members(record.round), records[0])
            if name == GLOBAL
            else metrics.site_metrics(
                record, name, run.description.member(name, record.round), records[0]
            )
        )
        for metric, value in values.items():
            expected.setdefault(metric, {})[record.round] = value
    for audit in audits_of(run):
        found = audits.global_metrics(audit) if name == GLOBAL else audits.site_metrics(audit, name)
        for metric, value in found.items():
            expected.setdefault(metric, {})[audit.round] = value
    return expected


def _line_faults(
    client: MlflowClient, line: MlflowRun, expected: Mapping[str, Mapping[int, float]], name: str
) -> Iterator[str]:
    """Yield the faults of a line's metrics: all points, and the newest value."""
    for metric in sorted(line.data.metrics.keys() - expected.keys()):
        yield f"MLflow has the metric {metric} of {name}, which no record has"
    for metric, values in sorted(expected.items()):
        history: dict[int, set[float]] = {}
        for point in client.get_metric_history(line.info.run_id, metric):
            history.setdefault(point.step, set()).add(point.value)
        for round in sorted(values.keys() | history.keys()):
            logged = history.get(round, set())
            value = values.get(round)
            if value is None or not logged or not all(abs(each - value) <= TOLERANCE for each in logged):
                found = ", ".join(f"{each:.6g}" for each in sorted(logged)) or "nothing"
                recorded = "nothing" if value is None else f"{value:.6g}"
                where = f"{metric} of {name} in round {round}"
                yield f"{where}: MLflow has {found}, the record has {recorded}"
        newest, latest = values[max(values)], line.data.metrics.get(metric, math.nan)
        if not abs(latest - newest) <= TOLERANCE:
            yield (
                f"{metric} of {name}: MLflow shows {latest:.6g} as the newest value, the record has "
                f"{newest:.6g}"
            )


def _text_faults(line: MlflowRun, run: Run, records: Sequence[RoundRecord], name: str) -> Iterator[str]:
    """Yield the faults of a line's parameters and tags."""
    tags = metrics.fixed_tags(run, name)
    if name == GLOBAL:
        tags |= metrics.state_tags(run, records[-1])
    for record in records:
        tags |= metrics.caveats(record, name)
    optional = {"wardround.metrics", "wardround.noise", "wardround.plain_releases"}
    notes = set() if name == GLOBAL else {metrics.NOTE}
    for key in sorted(optional | notes | tags.keys()):
        if line.data.tags.get(key) != tags.get(key):
            found = line.data.tags.get(key)
            yield f"In MLflow {name} has {key}={found}, the records have {tags.get(key)}"
    for key, value in metrics.params(run, name).items():
        logged = line.data.params.get(key)
        if logged != value[:MAX_PARAM_VAL_LENGTH]:
            yield f"In MLflow {name} has {key}={logged}, run.json has {value}"


def _state_faults(line: MlflowRun, run: Run, newest: RoundRecord, name: str) -> Iterator[str]:
    """Yield the faults of a line's name and status."""
    if line.info.run_name != metrics.run_name(run, name):
        yield f"MLflow calls the run of {name} {line.info.run_name}, not {metrics.run_name(run, name)}"
    if line.info.status == "FINISHED" and newest.round < run.study.rounds:
        yield f"MLflow calls the run of {name} finished, the newest record is of round {newest.round}"


def _alias_faults(client: MlflowClient, run: Run, record: RoundRecord) -> Iterator[str]:
    """Yield a fault if the alias `candidate` names an older version than a run's newest."""
    name = registry.candidates(run.study.name)
    if record.round > 0 and registry.newest_candidate(client, run) < (
        run.description.started_ms,
        record.round,
    ):
        yield f"the candidate of {name} is no model of a run here, or there is a newer one; {LOG_AGAIN}"


def _record_faults(
    client: MlflowClient, parent: str, record: RoundRecord, folder: Path
) -> Iterator[str]:
    name = _text_path(record)
    found = _sha256_at(client, parent, name, folder)
    if not found:
        yield f"MLflow lacks {name}"
    elif found != record.sha256:
        yield f"MLflow's {name} is not the record"


def _artifact_faults(
    client: MlflowClient, parent: str, run: Run, records: Sequence[RoundRecord], folder: Path
) -> Iterator[str]:
    """Yield the faults of reports, pictures and tables: missing, changed or unsigned ones."""
    signed = artifacts.signed_for(run)
    expected = {path: sha for path, sha in signed.items() if not path.startswith(artifacts.VERSIONS)}
    if artifacts.REPORT not in expected:
        yield f"the coordinator has not signed {artifacts.REPORT}"
    if run.study.task.kind == "segmentation":
        for record in records:
            if not pictures.is_whole(pictures.of_round(expected, record)):
                yield f"the coordinator has not signed a picture of round {record.round}"
    compared = [record for record in records if record.cross_site]
    if compared:
        expected[metrics.CROSS_SITE] = sha256_of(metrics.cross_site_csv(compared[-1]).encode())
    texts = {_text_path(record) for record in records}
    for path in sorted(set(_every_file(client, parent)) - expected.keys() - texts):
        yield f"MLflow shows {path}, which the coordinator has not signed"
    for path, sha256 in sorted(expected.items()):
        if _sha256_at(client, parent, path, folder) != sha256:
            yield f"MLflow lacks {path}, or shows another one than the coordinator signed"


def _text_path(record: RoundRecord) -> str:
    return f"rounds/round-{record.round:03d}.json"


def _every_file(client: MlflowClient, mlflow_run: str, folder: str | None = None) -> Iterator[str]:
    for found in client.list_artifacts(mlflow_run, folder):
        if found.is_dir:
            yield from _every_file(client, mlflow_run, found.path)
        else:
            yield found.path


def _sha256_at(client: MlflowClient, parent: str, path: str, folder: Path) -> str:
    try:
        return sha256_of(Path(client.download_artifacts(parent, path, str(folder))).read_bytes())
    except (*ERRORS, OSError):
        return ""


def _model_faults(client: MlflowClient, run: Run, record: RoundRecord, folder: Path) -> Iterator[str]:
    found = registry.candidates_of(client, run, record.round)
    if not found:
        yield f"MLflow has no candidate of round {record.round}; {LOG_AGAIN}"
        return
    version, where = found[0], f"round {record.round} of {run.name}"
    for other in found[1:]:
        yield f"versions {version.version} and {other.version} of {other.name} are both of {where}"
    tags = registry.tags_of(run, record)
    for key in sorted({*tags, *(key for key in version.tags if key.startswith("wardround."))}):
        if version.tags.get(key) != tags.get(key):
            yield f"the candidate of round {record.round} has another {key} than the record"
    into = folder / f"{record.round:03d}"
    into.mkdir()
    yield from files_faults(run, record, registry.candidates(run.study.name), str(version.version), into)


def files_faults(
    run: Run, record: RoundRecord, name: str, version: str, into: Path, report_sha256: str = ""
) -> Iterator[str]:
    """Yield the faults of a version's files against the record's model.

    Args:
        into: an empty folder.
        report_sha256: of the report that has to be beside the files, empty where none has to be.
    """
    where = f"version {version} of {name}, round {record.round},"
    if registry.described(name, version):
        yield f"{where} has a description, which nobody has signed"
    try:
        files = download.fetch(name, version, into).folder
        model = download.model_in(files)
        weights = (model / served_model.WEIGHTS).read_bytes()
        described = (model / served_model.DESCRIPTION).read_bytes()
        flavour = yaml.safe_load((files / "MLmodel").read_text())["flavors"]
        python = dict(flavour.get("python_function", {}))
    except (LookupError, OSError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
        yield f"{where} can't be read: {error}"
        return
    page = files / artifacts.REPORT
    if (sha256_of(page.read_bytes()) if page.exists() else "") != report_sha256:
        yield f"{where} has another report than was released with it"
    if sha256_of(weights) != record.model_sha256:
        yield f"{where} has other weights than the record's"
    if described != served_model.description(run.study, record.model_sha256):
        yield f"{where} describes another study"
    if model != files / str(python.get("data")) or len(list(files.rglob(served_model.DESCRIPTION))) > 1:
        yield f"{where} loads other weights than those that were checked"
    is_ours = python.get("loader_module") == "flows.served_model" and not python.get("code")
    if set(flavour) != {"python_function"} or not is_ours:
        yield f"{where} loads other code than what is installed"
    signed = artifacts.signed_for(run).get(f"{artifacts.VERSIONS}/{name}/{version}")
    if signed != sha256_of(registry.listing(files)):
        yield f"{where} has other files than the coordinator has signed"
