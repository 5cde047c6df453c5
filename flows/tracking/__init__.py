"""Everything that is written to MLflow, and the only module that knows it.

One experiment a study, one parent run a training (the GLOBAL line), one child run a hospital; the
step is the round, with a baseline at 0. Whatever is logged comes from a round's record, with the
record's own time, so that logging it again after a crash changes nothing.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

import mlflow
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import MAX_PARAMS_TAGS_PER_BATCH
from requests import RequestException

from flows import references
from flows.run import RoundRecord, Run, StoreFailed
from flows.tracking import lines, registry, views
from flows.tracking.lines import GLOBAL
from flows.tracking.registry import LIBRARIES

REFERENCES = "reference cases"


def attach_report(run: Run, report: bytes, released: str = "no: a candidate", decided: str = "") -> None:
    """Attach a run's report to its parent run, in an earlier one's place, and say who released it.

    Args:
        decided: the head of the chain of decisions that the report knows of.

    Raises:
        NotAllowed: this account may not write the study's runs.
    """
    client = MlflowClient()
    experiment = views.experiment_of(client, run.study)
    if parent := _found(client, experiment, run, GLOBAL):
        try:
            client.log_text(parent, report.decode(), registry.REPORT)
            client.set_tag(parent, "wardround.released", released)
            if decided:
                client.set_tag(parent, "wardround.decisions", decided)
        except (MlflowException, RequestException) as error:
            refused = registry.told(error, f"the runs of {run.study.name}, which the coordinator's can,")
            if isinstance(refused, registry.NotAllowed):
                raise refused from error
            raise StoreFailed(f"MLflow has not taken the report of {run.name}: {error}") from error


class Tracking(AbstractContextManager["Tracking"]):
    """A run's place in MLflow, made on first use: its experiment, parent run and child runs."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._client = MlflowClient()
        self._experiment = views.experiment_of(self._client, run.study)
        self._parent = self._mlflow_run(GLOBAL, parent=None)
        self._children = {
            site: self._mlflow_run(site, parent=self._parent)
            for site in sorted(run.description.everybody)
        }
        views.show(self._client, self._experiment, run, self._parent)

    def __enter__(self) -> "Tracking":
        for mlflow_run in self._all_runs():
            self._client.update_run(mlflow_run, status="RUNNING")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        status = "FINISHED" if error is None else "FAILED"
        # what has gone wrong is told, also where MLflow itself is what is wrong
        with suppress(*(() if error is None else (MlflowException, RequestException))):
            for mlflow_run in self._all_runs():
                self._client.set_terminated(mlflow_run, status)

    @property
    def page(self) -> str:
        """The address of the run's page in MLflow's UI, as far as this process knows the server's."""
        return f"{mlflow.get_tracking_uri()}/#/experiments/{self._experiment}/runs/{self._parent}"

    def follow(self, run: Run) -> None:
        """Go on with a run as its members are now."""
        self._run = run
        for site in sorted(run.description.participants.keys() - self._children.keys()):
            self._children[site] = self._mlflow_run(site, parent=self._parent)

    def log(self, record: RoundRecord) -> None:
        """Log a round; logging it again changes nothing.

        The chain's head is written last: where it stands, the whole round is there.

        Raises:
            StoreFailed: MLflow has not taken all of it, as with a full disk.
        """
        try:
            self._log_round(record)
        except (MlflowException, RequestException) as error:
            raise StoreFailed(
                f"MLflow has not taken round {record.round}, which is on record: {error}"
            ) from error

    def _log_round(self, record: RoundRecord) -> None:
        for site in self._children:
            self._log_site(site, record)
        self._log(
            self._parent, record, lines.of_everybody(record, self._run.description.members(record.round))
        )
        self._client.log_text(
            self._parent, record.data.decode(), f"rounds/round-{record.round:03d}.json"
        )
        self._picture(record)
        if record.cross_site:
            self._client.log_text(self._parent, lines.cross_site_csv(record), "cross_site.csv")
        if record.round > 0:
            registry.register(self._client, self._run, record, self._parent)
        self._say_where_it_stands(record)
        for mlflow_run in self._all_runs():
            self._client.set_tag(mlflow_run, "wardround.chain_head", record.sha256)

    def _picture(self, record: RoundRecord) -> None:
        """Log how the model does on synthetic cases, once; a slider over the rounds shows them."""
        mark = f"{REFERENCES}+step+{record.round}+"
        known = self._client.list_artifacts(self._parent, "images")
        if any(Path(file.path).name.startswith(mark) for file in known):
            return
        drawn = references.picture(self._run.study, self._run.model(record), record.round)
        if drawn is not None:
            self._client.log_image(self._parent, drawn, key=REFERENCES, step=record.round)

    def _say_where_it_stands(self, record: RoundRecord) -> None:
        """Say in tags and the run's note what a person wants to know first."""
        study = self._run.study
        tags = {
            "wardround.rounds_done": f"{record.round} of {study.rounds}",
            "wardround.missing": ", ".join(sorted(record.left_out)) or "nobody",
            views.NOTE: (
                f"{study.purpose or study.name}\n\nRound {record.round} of {study.rounds} is on record; "
                f"{len(record.releases)} hospitals contributed to it, missing: "
                f"{', '.join(sorted(record.left_out)) or 'nobody'}. "
                f"`report.html` among the artifacts says the rest."
            ),
        }
        for key, value in tags.items():
            self._client.set_tag(self._parent, key, value)

    def _log_site(self, site: str, record: RoundRecord) -> None:
        for key, value in lines.caveats(record, site).items():
            self._client.set_tag(self._children[site], key, value)
        hospital = self._run.description.member(site, record.round)
        self._log(self._children[site], record, lines.of_site(record, site, hospital))

    def _log(self, mlflow_run: str, record: RoundRecord, values: Mapping[str, float]) -> None:
        metrics = [
            Metric(name, value, record.finished_ms, record.round) for name, value in values.items()
        ]
        self._client.log_batch(mlflow_run, metrics=metrics)

    def _mlflow_run(self, site: str, parent: str | None) -> str:
        known = _found(self._client, self._experiment, self._run, site)
        made = known or self._created(site, parent)
        self._log_params(made, site)
        return made

    def _created(self, site: str, parent: str | None) -> str:
        run = self._run
        tags = lines.fixed_tags(run, site)
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        made = self._client.create_run(
            self._experiment,
            start_time=run.description.started_ms,
            tags=tags,
            run_name=run.name if site == GLOBAL else f"{run.name} {site}",
        )
        return str(made.info.run_id)

    def _log_params(self, mlflow_run: str, site: str) -> None:
        """Log a line's parameters, also those that an interruption has kept from it."""
        told = self._client.get_run(mlflow_run).data.params
        versions = {f"version/{name}": version(name) for name in LIBRARIES} if site == GLOBAL else {}
        values = {**lines.params(self._run, site), **versions}
        params = [Param(name, value) for name, value in values.items() if name not in told]
        for first in range(0, len(params), MAX_PARAMS_TAGS_PER_BATCH):
            batch = params[first : first + MAX_PARAMS_TAGS_PER_BATCH]
            self._client.log_batch(mlflow_run, params=batch)

    def _all_runs(self) -> list[str]:
        return [self._parent, *self._children.values()]


def _found(client: MlflowClient, experiment: str, run: Run, site: str) -> str | None:
    """Return the MLflow run of a run's hospital, None where there is none."""
    found = client.search_runs(
        [experiment], f"tags.`wardround.run` = '{run.name}' and tags.`wardround.site` = '{site}'"
    )
    return str(found[0].info.run_id) if found else None
