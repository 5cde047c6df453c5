"""A hospital's hardest cases in its own MLflow store, a run for each training, a step for each round."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mlflow.entities import Metric
from mlflow.tracking import MlflowClient
from PIL import Image

from models.pictures import PicturedCase
from sites.evaluation.gallery import SeenModel

KEY = "hardest cases"
TABLE = "hardest.json"
WORST = "worst_case/dice"


def page_of(url: str, seen: SeenModel) -> str | None:
    """Return the page of the run that shows a model's hardest cases, None while there is none."""
    client = MlflowClient(url)
    found = client.get_experiment_by_name(_experiment(seen))
    runs = _runs(client, found.experiment_id, seen) if found else []
    if not runs:
        return None
    history = client.get_metric_history(runs[0], WORST)
    is_logged = seen.round in {point.step for point in history}
    return _page(url, found.experiment_id, runs[0]) if is_logged else None


def log_gallery(url: str, seen: SeenModel, cases: Sequence[PicturedCase], picture: Image.Image) -> str:
    """Log a model's hardest cases of the hospital; return the run's page."""
    client, name = MlflowClient(url), _experiment(seen)
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else client.create_experiment(name)
    tags = {"wardround.run": seen.run}
    runs = _runs(client, experiment, seen)
    run = runs[0] if runs else client.create_run(experiment, run_name=seen.run, tags=tags).info.run_id
    files = {file.path for folder in ("", "images") for file in client.list_artifacts(run, folder)}
    if not any(path.startswith(f"images/{KEY}+step+{seen.round}+") for path in files):
        client.log_image(run, picture, key=KEY, step=seen.round)
    rows = {
        "round": [seen.round] * len(cases),
        "case": [case.name for case in cases],
        "dice": [round(case.dice, 4) for case in cases],
    }
    if TABLE not in files or seen.round not in _rounds_in(client, run):
        client.log_table(run, rows, TABLE)
    client.log_batch(run, [Metric(WORST, cases[0].dice, 0, seen.round)])
    return _page(url, experiment, run)


def _rounds_in(client: MlflowClient, run: str) -> set[int]:
    """Return the rounds whose cases are in a run's table already."""
    with tempfile.TemporaryDirectory() as folder:
        table = json.loads(Path(client.download_artifacts(run, TABLE, folder)).read_text())
    at = table["columns"].index("round")
    return {int(row[at]) for row in table["data"]}


def _experiment(seen: SeenModel) -> str:
    return f"{seen.study.name}: own cases"


def _runs(client: MlflowClient, experiment: str, seen: SeenModel) -> list[str]:
    found = client.search_runs([experiment], f"tags.`wardround.run` = '{seen.run}'")
    return [str(each.info.run_id) for each in found]


def _page(url: str, experiment: str, run: str) -> str:
    return f"{url}/#/experiments/{experiment}/runs/{run}?workflowType=machine_learning"
