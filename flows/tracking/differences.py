"""Where MLflow says something else than the records of a run: the numbers, the texts, the models."""

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

from flows import decisions, served_model
from flows.run import RoundRecord, Run, runs_of
from flows.tracking import lines, registry
from flows.tracking.lines import GLOBAL
from models.checkpoints import sha256_of

TOLERANCE = 1e-9


def differences(run: Run, records: Sequence[RoundRecord]) -> Iterator[str]:
    """Yield what in MLflow does not fit a run's records, one sentence each."""
    client = MlflowClient()
    try:
        yield from _differences(client, run, records)
    except MlflowException as error:
        yield f"MLflow can't be read: {error}"


def foreign_champion(run: Run) -> Iterator[str]:
    """Yield a sentence where the champion of a run's study was released by no run that lies here.

    It says nothing of this run, whose own release it does not hinder.
    """
    try:
        champion = registry.champion(run.study.name)
    except MlflowException as error:
        yield f"MLflow can't be read: {error}"
        return
    of_study = [each for each in runs_of(run.home) if each.study.name == run.study.name]
    if champion and champion not in {number for each in of_study for number in _released(each)}:
        yield f"version {champion} is the champion, and no decision that stands here has released it"


def _differences(client: MlflowClient, run: Run, records: Sequence[RoundRecord]) -> Iterator[str]:
    experiment = client.get_experiment_by_name(run.study.name)
    if experiment is None:
        yield f"MLflow has no experiment {run.study.name}"
        return
    found = client.search_runs([experiment.experiment_id], f"tags.`wardround.run` = '{run.name}'")
    by_site = {each.data.tags.get("wardround.site", ""): each for each in found}
    if len(by_site) < len(found) or by_site.keys() - {GLOBAL, *run.description.everybody}:
        yield f"MLflow has another run of {run.name} than one for each hospital and one for all"
    for name in (GLOBAL, *sorted(run.description.everybody)):
        if name not in by_site:
            yield f"MLflow has no run of {run.name} for {name}"
            return
        yield from _of_line(client, by_site[name], _expected(run, records, name), name)
        yield from _of_words(by_site[name], run, records, name)
        head = by_site[name].data.tags.get("wardround.chain_head")
        if head != records[-1].sha256:
            yield f"MLflow's run of {name} names another head of the chain than the newest record"
    parent = by_site[GLOBAL].info.run_id
    with tempfile.TemporaryDirectory() as folder:
        for record in records:
            yield from _of_text(client, parent, record, Path(folder))
        for record in records[1:]:
            yield from _of_model(client, run, record, Path(folder))
        yield from _of_alias(client, run, records[-1])
        yield from _of_approved(client, run, {r.model_sha256 for r in records}, Path(folder))
    told = by_site[GLOBAL].data.tags.get("wardround.decisions", "")
    if told and told not in decisions.heads(run):
        yield "MLflow names a decision that is not among the run's"


