"""Metrics, tags and parameters of a run in MLflow: a line for each hospital, and one for all together.

Everything that is logged is computed here from the round's record, so it can be compared with the record
at any time.
"""

from collections.abc import Mapping

from flows.decisions import chain, release_status
from flows.decisions.verdicts import terms_of
from flows.runs.colours import TOGETHER, colours
from flows.runs.comparison import flat
from flows.runs.records import Participant, RoundRecord
from flows.runs.run import Run
from flows.runs.versions import installed
from models.settings.metrics import LOWER_IS_BETTER
from privacy.signing import canonical
from privacy.statements import ReleaseManifest

GLOBAL = "GLOBAL"
NOTE, COLOUR = "mlflow.note.content", "mlflow.runColor"
CROSS_SITE = "cross_site.csv"
NO_CRITERIA = "nobody: the study has no `promotion`"
POLICIES = {
    "exact": "exact (evaluation patients: no DP)",
    "noised": "noised (charged to the ledger)",
    "summed": "in the sum over all hospitals alone",
    "withheld": "withheld",
}
"""A hospital's metrics policy in words, for the reader of MLflow."""


def run_name(run: Run, name: str) -> str:
    """Return the name of a line: the run's, and below it each hospital's."""
    return run.name if name == GLOBAL else name


def fixed_tags(run: Run, name: str) -> dict[str, str]:
    """Return the tags of a line that no round changes, and its colour in charts."""
    return {
        COLOUR: TOGETHER if name == GLOBAL else colours(run.description)[name],
        "wardround.study": run.study.name,
        "wardround.run": run.name,
        "wardround.site": name,
        "dp": "false" if run.study.privacy.mode == "none" else "true",
    }


def params(run: Run, name: str) -> dict[str, str]:
    """Return a line's parameters: the study, or a hospital's first acceptance."""
    if name == GLOBAL:
        study = flat(run.study.model_dump(mode="json"), "/")
        return {key: str(value) for key, value in {"study_sha256": run.study.sha256, **study}.items()}
    acceptance = run.description.member(name, 0).statement
    values = {
        "declared_patients": acceptance.declared_patients,
        "steps": acceptance.steps,
        "budget/epsilon": acceptance.budget.epsilon,
        "budget/delta": acceptance.budget.delta,
        "version/wardround": acceptance.version,
        "code_sha256": acceptance.code_sha256,
    }
    return {key: str(value) for key, value in values.items()}


def state_tags(run: Run, record: RoundRecord) -> dict[str, str]:
    """Return the tags that a person wants to see first after a round."""
    return {
        "wardround.rounds_done": f"{record.round} of {run.study.rounds}",
        "wardround.missing": _missing(record),
    }


def decided_tags(run: Run) -> dict[str, str]:
    """Return the tags of a run's page about the decisions on its models, and the page's note.

    Raises:
        BrokenRun: the chain of decisions is not as it was left.
    """
    known, heads = chain.decisions(run), chain.heads(run)
    newest = {"wardround.decisions": heads[-1]} if heads else {}
    record, status = run.records()[-1], release_status.in_words(known)
    waits = release_status.waits_for(known, record.round) if run.study.promotion else NO_CRITERIA
    return {
        "wardround.released": status,
        "wardround.waits_for": waits,
        NOTE: _note(run, record, status, waits),
        "wardround.terms": _terms(run, record),
        **newest,
    }


def _terms(run: Run, record: RoundRecord) -> str:
    """Return what a decision about the newest model has to name, and for how many days it may count.

    Empty before a model is trained; the page on which people decide reads it.
    """
    if record.round == 0:
        return ""
    days = run.study.promotion.approval_days if run.study.promotion else 1
    return canonical({**terms_of(run, record).model_dump(mode="json"), "days": days}).decode()


OFFICERS = ", `papers/` what data-protection officers and regulators ask for"


def _note(run: Run, record: RoundRecord, status: str, waits: str) -> str:
    """Return the note on a run's page in Markdown; it repeats what MLflow cuts off in tags."""
    study = run.study
    return "\n\n".join(
        [
            f"**Released**: {status}. **Waits for**: {waits}.",
            f"Round {record.round} of {study.rounds} is recorded; {len(record.releases)} hospitals "
            f"contributed to it, missing: {_missing(record)}. `report.html` among the artifacts has "
            f"the rest{OFFICERS if record.round == study.rounds else ''}.",
            study.purpose or study.name,
        ]
    )


def _missing(record: RoundRecord) -> str:
    return ", ".join(record.absences("release")) or "nobody"


def versions() -> dict[str, str]:
    """Return the versions of the libraries with which a run was begun, as parameters."""
    return {f"version/{name}": number for name, number in installed().items()}


