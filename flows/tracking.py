"""Everything that is written to MLflow, and the only module that knows it.

One experiment a study, one parent run a training (the GLOBAL line), one child run a hospital; the
step is the round, with a baseline at 0. Whatever is logged comes from a round's record, with the
record's own time, so that logging it again after a crash changes nothing.
"""

import json
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import mlflow
import numpy as np
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.tracking import MlflowClient
from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

from flows import served_model
from flows.run import Accepted, RoundRecord, Run
from sites.study import Study

if TYPE_CHECKING:
    from flows.survey import SurveyRecord

GLOBAL = "GLOBAL"
METRICS = {
    "exact": "exact (evaluation patients: no DP)",
    "noised": "noised (charged to the ledger)",
    "withheld": "withheld",
}
"""How a hospital's figures came about, in words for the reader of MLflow."""
BY_HOSPITAL = "by-hospital"
GROUPED = {
    "groupBy": {
        "aggregateFunction": "average",
        "groupByKeys": [{"mode": "tag", "groupByData": "wardround.site"}],
    }
}
"""A saved view of MLflow's charts: one line for each hospital."""
LIBRARIES = ("wardround", "torch", "monai", "opacus", "prefect", "mlflow")


def links(url: str) -> list[tuple[str, str]]:
    """Return the pages worth opening on the server at `url`, as (title, link)."""
    client = MlflowClient(url)
    pages = []
    for experiment in client.search_experiments():
        base = f"{url}/#/experiments/{experiment.experiment_id}"
        found = client.search_runs(
            [experiment.experiment_id],
            f"tags.`wardround.site` = '{GLOBAL}'",
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
        if found:
            chart = f"{base}/runs?workflowType=machine_learning&compareRunsMode=CHART"
            chart = f"{chart}&viewStateShareKey={BY_HOSPITAL}"
            pages.append((f"{experiment.name}: all hospitals", chart))
            pages.append((f"{experiment.name}: newest run", f"{base}/runs/{found[0].info.run_id}"))
    registered = [model.name for model in client.search_registered_models()]
    return pages + [(f"{name}: versions", f"{url}/#/models/{name}") for name in registered]


def log_survey(record: "SurveyRecord") -> None:
    """Log a survey in the experiment `<study>-survey`: a run for each hospital, a step each time."""
    client, name = MlflowClient(), f"{record.study}-survey"
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else client.create_experiment(name)
    for site, told in record.told.items():
        mlflow_run = _survey_run(client, experiment, record.study, site)
        values = {f"drift/{key}": moved for key, moved in record.drift.get(site, {}).items()}
        client.log_batch(
            mlflow_run,
            [Metric(key, moved, record.started_ms, record.number) for key, moved in values.items()],
        )
        client.log_text(mlflow_run, told.model_dump_json(indent=1), f"surveys/{record.run}.json")
        tags = {
            "wardround.statistics": told.statistics_policy,
            "wardround.drifted": ", ".join(record.drifted.get(site, [])) or "nothing",
        }
        for key, tag in tags.items():
            client.set_tag(mlflow_run, key, tag)


def _survey_run(client: MlflowClient, experiment: str, study: str, site: str) -> str:
    found = client.search_runs([experiment], f"tags.`wardround.site` = '{site}'")
    if found:
        return str(found[0].info.run_id)
    tags = {"wardround.study": study, "wardround.site": site}
    made = client.create_run(experiment, tags=tags, run_name=f"{study} {site}")
    client.set_terminated(made.info.run_id)
    return str(made.info.run_id)


class Tracking(AbstractContextManager["Tracking"]):
    """A run's place in MLflow, made on first use: its experiment, parent run and child runs."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._client = MlflowClient()
        self._experiment = self._experiment_of(run.study)
        self._parent = self._mlflow_run(GLOBAL, parent=None)
        self._children = {
            site: self._mlflow_run(site, parent=self._parent)
            for site in sorted(run.description.everybody)
        }

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
        for mlflow_run in self._all_runs():
            self._client.set_terminated(mlflow_run, "FINISHED" if error is None else "FAILED")

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
        """
        for site in self._children:
            self._log_site(site, record)
        self._log_global(record)
        self._client.log_text(
            self._parent, record.data.decode(), f"rounds/round-{record.round:03d}.json"
        )
        if record.round > 0:
            self._register(record)
        for mlflow_run in self._all_runs():
            self._client.set_tag(mlflow_run, "wardround.chain_head", record.sha256)

    def _log_site(self, site: str, record: RoundRecord) -> None:
        values = {f"val/{name}": value for name, value in record.scores.get(site, {}).items()}
        if site in record.metrics:
            note = METRICS[record.metrics[site]]
            self._client.set_tag(self._children[site], "wardround.metrics", note)
        for release in record.releases:
            if release.site == site:
                values |= _privacy(release) | {"exchange/bytes_up": release.payload_bytes}
                self._tag_caveats(site, release)
        if site in record.train_seconds:
            values["perf/train_seconds"] = record.train_seconds[site]
        self._log(self._children[site], record, values)

    def _tag_caveats(self, site: str, release: Accepted) -> None:
        """Tag what the shown epsilon does not say by itself."""
        self._client.set_tag(self._children[site], "wardround.noise", release.noise)
        if release.plain_releases:
            count = str(release.plain_releases)
            self._client.set_tag(self._children[site], "wardround.plain_releases", count)

    def _log_global(self, record: RoundRecord) -> None:
        values = {f"val/{name}": value for name, value in record.quality.items()}
        spent = [_privacy(release) for release in record.releases]
        for name in sorted({name for epsilons in spent for name in epsilons}):
            values[name] = max(epsilons[name] for epsilons in spent if name in epsilons)
        values["exchange/bytes_up"] = sum(r.payload_bytes for r in record.releases)
        values["perf/round_seconds"] = record.seconds
        values["sites/contributed"] = len(record.releases)
        self._log(self._parent, record, values)

    def _log(self, mlflow_run: str, record: RoundRecord, values: Mapping[str, float]) -> None:
        metrics = [
            Metric(name, value, record.finished_ms, record.round) for name, value in values.items()
        ]
        self._client.log_batch(mlflow_run, metrics=metrics)

    def _register(self, record: RoundRecord) -> None:
        """Register the round's model as a version of `<study>-candidates`, the newest `candidate`."""
        name = f"{self._run.study.name}-candidates"
        self._ensure_registered(name)
        found = self._client.search_model_versions(
            f"name = '{name}' and tags.`wardround.run` = '{self._run.name}' "
            f"and tags.`wardround.round` = '{record.round}'"
        )
        if found:
            self._client.set_registered_model_alias(name, "candidate", found[0].version)
            return
        version_tags = {
            "wardround.study": self._run.study.name,
            "wardround.run": self._run.name,
            "wardround.round": str(record.round),
            "wardround.sha256": record.model_sha256,
            "wardround.chain_head": record.sha256,
            **{f"val/{name}": f"{value:.4f}" for name, value in record.quality.items()},
            **_epsilon_tag(record),
            **self._local_layers_tag(record),
        }
        model = self._log_model(record)
        made = self._client.create_model_version(
            name,
            source=model.model_uri,
            run_id=self._parent,
            model_id=model.model_id,
            tags=version_tags,
            await_creation_for=0,
        )
        self._client.set_registered_model_alias(name, "candidate", made.version)

    def _local_layers_tag(self, record: RoundRecord) -> dict[str, str]:
        """Return a warning where a model lacks what hospitals keep to themselves."""
        params = self._run.model(record)
        missing = sorted(params.keys() - self._run.study.bound_strategy().shared(params).keys())
        if not missing:
            return {}
        return {
            "wardround.local_layers": f"untrained here, kept at hospitals: {', '.join(missing)}"[:500]
        }

    def _log_model(self, record: RoundRecord) -> ModelInfo:
        study = self._run.study
        tensor = Schema([TensorSpec(np.dtype(np.float32), (-1,) * (study.task.dims + 1))])
        spacing = ParamSpec("spacing_mm", DataType.double, [1.0] * study.task.dims, shape=(-1,))
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            # MLflow advises an example; it would be a patient's image or none worth keeping.
            warnings.filterwarnings("ignore", message=".*input example was not provided")
            served_model.write(Path(folder), study, self._run.model(record))
            mlflow.start_run(run_id=self._parent)
            try:
                return mlflow.pyfunc.log_model(
                    name=f"round-{record.round:03d}",
                    loader_module="flows.served_model",
                    data_path=folder,
                    signature=ModelSignature(inputs=tensor, params=ParamSchema([spacing])),
                    pip_requirements=[f"{name}=={version(name)}" for name in LIBRARIES],
                    step=record.round,
                )
            finally:
                mlflow.end_run("RUNNING")

    def _ensure_registered(self, name: str) -> None:
        try:
            self._client.get_registered_model(name)
        except MlflowException:
            self._client.create_registered_model(name)

    def _experiment_of(self, study: Study) -> str:
        experiment = self._client.get_experiment_by_name(study.name)
        if experiment is not None:
            return str(experiment.experiment_id)
        experiment_id = str(self._client.create_experiment(study.name))
        view = json.dumps(GROUPED)
        self._client.set_experiment_tag(experiment_id, f"mlflow.sharedViewState.{BY_HOSPITAL}", view)
        return experiment_id

    def _mlflow_run(self, site: str, parent: str | None) -> str:
        found = self._client.search_runs(
            [self._experiment],
            f"tags.`wardround.run` = '{self._run.name}' and tags.`wardround.site` = '{site}'",
        )
        if found:
            return str(found[0].info.run_id)
        run = self._run
        tags = {
            "wardround.study": run.study.name,
            "wardround.run": run.name,
            "wardround.site": site,
            "dp": "false" if run.study.privacy.mode == "none" else "true",
        }
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        made = self._client.create_run(
            self._experiment,
            start_time=run.description.started_ms,
            tags=tags,
            run_name=run.name if site == GLOBAL else f"{run.name} {site}",
        )
        self._client.log_batch(made.info.run_id, params=self._params(site))
        return str(made.info.run_id)

    def _params(self, site: str) -> list[Param]:
        run = self._run
        if site != GLOBAL:
            hospital = run.description.everybody[site]
            values = {
                "declared_patients": hospital.declared_patients,
                "steps": hospital.steps,
                "budget/epsilon": hospital.budget.epsilon,
                "budget/delta": hospital.budget.delta,
                "version/wardround": hospital.version,
                "code_sha256": hospital.code_sha256,
            }
            return [Param(name, str(value)) for name, value in values.items()]
        fixed = {"study_sha256": run.study.sha256, **_flat(run.study.model_dump(mode="json"))}
        versions = {f"version/{name}": version(name) for name in LIBRARIES}
        return [Param(name, str(value)) for name, value in {**fixed, **versions}.items()]

    def _all_runs(self) -> list[str]:
        return [self._parent, *self._children.values()]


def _privacy(release: Accepted) -> dict[str, float]:
    if release.epsilon is None:
        return {}
    reported = {f"privacy/epsilon_{name}": eps for name, eps in release.epsilon_reported.items()}
    return {"privacy/epsilon": release.epsilon, **reported}


def _epsilon_tag(record: RoundRecord) -> dict[str, str]:
    spent = [release.epsilon for release in record.releases if release.epsilon is not None]
    return {"privacy/epsilon": f"{max(spent):.4f}"} if spent else {"dp": "false"}


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return nested keys joined by a slash.

    >>> _flat({"a": {"b": 1}, "c": None})
    {'a/b': 1, 'c': None}
    """
    flat: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
