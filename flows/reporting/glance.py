"""A model at a glance: what it is for, how good, for whom worse, what privacy costs, what is missing."""

from collections.abc import Iterator, Sequence

from flows.audits.records import audit_of
from flows.decisions import chain, release_status
from flows.reporting.caveats import caveats
from flows.runs.records import RoundRecord, newest_scored
from flows.runs.run import Run
from models.settings.metrics import LOWER_IS_BETTER

ASKED = ("intended_use", "intended_users", "out_of_scope", "training_data", "evaluation_data")
"""Fields of a card that whoever decides needs."""


def glance(run: Run, records: Sequence[RoundRecord]) -> list[tuple[str, str]]:
    """Return the five questions of whoever decides, each with its answer in a sentence or two."""
    return [
        ("What is it for?", run.study.card.intended_use or "Not stated."),
        ("How good is it?", good_at(records) or "Not known: no hospital publishes its metrics."),
        ("For whom is it worse?", worse_at(records) or "Not known: no hospital publishes its own."),
        ("What does privacy cost?", privacy_costs(run, records) or "No release is on record yet."),
        ("What is missing?", "; ".join(missing(run, records)) or "Nothing that is asked for."),
    ]


def good_at(records: Sequence[RoundRecord]) -> str:
    """Return the headline metric over all hospitals, before training and now; empty if not known."""
    first, scored = records[0], newest_scored(records)
    name = scored.headline
    if name is None or name not in scored.quality:
        return ""
    before = first.quality.get(name)
    was = "" if before is None or scored is first else f", {before:.3f} before training"
    where = f"over {_count(scored, name)} hospitals"
    return f"{name} {scored.quality[name]:.3f} {where}{was}{_of(scored, records)}."


def worse_at(records: Sequence[RoundRecord]) -> str:
    """Return the worst hospital, and those worse than before training; empty if not known."""
    first, scored = records[0], newest_scored(records)
    name = scored.headline
    values = {site: each[name] for site, each in scored.metrics.items() if name in each} if name else {}
    if not values or name is None:
        return ""
    sign = -1 if name in LOWER_IS_BETTER else 1
    worst = min(values, key=lambda site: sign * values[site])
    begun = {site: first.metrics.get(site, {}).get(name) for site in values}
    fallen = [s for s, was in begun.items() if was is not None and sign * values[s] < sign * was]
    text = f"{worst} has the worst {name}: {values[worst]:.3f}{_of(scored, records)}."
    if fallen:
        text += f" Worse than before training at {', '.join(sorted(fallen))}."
    return text + _worst_part(name, first, scored)


def _worst_part(name: str, first: RoundRecord, scored: RoundRecord) -> str:
    """Return the structure with the worst mean, such as `dice/tail`; empty with fewer than two."""
    parts = {key: value for key, value in scored.quality.items() if key.startswith(f"{name}/")}
    if len(parts) < 2:
        return ""
    worst = min(parts, key=lambda key: (-1 if name in LOWER_IS_BETTER else 1) * parts[key])
    before = first.quality.get(worst)
    was = "" if before is None or scored is first else f" ({before:.3f} before training)"
    return f" Worst structure: {worst.partition('/')[2]}, {parts[worst]:.3f}{was}."


def _count(record: RoundRecord, name: str) -> int:
    """Return the number of hospitals whose metric is in the mean, or in the sum over all of them."""
    if record.metrics_sum and record.metrics_sum.phases:
        return len(set.intersection(*map(set, record.metrics_sum.phases.values())))
    return sum(name in each for each in record.metrics.values())


def _of(scored: RoundRecord, records: Sequence[RoundRecord]) -> str:
    """Return which model figures are of, where it is not the newest."""
    return "" if scored.round == records[-1].round else f" (the model of round {scored.round})"


def privacy_costs(run: Run, records: Sequence[RoundRecord]) -> str:
    """Return the largest epsilon of a hospital's releases, with its caveats; empty before any."""
    privacy = run.study.privacy
    if privacy.mode == "none":
        return "There is no privacy guarantee: the model may give its training patients away."
    newest = {site: each.statement for record in records for site, each in record.releases.items()}
    spent = {site: each.epsilon for site, each in newest.items() if each.epsilon is not None}
    if not spent:
        return ""
    most = max(spent, key=lambda site: spent[site])
    beside = sorted({text for each in newest.values() for text in caveats(each)})
    return (
        f"Epsilon {spent[most]:.2f} at delta {privacy.delta:g} for each {privacy.unit}, the most at "
        f"{most}, for the releases of this run; the study's limit is {privacy.epsilon:g}."
        f"{''.join(f' But: {text}.' for text in beside)}"
    )


def missing(run: Run, records: Sequence[RoundRecord]) -> Iterator[str]:
    """Yield what whoever decides would want and nobody has recorded."""
    last, scored = records[-1], newest_scored(records)
    if last.round < run.study.rounds:
        yield f"rounds {last.round + 1} to {run.study.rounds} of the training"
    if unsaid := [name.replace("_", " ") for name in ASKED if not getattr(run.study.card, name)]:
        yield f"the card does not state: {', '.join(unsaid)}"
    if scored.round != last.round:
        yield f"an evaluation of the model after round {last.round}"
    silent = sorted(run.description.everybody.keys() - scored.metrics.keys())
    if silent and not run.study.evaluation.summed:
        yield f"metrics of {', '.join(silent)}"
    audit = audit_of(run, last.round)
    if run.study.privacy.mode != "none" and audit is None:
        yield "a privacy audit of this model"
    elif audit is not None and not audit.figures:
        yield "results of attacks: no hospital published any"
    if run.study.promotion is None:
        yield "criteria for a release (`promotion` in the study)"
    else:
        waits = release_status.waits_for(chain.decisions(run), last.round)
        if not waits.startswith("nobody"):
            yield f"a decision: {waits}"
