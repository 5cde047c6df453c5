"""Where MLflow says something else than the records of a run: the numbers, the texts, the models."""

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml
from mlflow.entities import Run as MlflowRun
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

from flows import served_model
from flows.decisions import chain
from flows.runs import artifacts
from flows.runs.records import RoundRecord
from flows.runs.run import Run, StoreFailed
from flows.tracking import metrics, pictures, registry
from flows.tracking.errors import ERRORS
from flows.tracking.metrics import GLOBAL
from models.files import sha256_of

TOLERANCE = 1e-9
LOG_AGAIN = "`wardround relog` tells MLflow what it lacks"


def differences(run: Run, records: Sequence[RoundRecord]) -> Iterator[str]:
    """Yield what in MLflow does not fit a run's records, one sentence each."""
    client = MlflowClient()
    try:
        yield from _differences(client, run, records)
    except (*ERRORS, StoreFailed) as error:
        yield f"MLflow can't be read: {error}"


def _differences(client: MlflowClient, run: Run, records: Sequence[RoundRecord]) -> Iterator[str]:
    experiment = client.get_experiment_by_name(run.study.name)
    if experiment is None:
        yield f"MLflow has no experiment {run.study.name}; {LOG_AGAIN}"
        return
    found = client.search_runs([experiment.experiment_id], f"tags.`wardround.run` = '{run.name}'")
    by_site = {each.data.tags.get("wardround.site", ""): each for each in found}
    if len(by_site) < len(found) or by_site.keys() - {GLOBAL, *run.description.everybody}:
        yield f"MLflow has another run of {run.name} than one for each hospital and one for all"
    for name in (GLOBAL, *sorted(run.description.everybody)):
        if name not in by_site:
            yield f"MLflow has no run of {run.name} for {name}; {LOG_AGAIN}"
            return
        head = by_site[name].data.tags.get("wardround.chain_head")
        if head != records[-1].sha256:
            yield (
                f"MLflow's run of {name} names another head of the chain than the newest record, as "
                f"after an interruption; {LOG_AGAIN}"
            )
        yield from _of_line(client, by_site[name], _expected(run, records, name), name)
        yield from _of_words(by_site[name], run, records, name)
        yield from _of_state(by_site[name], run, records[-1], name)
    if by_site[GLOBAL].info.start_time != run.description.started_ms:
        yield f"MLflow says of {run.name} that it was begun at another time than run.json"
    parent = by_site[GLOBAL].info.run_id
    with tempfile.TemporaryDirectory() as folder:
        for record in records:
            yield from _of_text(client, parent, record, Path(folder))
        for record in records[1:]:
            yield from _of_model(client, run, record, Path(folder))
        yield from _of_alias(client, run, records[-1])
        yield from _of_shown(client, parent, run, records, Path(folder))
    for name in sorted(run.description.everybody):
        for path in _every_file(client, by_site[name].info.run_id):
            yield f"MLflow shows {path} of {name}, which the coordinator has not signed for"
    told = by_site[GLOBAL].data.tags.get("wardround.decisions", "")
    if told and told not in chain.heads(run):
        yield "MLflow names a decision that is not among the run's"


def _expected(run: Run, records: Sequence[RoundRecord], name: str) -> dict[str, dict[int, float]]:
    """Return by metric and round what the records say."""
    expected: dict[str, dict[int, float]] = {}
    for record in records:
        values = (
            metrics.global_metrics(record, run.description.members(record.round))
            if name == GLOBAL
            else metrics.site_metrics(record, name, run.description.member(name, record.round))
        )
        for metric, value in values.items():
            expected.setdefault(metric, {})[record.round] = value
    return expected


def _of_line(
    client: MlflowClient, line: MlflowRun, expected: Mapping[str, Mapping[int, float]], name: str
) -> Iterator[str]:
    for metric in sorted(line.data.metrics.keys() - expected.keys()):
        yield f"MLflow has the metric {metric} of {name}, which no record has"
    for metric, values in sorted(expected.items()):
        history: dict[int, set[float]] = {}
        for point in client.get_metric_history(line.info.run_id, metric):
            history.setdefault(point.step, set()).add(point.value)
        for round in sorted(values.keys() | history.keys()):
            told = history.get(round, set())
            due = values.get(round)
            if due is None or not told or not all(abs(each - due) <= TOLERANCE for each in told):
                says = ", ".join(f"{each:.6g}" for each in sorted(told)) or "nothing"
                record = "nothing" if due is None else f"{due:.6g}"
                yield f"{metric} of {name} in round {round}: MLflow says {says}, the record {record}"
        newest, latest = values[max(values)], line.data.metrics.get(metric, math.nan)
        if not abs(latest - newest) <= TOLERANCE:
            yield f"{metric} of {name}: MLflow shows {latest:.6g} as the newest, the record {newest:.6g}"


