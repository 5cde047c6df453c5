"""The numbers of a round as MLflow holds them: a line for each hospital, and one for all together.

Whatever is logged is computed here from the round's record, so it can be compared with it at any time.
"""

from collections.abc import Mapping

from flows.decisions import decisions, release_status
from flows.runs.run import Accepted, Participant, RoundRecord, Run
from flows.runs.versions import installed
from flows.tracking.colours import TOGETHER, colours
from models.objectives import LOWER_IS_BETTER

GLOBAL = "GLOBAL"
NOTE, COLOUR = "mlflow.note.content", "mlflow.runColor"
CROSS_SITE = "cross_site.csv"
NO_CRITERIA = "nobody: the study has no `promotion`"
METRICS = {
    "exact": "exact (evaluation patients: no DP)",
    "noised": "noised (charged to the ledger)",
    "withheld": "withheld",
}
"""How a hospital's figures came about, in words for the reader of MLflow."""


def run_name(run: Run, name: str) -> str:
    """Return what a line is called: the run, and below it each hospital."""
    return run.name if name == GLOBAL else name


def fixed_tags(run: Run, name: str) -> dict[str, str]:
    """Return what a line is and which colour it has in charts, whatever the rounds bring."""
    return {
        COLOUR: TOGETHER if name == GLOBAL else colours(run.description)[name],
        "wardround.study": run.study.name,
        "wardround.run": run.name,
        "wardround.site": name,
        "dp": "false" if run.study.privacy.mode == "none" else "true",
    }


def params(run: Run, name: str) -> dict[str, str]:
    """Return a line's parameters: the study, or what a hospital declared when it joined first."""
    if name == GLOBAL:
        study = _flat(run.study.model_dump(mode="json"))
        return {key: str(value) for key, value in {"study_sha256": run.study.sha256, **study}.items()}
    hospital = run.description.member(name, 0)
    values = {
        "declared_patients": hospital.declared_patients,
        "steps": hospital.steps,
        "budget/epsilon": hospital.budget.epsilon,
        "budget/delta": hospital.budget.delta,
        "version/wardround": hospital.version,
        "code_sha256": hospital.code_sha256,
    }
    return {key: str(value) for key, value in values.items()}


def state_tags(run: Run, record: RoundRecord) -> dict[str, str]:
    """Return what a person wants to know first of a run after a round."""
    return {
        "wardround.rounds_done": f"{record.round} of {run.study.rounds}",
        "wardround.missing": _missing(record),
    }


def decided_tags(run: Run) -> dict[str, str]:
    """Return what the page of a run says of the decisions about its models, and its note with them.

    Raises:
        BrokenRun: the chain of decisions is not as it was left.
    """
    known, heads = decisions.decisions(run), decisions.heads(run)
    newest = {"wardround.decisions": heads[-1]} if heads else {}
    record, said = run.records()[-1], release_status.in_words(known)
    waits = release_status.waits_for(known, record.round) if run.study.promotion else NO_CRITERIA
    return {
        "wardround.released": said,
        "wardround.waits_for": waits,
        NOTE: _note(run, record, said, waits),
        **newest,
    }


def _note(run: Run, record: RoundRecord, said: str, waits: str) -> str:
    """Return what stands on a run's page in Markdown: what MLflow cuts off in tags stands here whole."""
    study = run.study
    return "\n\n".join(
        [
            f"**Released**: {said}. **Waits for**: {waits}.",
            f"Round {record.round} of {study.rounds} is on record; {len(record.releases)} hospitals "
            f"contributed to it, missing: {_missing(record)}. `report.html` among the artifacts says "
            f"the rest.",
            study.purpose or study.name,
        ]
    )


def _missing(record: RoundRecord) -> str:
    return ", ".join(sorted(record.left_out)) or "nobody"


def versions() -> dict[str, str]:
    """Return the versions of the libraries with which a run was begun, as parameters."""
    return {f"version/{name}": number for name, number in installed().items()}


