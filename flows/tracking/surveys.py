"""Surveys in MLflow: a separate experiment, a run for each hospital, a step for each survey."""

from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from flows.runs.records import SurveyRecord


def log_survey(record: SurveyRecord) -> None:
    """Log a survey in the experiment `<study>-survey`: a step in the run of each hospital."""
    client, name = MlflowClient(), f"{record.study}-survey"
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else client.create_experiment(name)
    for site, survey in record.surveys.items():
        mlflow_run = _survey_run(client, experiment, record.study, site)
        values = {f"drift/{key}": moved for key, moved in record.drift.get(site, {}).items()}
        client.log_batch(
            mlflow_run,
            [Metric(key, moved, record.started_ms, record.number) for key, moved in values.items()],
        )
        client.log_text(mlflow_run, survey.model_dump_json(indent=1), f"surveys/{record.run}.json")
        tags = {
            "wardround.statistics": survey.statistics_policy,
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
