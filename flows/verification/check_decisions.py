"""Checks of decisions: signers, models, the exchange, and the needs of a release."""

from collections.abc import Iterator, Sequence

from flows.decisions import chain
from flows.decisions.criteria import criteria_of
from flows.decisions.people import ROLES, People, load_people
from flows.decisions.verdicts import Decision, terms_of
from flows.runs.records import RoundRecord
from flows.runs.run import Run
from sites.exchange.places import Place


def decision_faults(
    run: Run,
    records: Sequence[RoundRecord],
    known: Sequence[Decision],
    people: People | None,
    expected: str,
) -> Iterator[str]:
    """Yield faults in the decisions about a run's models.

    Args:
        people: who may decide, by a file of the reader's own; None for the coordinator's `people.yaml`.
        expected: the sha256 of a decision that the reader knows of, empty if none.
    """
    if people is None and any(each.signed for each in known):
        people = load_people(run.home)
    if expected and expected not in chain.heads(run):
        yield f"The decision {expected}, which you know of, is not among the run's."
    for decision in known:
        verdict = decision.verdict
        if verdict and people and not people.knows(verdict.person, verdict.role, decision.public_key):
            yield f"Decision {decision.number} has a key of {verdict.person} that people.yaml lacks."
        yield from _terms_faults(run, records, known, decision)
    here = chain.folder_bytes(run)
    for number in range(1, len(here) + 2):
        there = run.exchange.statement(Place.decision(run.name, number))
        if there != here.get(number):
            yield f"Decision {number} is not the same here and in the exchange."


def _terms_faults(
    run: Run, records: Sequence[RoundRecord], known: Sequence[Decision], decision: Decision
) -> Iterator[str]:
    terms = decision.terms
    by_round = {record.round: record for record in records}
    record = by_round.get(terms.round) if terms else None
    if terms is None or record is None or terms_of(run, record) != terms:
        yield f"Decision {decision.number} is about no model of this run."
    elif decision.outcome and decision.outcome.what == "released":
        met = {e.criterion for e in decision.outcome.evidence if e.is_met}
        missing = criteria_of(run.study) - met
        given = chain.approvals(known[: decision.number - 1], terms, decision.at_ms)
        if missing or set(given) != set(ROLES):
            yield f"Decision {decision.number} released a model without evidence or approvals for it."
