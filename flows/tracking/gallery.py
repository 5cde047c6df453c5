"""A hospital's hardest cases in its own MLflow store, a run for each training, a step for each round."""

from collections.abc import Sequence

from mlflow.entities import Metric
from mlflow.tracking import MlflowClient
from PIL import Image

from models.pictures import PicturedCase
from sites.gallery import SeenModel

KEY = "hardest cases"
TABLE = "hardest.json"


def log_gallery(url: str, seen: SeenModel, cases: Sequence[PicturedCase], picture: Image.Image) -> str:
    """Log how a model does on the hospital's own cases, unless that is there; return the run's page."""
    client, name = MlflowClient(url), f"{seen.study.name}: own cases"
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else client.create_experiment(name)
    runs = client.search_runs([experiment], f"tags.`wardround.run` = '{seen.run}'")
    run_id = (
        runs[0].info.run_id
        if runs
        else client.create_run(
            experiment, run_name=seen.run, tags={"wardround.run": seen.run}
        ).info.run_id
    )
    done = {point.step for point in client.get_metric_history(run_id, "worst_case/dice")}
    if seen.round not in done:
        client.log_image(run_id, picture, key=KEY, step=seen.round)
        rows = {
            "round": [seen.round] * len(cases),
            "case": [case.name for case in cases],
            "dice": [round(case.dice, 4) for case in cases],
        }
        client.log_table(run_id, rows, TABLE)
        client.log_batch(run_id, [Metric("worst_case/dice", cases[0].dice, 0, seen.round)])
    return f"{url}/#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning"
