"""A model at a glance: what it is for, how good, for whom worse, what privacy costs, what is missing."""

from collections.abc import Iterator, Sequence

from flows.audits.records import audit_of
from flows.decisions import chain, release_status
from flows.runs.records import RoundRecord, newest_scored
from flows.runs.run import Run
from models.settings.metrics import LOWER_IS_BETTER

ASKED = ("intended_use", "intended_users", "out_of_scope", "training_data", "evaluation_data")
"""Fields of a card that whoever decides needs."""


def glance(run: Run, records: Sequence[RoundRecord]) -> list[tuple[str, str]]:
    """Return the five questions of whoever decides, each with its answer in a sentence or two."""
    return [
        ("What is it for?", run.study.card.intended_use or "Not stated."),
        ("How good is it?", good_at(records)),
        ("For whom is it worse?", worse_at(records)),
        ("What does privacy cost?", privacy_costs(run, records)),
        ("What is missing?", "; ".join(missing(run, records)) or "Nothing that is asked for."),
    ]


def good_at(records: Sequence[RoundRecord]) -> str:
    """Return the headline metric over all hospitals, before training and now."""
    first, last = records[0], newest_scored(records)
    name = last.headline
    if name is None or name not in last.quality:
        return "Not known: no hospital publishes its metrics."
    before = first.quality.get(name)
    was = "" if before is None else f", {before:.3f} before training"
    return f"{name} {last.quality[name]:.3f} over {len(last.metrics) or 'all'} hospitals{was}."


def worse_at(records: Sequence[RoundRecord]) -> str:
    """Return the worst hospital, and those where the model is worse than its start."""
    first, last = records[0], newest_scored(records)
    name = last.headline
    values = {site: each[name] for site, each in last.metrics.items() if name in each} if name else {}
    if not values:
        return "Not known: no hospital publishes its own metrics."
    sign = -1 if name in LOWER_IS_BETTER else 1
    worst = min(values, key=lambda site: sign * values[site])
    begun = {site: first.metrics.get(site, {}).get(name or "") for site in values}
    fallen = [s for s, was in begun.items() if was is not None and sign * values[s] < sign * was]
    text = f"{worst} has the lowest {name}: {values[worst]:.3f}."
    if fallen:
        text += f" Worse than before training at {', '.join(sorted(fallen))}."
    return text


def privacy_costs(run: Run, records: Sequence[RoundRecord]) -> str:
    """Return the largest epsilon that any patient has been charged in the run."""
    privacy = run.study.privacy
    if privacy.mode == "none":
        return "There is no privacy guarantee: the model may give its training patients away."
    spent = {
        site: each.statement.epsilon
        for record in records
        for site, each in record.releases.items()
        if each.statement.epsilon is not None
    }
    if not spent:
        return "Nothing has been charged yet."
    most = max(spent, key=lambda site: spent[site])
    return (
        f"Epsilon {spent[most]:.2f} at delta {privacy.delta:g} for each {privacy.unit}, the most at "
        f"{most}; "
        f"the study's limit is {privacy.epsilon:g}."
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
    if run.study.privacy.mode != "none" and audit_of(run, last.round) is None:
        yield "a privacy audit of this model"
    if run.study.promotion is None:
        yield "criteria for a release (`promotion` in the study)"
    else:
        waits = release_status.waits_for(chain.decisions(run), last.round)
        if not waits.startswith("nobody"):
            yield f"a decision: {waits}"
