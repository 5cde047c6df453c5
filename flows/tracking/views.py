"""First pages in MLflow: an experiment for each study, saved charts and pictures, links.

A saved view is an internal format of MLflow's UI, so MLflow's version is pinned, and a test opens the
view in a browser.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow.tracking import MlflowClient

from flows.runs.artifacts import REPORT
from flows.runs.run import Run
from flows.servers.decision_page import PAGE
from flows.tracking.metrics import GLOBAL, NOTE
from flows.tracking.pictures import REFERENCES
from models.settings.metrics import metric_names
from sites.study import Study

BY_HOSPITAL, PICTURES = "by-hospital", "pictures"
Sections = Mapping[str, Sequence[Sequence[str]]]


def sections(study: Study) -> Sections:
    """Return the saved view's charts by section: a chart is a list of metrics, a line each hospital."""
    names = metric_names(study.task)
    quality = [
        f"val/{name}"
        for name in ("dice", "hd95_mm", "auroc", "accuracy", "mae", "within_tolerance")
        if name in names
    ]
    shown = {"Quality": [[name] for name in quality]}
    if study.privacy.mode != "none":
        shown["Privacy"] = [["privacy/epsilon", "privacy/budget"]]
    operations = ["exchange/bytes_up", "perf/train_seconds", "perf/round_seconds"]
    return {**shown, "Operations": [[name] for name in operations]}


def view(run: Run) -> dict[str, Any]:
    """Return the saved view of a run: its sections, one line for each hospital, and no other chart."""
    shown = sections(run.study)
    charts = [_chart(section, keys) for section, cards in shown.items() for keys in cards]
    first = {chart["metricKey"] for chart in charts}
    pictures = {  # otherwise MLflow adds a card of them when it has their names before it draws
        "type": "IMAGE", "uuid": f"hidden {REFERENCES}", "metricSectionId": "Quality",
        "imageKeys": [REFERENCES], "deleted": True,
    }  # fmt: skip
    hidden = [pictures, *_hidden(sorted(_every_metric(run) - first), "Quality")]
    return {
        "groupBy": {
            "aggregateFunction": "average",
            "groupByKeys": [{"mode": "tag", "groupByData": "wardround.site"}],
        },
        "useGroupedValuesInCharts": False,  # groups may share a colour, each run has its own
        "searchFilter": f"tags.`wardround.run` = '{run.name}'",
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "columns": 1, "cardHeight": 400}
            for name in shown
        ],
        "compareRunCharts": [*charts, *hidden],
        "isAccordionReordered": True,
        "runsHiddenMode": "SHOW_ALL",
    }


def pictures_view(run: Run, step: int) -> dict[str, Any]:
    """Return the saved view of a run's reference cases: one card with a slider, at first at `step`."""
    card = {
        "type": "IMAGE",
        "uuid": REFERENCES,
        "metricSectionId": "Pictures",
        "imageKeys": [REFERENCES],
        "step": step,
        "showRunParams": False,
    }
    hidden = _hidden(sorted(_every_metric(run)), "Pictures")
    section = {"uuid": "Pictures", "name": "Pictures", "display": True, "columns": 1, "cardHeight": 420}
    return {
        "groupBy": None,
        "searchFilter": f"tags.`wardround.run` = '{run.name}' AND tags.`wardround.site` = '{GLOBAL}'",
        "compareRunSections": [section],
        "compareRunCharts": [card, *hidden],
        "isAccordionReordered": True,
        "runsHiddenMode": "SHOW_ALL",
    }


def _chart(section: str, keys: Sequence[str]) -> dict[str, Any]:
    chart = {
        "type": "LINE",
        "uuid": keys[0],
        "metricSectionId": section,
        "metricKey": keys[0],
        "xAxisKey": "step",
        "lineSmoothness": 0,
    }
    return chart | {"selectedMetricKeys": list(keys)} if len(keys) > 1 else chart


def _hidden(metrics: Sequence[str], section: str) -> list[dict[str, Any]]:
    """Return charts of metrics as MLflow keeps those that a person has removed."""
    return [
        {"type": "LINE", "uuid": f"hidden {key}", "metricSectionId": section, "metricKey": key,
         "deleted": True}
        for key in metrics
    ]  # fmt: skip