def _expected(run: Run, records: Sequence[RoundRecord], name: str) -> dict[str, dict[int, float]]:
    """Return by metric and round what the records say."""
    expected: dict[str, dict[int, float]] = {}
    for record in records:
        values = (
            lines.of_everybody(record, run.description.members(record.round))
            if name == GLOBAL
            else lines.of_site(record, name, run.description.member(name, record.round))
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
                shown = ", ".join(f"{each:.6g}" for each in sorted(told)) or "nothing"
                record = "nothing" if due is None else f"{due:.6g}"
                yield f"{metric} of {name} in round {round}: MLflow says {shown}, the record {record}"
        newest, shown = values[max(values)], line.data.metrics.get(metric, math.nan)
        if not abs(shown - newest) <= TOLERANCE:
            yield f"{metric} of {name}: MLflow shows {shown:.6g} as the newest, the record {newest:.6g}"


def _of_words(line: MlflowRun, run: Run, records: Sequence[RoundRecord], name: str) -> Iterator[str]:
    """Yield where a line's parameters and tags are not the run's."""
    tags = lines.fixed_tags(run, name)
    for record in records:
        tags |= lines.caveats(record, name)
    for key in sorted({"wardround.metrics", "wardround.noise", "wardround.plain_releases", *tags}):
        if line.data.tags.get(key) != tags.get(key):
            yield f"MLflow says of {name} {key}={line.data.tags.get(key)}, the records {tags.get(key)}"
    for key, due in lines.params(run, name).items():
        told = line.data.params.get(key)
        if told != due[:MAX_PARAM_VAL_LENGTH]:
            yield f"MLflow says of {name} {key}={told}, run.json {due}"


def _of_alias(client: MlflowClient, run: Run, record: RoundRecord) -> Iterator[str]:
    """Yield where `candidate` names an older version than a run's newest."""
    told, name = registry.newest_candidate(client, run.study.name), registry.candidates(run.study.name)
    if record.round > 0 and told < (run.name, record.round):
        yield f"the candidate of {name} is of round {told[1]} of {told[0]}; there is a newer one"


def _of_text(client: MlflowClient, parent: str, record: RoundRecord, folder: Path) -> Iterator[str]:
    name = f"rounds/round-{record.round:03d}.json"
    try:
        data = Path(client.download_artifacts(parent, name, str(folder))).read_bytes()
    except (MlflowException, OSError):
        yield f"MLflow lacks {name}"
        return
    if data != record.data:
        yield f"MLflow's {name} is not the record"


def _of_approved(client: MlflowClient, run: Run, models: set[str], folder: Path) -> Iterator[str]:
    """Yield where what is released in MLflow is not what was decided.

    A version that no decision names and that is not the champion is what an interrupted release left.
    """
    outcomes = _outcomes(run)
    champion, released = registry.champion(run.study.name), set(_released(run))
    for version in registry.approved_versions(client, run, outcomes):
        number = str(version.version)
        outcome = outcomes.get(number)
        sha256 = version.tags.get("wardround.sha256", "")
        if outcome is None and number != champion and sha256 in models:
            continue
        is_decided = outcome is not None and outcome.terms.model_sha256 == sha256 and sha256 in models
        if outcome is None or not is_decided or version.tags.get("wardround.run") != run.name:
            yield f"version {number} of the approved models is none that was decided"
        elif number == champion and number not in released:
            yield f"version {number} is the champion, and was taken back"
        else:
            into = folder / f"approved-{number}"
            into.mkdir()
            record = run.records()[outcome.terms.round]
            yield from _of_files(run, record, registry.approved(run.study.name), number, into)


def _outcomes(run: Run) -> dict[str, decisions.Outcome]:
    """Return by version what became of it last."""
    return {d.outcome.version: d.outcome for d in decisions.decisions(run) if d.outcome}


def _released(run: Run) -> Iterator[str]:
    """Yield the versions that a run's decisions have released and nobody has objected to since."""
    known = decisions.decisions(run)
    for version, outcome in _outcomes(run).items():
        if outcome.what == "released" and not decisions.objections(known, outcome.terms):
            yield version


def _of_model(client: MlflowClient, run: Run, record: RoundRecord, folder: Path) -> Iterator[str]:
    version = registry.candidate(client, run, record.round)
    if version is None:
        yield f"MLflow has no candidate of round {record.round}"
        return
    for key, due in registry.tags_of(run, record).items():
        if version.tags.get(key) != due:
            yield f"the candidate of round {record.round} has another {key} than the record"
    into = folder / f"{record.round:03d}"
    into.mkdir()
    yield from _of_files(run, record, registry.candidates(run.study.name), str(version.version), into)


def _of_files(run: Run, record: RoundRecord, name: str, version: str, into: Path) -> Iterator[str]:
    """Yield where a version's files are not what the record's model is made of."""
    where = f"version {version} of {name}, round {record.round},"
    try:
        files = registry.fetch(name, version, into)
        model = registry.model_in(files)
        weights = (model / served_model.WEIGHTS).read_bytes()
        described = (model / served_model.DESCRIPTION).read_bytes()
        flavour = yaml.safe_load((files / "MLmodel").read_text())["flavors"]
        python = dict(flavour.get("python_function", {}))
    except (LookupError, OSError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
        yield f"{where} can't be read: {error}"
        return
    if sha256_of(weights) != record.model_sha256:
        yield f"{where} has other weights than the record's"
    if described != served_model.description(run.study, record.model_sha256):
        yield f"{where} describes another study"
    if model != files / str(python.get("data")) or len(list(files.rglob(served_model.DESCRIPTION))) > 1:
        yield f"{where} loads other weights than those that were looked at"
    is_ours = python.get("loader_module") == "flows.served_model" and not python.get("code")
    if set(flavour) != {"python_function"} or not is_ours:
        yield f"{where} loads other code than what is installed"