def caveats(record: RoundRecord, site: str) -> dict[str, str]:
    """Return as tags the caveats about a hospital's figures and epsilon."""
    tags = {}
    if site in record.scores:
        tags["wardround.metrics"] = POLICIES[record.scores[site].statement.metrics_policy]
    if site in record.releases:
        release = record.releases[site].statement
        tags["wardround.noise"] = release.noise
        if release.plain_releases:
            tags["wardround.plain_releases"] = str(release.plain_releases)
    return tags


def site_metrics(
    record: RoundRecord, site: str, hospital: Participant, start: RoundRecord
) -> dict[str, float]:
    """Return the metrics of one hospital after a round; `start` is the record of round 0."""
    values = {f"val/{name}": value for name, value in record.metrics.get(site, {}).items()}
    values |= _gain(record, record.metrics.get(site, {}), start.metrics.get(site, {}))
    if site in record.releases:
        release = record.releases[site].statement
        values |= _privacy(release) | {"exchange/bytes_up": float(release.payload_bytes)}
        if release.epsilon is not None:
            values["privacy/budget"] = hospital.statement.budget.epsilon
    if site in record.hospitals and (seconds := record.hospitals[site].seconds) is not None:
        values["perf/train_seconds"] = seconds
    return values


def global_metrics(
    record: RoundRecord, hospitals: Mapping[str, Participant], start: RoundRecord
) -> dict[str, float]:
    """Return the metrics of all hospitals together; an epsilon is the largest of any.

    Args:
        start: the record of round 0.
    """
    values = {f"val/{name}": value for name, value in record.quality.items()}
    values |= _gain(record, record.quality, start.quality)
    values |= {f"val/{name}": value for name, value in fairness(record.metrics).items()}
    values |= {f"val/{name}": value for name, value in by_group(record.metrics, hospitals).items()}
    releases = [release.statement for release in record.releases.values()]
    spent = [_privacy(release) for release in releases]
    for name in sorted({name for epsilons in spent for name in epsilons}):
        values[name] = max(epsilons[name] for epsilons in spent if name in epsilons)
    values["exchange/bytes_up"] = float(sum(release.payload_bytes for release in releases))
    values["perf/round_seconds"] = record.seconds
    values["sites/contributed"] = float(len(releases))
    return values


def _gain(record: RoundRecord, now: Mapping[str, float], start: Mapping[str, float]) -> dict[str, float]:
    """Return `gain/<metric>`: by how much the headline metric has grown since the start."""
    name = record.headline
    if record.round == 0 or name is None or name not in now or name not in start:
        return {}
    return {f"gain/{name}": now[name] - start[name]}


def fairness(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return `worst_site/<metric>` and `gap/<metric>` over the hospitals that published a metric.

    >>> fairness({"a": {"dice": 0.75}, "b": {"dice": 0.5}})
    {'worst_site/dice': 0.5, 'gap/dice': 0.25}
    """
    found: dict[str, float] = {}
    for name in sorted({name for each in metrics.values() for name in each if "/" not in name}):
        values = [each[name] for each in metrics.values() if name in each]
        found[f"worst_site/{name}"] = max(values) if name in LOWER_IS_BETTER else min(values)
        found[f"gap/{name}"] = max(values) - min(values)
    return found


def cross_site_csv(record: RoundRecord) -> str:
    """Return the metrics of each hospital's released model at each: a line for each pair and metric."""
    rows = [
        f"{at},{of},{name},{value:.6g}"
        for at, row in sorted(record.cross_site.items())
        for of, metrics in sorted(row.items())
        for name, value in sorted(metrics.items())
    ]
    return "\n".join(["scored at,model of,metric,value", *rows]) + "\n"


def by_group(
    metrics: Mapping[str, Mapping[str, float]], hospitals: Mapping[str, Participant]
) -> dict[str, float]:
    """Return `group/<metric>-<group>`: declared-n means over the hospitals of a declared group."""
    found: dict[str, float] = {}
    group_of = {site: hospital.statement.group for site, hospital in hospitals.items()}
    for group in sorted({group for group in group_of.values() if group}):
        inside = {site: each for site, each in metrics.items() if group_of[site] == group}
        for name in sorted({name for each in inside.values() for name in each if "/" not in name}):
            pairs = [
                (hospitals[site].statement.declared_training, each[name])
                for site, each in inside.items()
                if name in each
            ]
            mean = sum(n * value for n, value in pairs) / sum(n for n, _ in pairs)
            found[f"group/{name}-{group}"] = mean
    return found


def _privacy(release: ReleaseManifest) -> dict[str, float]:
    if release.epsilon is None:
        return {}
    reported = {f"privacy/epsilon_{name}": eps for name, eps in release.epsilon_reported.items()}
    return {"privacy/epsilon": release.epsilon, **reported}
