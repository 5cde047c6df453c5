"""A run's experiment, parent run and child runs in MLflow; this package alone calls MLflow's API.

Each study has one experiment, each training one parent run (the GLOBAL line), each hospital one child
run. The step is the round, with a baseline at 0. Everything that is logged comes from a round's record,
with the record's own time, so logging it again after a crash changes nothing.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from types import MappingProxyType, TracebackType

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.entities import Run as Line
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import MAX_PARAMS_TAGS_PER_BATCH

from flows.audits import metrics as audits
from flows.audits.records import AuditRecord, path_of, picture_of, sacro_of
from flows.runs import artifacts
from flows.runs.records import RoundRecord
from flows.runs.run import NotAllowed, Run, StoreFailed
from flows.tracking import metrics as lines
from flows.tracking import pictures, registry, views
from flows.tracking.errors import reading, writing
from flows.tracking.metrics import GLOBAL
from sites.yaml_files import ConfigError

COORDINATORS = "the coordinator's"
RUNNING = "RUNNING"
HEAD = "wardround.chain_head"
"""The tag of a line with the head of the chain up to the newest round that is logged."""
COORDINATOR = "wardround.coordinator"
"""The tag of a study's experiment with the public key of the coordinator whose runs it holds."""


def attach_pages(run: Run, pages: Mapping[str, bytes]) -> None:
    """Attach a run's report and papers to its parent run, in place of earlier ones; log the decisions.

    The caller holds `artifact_lock` from before they were made, so no newer ones are overwritten.

    Args:
        pages: HTML files by their path among the run's artifacts.

    Raises:
        NotAllowed: this account may not write the study's runs.
        StoreFailed: MLflow has not stored all of it.
    """
    client = MlflowClient()
    with writing(f"the report of {run.name}", COORDINATORS):
        experiment = client.get_experiment_by_name(run.study.name)
        parent = _found(client, experiment.experiment_id, run, GLOBAL) if experiment else None
        if parent is None:
            raise StoreFailed(
                f"MLflow has no run of {run.name} yet, as with a new store: "
                f"`wardround relog {run.name}` logs the recorded rounds"
            )
        for path, page in pages.items():
            client.log_text(parent, page.decode(), path)
            artifacts.keep(run, path, page)
        for key, value in lines.decided_tags(run).items():
            client.set_tag(parent, key, value)


def log_audit(run: Run, audit: AuditRecord) -> None:
    """Log an audit's metrics at its round, and its files; a second call changes nothing.

    The caller holds `artifact_lock`.

    Raises:
        NotAllowed: this account may not write the study's runs.
        StoreFailed: MLflow has no run of this name, or did not store all of it.
    """
    client = MlflowClient()
    with writing(f"the audit of {run.name}", COORDINATORS):
        experiment = client.get_experiment_by_name(run.study.name)
        known = _lines(client, experiment.experiment_id, run) if experiment else {}
        if GLOBAL not in known:
            raise StoreFailed(
                f"MLflow has no run of {run.name} yet, as with a new store: "
                f"`wardround relog {run.name}` logs the recorded rounds"
            )
        for name, line in known.items():
            values = audits.global_metrics(audit) if name == GLOBAL else audits.site_metrics(audit, name)
            metrics = [Metric(*each, audit.at_ms, audit.round) for each in values.items()]
            client.log_batch(line.info.run_id, metrics=metrics)
        for path in (path_of(audit.round), picture_of(audit.round), sacro_of(audit.round)):
            folder = path.rpartition("/")[0]
            client.log_artifact(known[GLOBAL].info.run_id, str(run.folder / path), folder)


def page_id(run: Run) -> str | None:
    """Return the id of a run's page in MLflow, None where it has none yet."""
    client = MlflowClient()
    experiment = client.get_experiment_by_name(run.study.name)
    return _found(client, experiment.experiment_id, run, GLOBAL) if experiment else None


def page_tags(run: Run) -> Mapping[str, str]:
    """Return the tags of a run's page, empty where it has no page yet."""
    parent = page_id(run)
    return dict(MlflowClient().get_run(parent).data.tags) if parent else {}