def caveats(record: RoundRecord, site: str) -> dict[str, str]:
    """Return as tags what a hospital's figures and epsilon do not say by themselves."""
    tags = {}
    if site in record.metrics:
        tags["wardround.metrics"] = METRICS[record.metrics[site]]
    for release in record.releases:
        if release.site == site:
            tags["wardround.noise"] = release.noise
            if release.plain_releases:
                tags["wardround.plain_releases"] = str(release.plain_releases)
    return tags


def of_site(record: RoundRecord, site: str, hospital: Participant) -> dict[str, float]:
    """Return what a round says of one hospital."""
    values = {f"val/{name}": value for name, value in record.scores.get(site, {}).items()}
    for release in record.releases:
        if release.site == site:
            values |= _privacy(release) | {"exchange/bytes_up": float(release.payload_bytes)}
            if release.epsilon is not None:
                values["privacy/budget"] = hospital.budget.epsilon
    if site in record.train_seconds:
        values["perf/train_seconds"] = record.train_seconds[site]
    return values


def of_everybody(record: RoundRecord, hospitals: Mapping[str, Participant]) -> dict[str, float]:
    """Return what a round says of all hospitals together; an epsilon is the largest of any."""
    values = {f"val/{name}": value for name, value in record.quality.items()}
    values |= {f"val/{name}": value for name, value in fairness(record.scores).items()}
    values |= {f"val/{name}": value for name, value in by_group(record.scores, hospitals).items()}
    spent = [_privacy(release) for release in record.releases]
    for name in sorted({name for epsilons in spent for name in epsilons}):
        values[name] = max(epsilons[name] for epsilons in spent if name in epsilons)
    values["exchange/bytes_up"] = float(sum(r.payload_bytes for r in record.releases))
    values["perf/round_seconds"] = record.seconds
    values["sites/contributed"] = float(len(record.releases))
    return values


def fairness(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return `worst_site/<metric>` and `gap/<metric>` over the hospitals that published a metric.

    >>> fairness({"a": {"dice": 0.75}, "b": {"dice": 0.5}})
    {'worst_site/dice': 0.5, 'gap/dice': 0.25}
    """
    found: dict[str, float] = {}
    for name in sorted({name for metrics in scores.values() for name in metrics if "/" not in name}):
        values = [metrics[name] for metrics in scores.values() if name in metrics]
        found[f"worst_site/{name}"] = max(values) if name in LOWER_IS_BETTER else min(values)
        found[f"gap/{name}"] = max(values) - min(values)
    return found


def cross_site_csv(record: RoundRecord) -> str:
    """Return how each hospital's released model did at each: a line for each pair and metric."""
    rows = [
        f"{at},{of},{name},{value:.6g}"
        for at, row in sorted(record.cross_site.items())
        for of, metrics in sorted(row.items())
        for name, value in sorted(metrics.items())
    ]
    return "\n".join(["scored at,model of,metric,value", *rows]) + "\n"


def by_group(
    scores: Mapping[str, Mapping[str, float]], hospitals: Mapping[str, Participant]
) -> dict[str, float]:
    """Return `group/<metric>-<group>`: declared-n means over the hospitals of a declared group."""
    found: dict[str, float] = {}
    for group in sorted({h.group for h in hospitals.values() if h.group}):
        inside = {site: m for site, m in scores.items() if hospitals[site].group == group}
        for name in sorted({name for m in inside.values() for name in m if "/" not in name}):
            pairs = [(hospitals[s].declared_training, m[name]) for s, m in inside.items() if name in m]
            mean = sum(n * value for n, value in pairs) / sum(n for n, _ in pairs)
            found[f"group/{name}-{group}"] = mean
    return found


def _privacy(release: Accepted) -> dict[str, float]:
    if release.epsilon is None:
        return {}
    reported = {f"privacy/epsilon_{name}": eps for name, eps in release.epsilon_reported.items()}
    return {"privacy/epsilon": release.epsilon, **reported}


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