def _every_metric(run: Run) -> set[str]:
    """Return every metric that a run may log: MLflow charts each one that is not hidden."""
    study = run.study
    overall = [name for name in metric_names(study.task) if "/" not in name]
    fairness = (f"{kind}/{name}" for kind in ("worst_site", "gap") for name in overall)
    known = run.description
    groups = {each.statement.group for site in known.everybody for each in known.acceptances(site)}
    grouped = (f"group/{name}-{group}" for name in overall for group in groups if group)
    private = ("epsilon", "budget", *(f"epsilon_{name}" for name in ("prv", "pld", "rdp")))
    return {
        *(f"val/{name}" for name in (*study.metric_names, *fairness, *grouped)),
        *(f"gain/{name}" for name in overall),
        *(f"privacy/{name}" for name in private),
        "exchange/bytes_up", "perf/train_seconds", "perf/round_seconds", "sites/contributed",
    }  # fmt: skip


def experiment_of(client: MlflowClient, study: Study) -> str:
    """Return the id of a study's experiment; make it, if there is none."""
    experiment = client.get_experiment_by_name(study.name)
    if experiment is not None:
        return str(experiment.experiment_id)
    return str(client.create_experiment(study.name))


def show(client: MlflowClient, experiment: str, run: Run, parent: str) -> None:
    """Make the study's view and note show a run: its charts, report, models and name."""
    state = json.dumps(view(run))
    client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{BY_HOSPITAL}", state)
    pages = " · ".join(f"[{title}]({link})" for title, link in _pages(experiment, parent, run.study))
    text = f"**{run.study.name}**: {pages}\n\n{run.study.purpose}\n\nNewest run: {run.name}."
    client.set_experiment_tag(experiment, NOTE, text)


def show_pictures(client: MlflowClient, experiment: str, run: Run, step: int) -> None:
    """Make the study's view of pictures show those of a run, first the one of a round."""
    state = json.dumps(pictures_view(run, step))
    client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{PICTURES}", state)


def _pages(experiment: str, parent: str, study: Study) -> list[tuple[str, str]]:
    return [
        *_run_pages(experiment, parent, has_pictures=study.task.kind == "segmentation"),
        ("models", "#/models?workflowType=machine_learning"),  # a model's own page may not be there yet
        ("decide", f"{PAGE}?run={parent}"),
    ]


def _run_pages(experiment: str, parent: str, *, has_pictures: bool) -> list[tuple[str, str]]:
    ours = "workflowType=machine_learning"
    base = f"#/experiments/{experiment}/runs"
    charts = f"{base}?{ours}&compareRunsMode=CHART&viewStateShareKey="
    pages = [
        ("all hospitals", charts + BY_HOSPITAL),
        ("report", f"{base}/{parent}/artifacts/{REPORT}?{ours}"),
        ("newest run", f"{base}/{parent}?{ours}"),
    ]
    return [*pages, ("pictures", charts + PICTURES)] if has_pictures else pages


def links(url: str) -> list[tuple[str, str]]:
    """Return the pages worth opening on the server at `url`, as (title, link)."""
    client = MlflowClient(url)
    pages = []
    for experiment in client.search_experiments():
        found = client.search_runs(
            [experiment.experiment_id],
            f"tags.`wardround.site` = '{GLOBAL}'",
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
        if found:
            drawn = f"mlflow.sharedViewState.{PICTURES}" in experiment.tags
            known = _run_pages(experiment.experiment_id, found[0].info.run_id, has_pictures=drawn)
            known.append(("decide", f"{PAGE}?run={found[0].info.run_id}"))
            pages += [(f"{experiment.name}: {title}", f"{url}/{link}") for title, link in known]
    registered, page = [], None
    while True:
        found = client.search_registered_models(page_token=page)
        registered += [model.name for model in found]
        page = found.token
        if not page:
            break
    kind = "?workflowType=machine_learning"
    return pages + [(f"{name}: versions", f"{url}/#/models/{name}{kind}") for name in registered]