def check_free(run: Run) -> None:
    """Check, without a write, that this coordinator may make or use the experiment of a run's study.

    Raises:
        ConfigError: it is another coordinator's.
        NotAllowed: this account may not read it.
        StoreFailed: MLflow can't be reached.
    """
    client = MlflowClient()
    with writing(f"the experiment of {run.study.name}", COORDINATORS):
        experiment = client.get_experiment_by_name(run.study.name)
        if experiment is not None:
            _check_ours(run, experiment.tags.get(COORDINATOR, ""))


def _check_ours(run: Run, key: str) -> None:
    if key and key not in (run.public_key, *run.home.former_keys):
        raise ConfigError(
            f"{run.study.name}: expected an experiment of this coordinator's in MLflow, got one of the "
            f"coordinator with the public key {key}. Give the study another name, or use another "
            f"MLflow for it. A former key of your own belongs in {run.home.state / 'keys' / 'former'}."
        )


def _claimed(run: Run) -> str:
    """Return the id of the experiment of a run's study; make it and claim it for this key if needed."""
    client = MlflowClient()
    with writing(f"the experiment of {run.study.name}", COORDINATORS):
        experiment = views.experiment_of(client, run.study)
        key = client.get_experiment(experiment).tags.get(COORDINATOR, "")
        _check_ours(run, key)
        if key != run.public_key:
            client.set_experiment_tag(experiment, COORDINATOR, run.public_key)
    return experiment