def _of_words(line: MlflowRun, run: Run, records: Sequence[RoundRecord], name: str) -> Iterator[str]:
    """Yield where a line's parameters and tags are not the run's."""
    tags = metrics.fixed_tags(run, name)
    if name == GLOBAL:
        tags |= metrics.state_tags(run, records[-1])
    for record in records:
        tags |= metrics.caveats(record, name)
    may_say = {"wardround.metrics", "wardround.noise", "wardround.plain_releases"}
    notes = set() if name == GLOBAL else {metrics.NOTE}
    for key in sorted(may_say | notes | tags.keys()):
        if line.data.tags.get(key) != tags.get(key):
            yield f"MLflow says of {name} {key}={line.data.tags.get(key)}, the records {tags.get(key)}"
    for key, due in metrics.params(run, name).items():
        told = line.data.params.get(key)
        if told != due[:MAX_PARAM_VAL_LENGTH]:
            yield f"MLflow says of {name} {key}={told}, run.json {due}"


def _of_state(line: MlflowRun, run: Run, newest: RoundRecord, name: str) -> Iterator[str]:
    """Yield where a line is called otherwise, or finished before its time."""
    if line.info.run_name != metrics.run_name(run, name):
        yield f"MLflow calls the run of {name} {line.info.run_name}, not {metrics.run_name(run, name)}"
    if line.info.status == "FINISHED" and newest.round < run.study.rounds:
        yield f"MLflow calls the run of {name} finished, the newest record is of round {newest.round}"


def _of_alias(client: MlflowClient, run: Run, record: RoundRecord) -> Iterator[str]:
    """Yield where `candidate` names an older version than a run's newest."""
    name = registry.candidates(run.study.name)
    if record.round > 0 and registry.newest_candidate(client, run) < (
        run.description.started_ms,
        record.round,
    ):
        yield f"the candidate of {name} is no model of a run here, or there is a newer one; {LOG_AGAIN}"


def _of_text(client: MlflowClient, parent: str, record: RoundRecord, folder: Path) -> Iterator[str]:
    name = _text_path(record)
    found = _sha256_at(client, parent, name, folder)
    if not found:
        yield f"MLflow lacks {name}"
    elif found != record.sha256:
        yield f"MLflow's {name} is not the record"


def _of_shown(
    client: MlflowClient, parent: str, run: Run, records: Sequence[RoundRecord], folder: Path
) -> Iterator[str]:
    """Yield where a report, a picture or a table that people look at is not what was shown to them."""
    signed = artifacts.signed_for(run)
    due = {path: sha for path, sha in signed.items() if not path.startswith(artifacts.VERSIONS)}
    if artifacts.REPORT not in due:
        yield f"the coordinator has not signed for {artifacts.REPORT}"
    if run.study.task.kind == "segmentation":
        for record in records:
            if not pictures.is_whole(pictures.of_round(due, record)):
                yield f"the coordinator has not signed for a picture of round {record.round}"
    compared = [record for record in records if record.cross_site]
    if compared:
        due[metrics.CROSS_SITE] = sha256_of(metrics.cross_site_csv(compared[-1]).encode())
    texts = {_text_path(record) for record in records}
    for path in sorted(set(_every_file(client, parent)) - due.keys() - texts):
        yield f"MLflow shows {path}, which the coordinator has not signed for"
    for path, sha256 in sorted(due.items()):
        if _sha256_at(client, parent, path, folder) != sha256:
            yield f"MLflow lacks {path}, or shows another one than the coordinator"


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


def _of_model(client: MlflowClient, run: Run, record: RoundRecord, folder: Path) -> Iterator[str]:
    found = registry.candidates_of(client, run, record.round)
    if not found:
        yield f"MLflow has no candidate of round {record.round}; {LOG_AGAIN}"
        return
    version, where = found[0], f"round {record.round} of {run.name}"
    for other in found[1:]:
        yield f"versions {version.version} and {other.version} of {other.name} are both of {where}"
    due = registry.tags_of(run, record)
    for key in sorted({*due, *(key for key in version.tags if key.startswith("wardround."))}):
        if version.tags.get(key) != due.get(key):
            yield f"the candidate of round {record.round} has another {key} than the record"
    into = folder / f"{record.round:03d}"
    into.mkdir()
    yield from files_faults(run, record, registry.candidates(run.study.name), str(version.version), into)


def files_faults(
    run: Run, record: RoundRecord, name: str, version: str, into: Path, report_sha256: str = ""
) -> Iterator[str]:
    """Yield where a version's files are not what the record's model is made of.

    Args:
        into: an empty folder.
        report_sha256: of the report beside the files, where one has to be there.
    """
    where = f"version {version} of {name}, round {record.round},"
    if registry.described(name, version):
        yield f"{where} has a description, which nobody has signed"
    try:
        files = registry.fetch(name, version, into).folder
        model = registry.model_in(files)
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
        yield f"{where} loads other weights than those that were looked at"
    is_ours = python.get("loader_module") == "flows.served_model" and not python.get("code")
    if set(flavour) != {"python_function"} or not is_ours:
        yield f"{where} loads other code than what is installed"
    signed = artifacts.signed_for(run).get(f"{artifacts.VERSIONS}/{name}/{version}")
    if signed != sha256_of(registry.listing(files)):
        yield f"{where} has other files than the coordinator has signed for"