class Tracking(AbstractContextManager["Tracking"]):
    """A run's experiment, parent run and child runs in MLflow, made on first use.

    Each write raises `StoreFailed` where MLflow has not stored all of it, as with a full disk, and
    `NotAllowed` where this account may not write. The constructor raises as `check_free` does.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._client, self._experiment = MlflowClient(), _claimed(run)
        with writing(f"the start of {run.name}", COORDINATORS):
            known = _lines(self._client, self._experiment, run)
            self._parent = self._mlflow_run(GLOBAL, None, known)
            self._children = {
                site: self._mlflow_run(site, self._parent, known)
                for site in sorted(run.description.everybody)
            }
            self._ended = [line.info.run_id for line in known.values() if line.info.status != RUNNING]
            if run.is_newest:
                views.show(self._client, self._experiment, run, self._parent)

    def __enter__(self) -> "Tracking":
        with writing(f"the status of {self._run.name}", COORDINATORS):
            for mlflow_run in self._ended:
                self._client.update_run(mlflow_run, status=RUNNING)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        is_whole = error is None and len(self._run.records()) > self._run.study.rounds
        status = "FINISHED" if is_whole else "FAILED"
        # the first error is the one to report, also if MLflow itself fails
        with (
            suppress(*(() if error is None else (StoreFailed, NotAllowed))),
            writing(f"the end of {self._run.name}", COORDINATORS),
        ):
            for mlflow_run in self._all_runs():
                self._client.set_terminated(mlflow_run, status)

    @property
    def page(self) -> str:
        """The address of the run's page in MLflow's UI, as far as this process knows the server's."""
        return f"{mlflow.get_tracking_uri()}/#/experiments/{self._experiment}/runs/{self._parent}"

    def follow(self, run: Run) -> None:
        """Continue with a run's present members."""
        self._run = run
        with writing(f"the members of {run.name}", COORDINATORS):
            for site in sorted(run.description.participants.keys() - self._children.keys()):
                known = _lines(self._client, self._experiment, run, site)
                self._children[site] = self._mlflow_run(site, self._parent, known)
                self._client.set_tag(self._children[site], HEAD, run.head)

    def unlogged(self, records: Sequence[RoundRecord]) -> Sequence[RoundRecord]:
        """Return the records that MLflow may lack: from the one that it names on."""
        with reading(f"the newest logged round of {self._run.name}"):
            logged = self._client.get_run(self._parent).data.tags.get(HEAD)
        heads = [record.sha256 for record in records]
        return records[heads.index(logged) :] if logged in heads else records

    def log(self, record: RoundRecord) -> None:
        """Log a round; logging it again changes nothing.

        The chain's head is written last, and to the parent after the children: a parent with a round's
        head has the whole round.
        """
        with writing(f"round {record.round}, which is recorded", COORDINATORS):
            self._log_round(record)

    def _log_round(self, record: RoundRecord) -> None:
        start = self._run.records()[0]
        for site in self._children:
            self._log_site(site, record, start)
        members = self._run.description.members(record.round)
        self._log(self._parent, record, lines.global_metrics(record, members, start))
        self._client.log_text(
            self._parent, record.data.decode(), f"rounds/round-{record.round:03d}.json"
        )
        pictures.log_picture(self._client, self._run, record, self._parent)
        if self._run.study.task.kind == "segmentation" and self._run.is_newest:
            views.show_pictures(self._client, self._experiment, self._run, record.round)
        if record.cross_site:
            self._client.log_text(self._parent, lines.cross_site_csv(record), lines.CROSS_SITE)
        if record.round > 0:
            registry.register(self._client, self._run, record, self._parent)
        tags = lines.state_tags(self._run, record)
        self._log(self._parent, record, {}, {**tags, HEAD: record.sha256})

    def _log_site(self, site: str, record: RoundRecord, start: RoundRecord) -> None:
        hospital = self._run.description.member(site, record.round)
        values = lines.site_metrics(record, site, hospital, start)
        tags = lines.caveats(record, site)
        self._log(self._children[site], record, values, {**tags, HEAD: record.sha256})

    def _log(
        self,
        mlflow_run: str,
        record: RoundRecord,
        values: Mapping[str, float],
        tags: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Log metrics, then tags, of a line after a round in one request."""
        at = (record.finished_ms, record.round)
        metrics = [Metric(name, value, *at) for name, value in values.items()]
        self._client.log_batch(
            mlflow_run, metrics=metrics, tags=[RunTag(key, value) for key, value in tags.items()]
        )

    def _mlflow_run(self, site: str, parent: str | None, known: Mapping[str, Line]) -> str:
        line = known.get(site) or self._created(site, parent)
        self._complete(line, site)
        return str(line.info.run_id)

    def _created(self, site: str, parent: str | None) -> Line:
        run = self._run
        tags = lines.fixed_tags(run, site)
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        return self._client.create_run(
            self._experiment,
            start_time=run.description.started_ms,
            tags=tags,
            run_name=lines.run_name(run, site),
        )

    def _complete(self, known: Line, site: str) -> None:
        """Log a line's name, tags and parameters, as far as they are missing or wrong."""
        mlflow_run, name = known.info.run_id, lines.run_name(self._run, site)
        if known.info.run_name != name:
            self._client.update_run(mlflow_run, name=name)
        for key, value in lines.fixed_tags(self._run, site).items():
            if known.data.tags.get(key) != value:
                self._client.set_tag(mlflow_run, key, value)
        logged = known.data.params
        versions = lines.versions() if site == GLOBAL else {}
        values = {**lines.params(self._run, site), **versions}
        params = [Param(name, value) for name, value in values.items() if name not in logged]
        for first in range(0, len(params), MAX_PARAMS_TAGS_PER_BATCH):
            batch = params[first : first + MAX_PARAMS_TAGS_PER_BATCH]
            self._client.log_batch(mlflow_run, params=batch)

    def _all_runs(self) -> list[str]:
        return [self._parent, *self._children.values()]


def _lines(client: MlflowClient, experiment: str, run: Run, site: str = "") -> dict[str, Line]:
    """Return the MLflow runs of a run by the hospital's name, or that of one hospital alone."""
    asked = f"tags.`wardround.run` = '{run.name}'"
    if site:
        asked += f" and tags.`wardround.site` = '{site}'"
    found: dict[str, Line] = {}
    page = None
    while True:
        some = client.search_runs([experiment], asked, page_token=page)
        for line in some:
            found.setdefault(line.data.tags.get("wardround.site", ""), line)
        page = some.token
        if not page:
            return found


def _found(client: MlflowClient, experiment: str, run: Run, site: str) -> str | None:
    """Return the MLflow run of a run's hospital, None where there is none."""
    line = _lines(client, experiment, run, site).get(site)
    return str(line.info.run_id) if line else None
