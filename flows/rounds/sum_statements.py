"""Checks of a secure sum's statements by the coordinator: those that fit are taken, others are named."""

from collections.abc import Mapping

from flows.rounds.statements import Answers
from flows.rounds.sum_progress import progress
from flows.runs.records import Absence, Signed, SumRecord
from flows.runs.run import Run
from privacy.secure_aggregation.keys import BadShare, check_public
from privacy.statements import Statement, SumKeys, SumOpening, SumShares, SumSurvivors
from sites.exchange.phases import SUMS, Phase, SumKind
from sites.orders import sum_of


def fitting(run: Run, number: int, phase: Phase, answers: Answers) -> Answers:
    """Return the answers to a phase less those that other members would refuse, each with the reason."""
    kind = sum_of(run.study, phase) or "update"
    record, absent = progress(run, number, kind), dict(answers.absent)
    taken = {}
    for site, each in answers.taken.items():
        if fault := _fault(run, number, record, kind, phase, site, each.statement):
            absent[site] = Absence(kind="rejected", text=fault)
        else:
            taken[site] = each
    for site in _sharing_keys(taken):
        absent[site] = Absence(
            kind="rejected", text="it announced a key that another hospital announced"
        )
        del taken[site]
    return Answers(taken, absent)


def _fault(
    run: Run,
    number: int,
    record: SumRecord,
    kind: SumKind,
    phase: Phase,
    site: str,
    statement: Statement,
) -> str | None:
    phases = SUMS[kind]
    match phases.part_of(phase), statement:
        case "keys", SumKeys():
            return _key_fault(run, number, site, statement, kind)
        case "shares", SumShares():
            due = record.members(phases.keys)
            fits = dict(statement.members) == due and statement.boxes.keys() == due.keys()
            return None if fits else "its shares are sealed for other members"
        case "survivors", SumSurvivors():
            fits = dict(statement.survivors) == record.members(phases.vector)
            return None if fits else "it signed another list of survivors"
        case "opening", SumOpening():
            summed = set(record.members(phases.vector))
            lost = set(record.members(phases.shares)) - summed
            fits = (set(statement.own), set(statement.pair)) == (summed, lost)
            return None if fits else "it opens other secrets than the list of survivors needs"
    return f"expected its {phase}, got {statement.kind}"


def due_weight(run: Run, number: int, site: str, kind: SumKind) -> int | None:
    """Return a hospital's weight in a sum by its acceptance; None for a survey, before anybody joins."""
    if kind == "survey":
        return None
    joined = run.description.member(site, number).statement
    training = joined.declared_training
    return training if kind == "update" else max(1, joined.declared_patients - training)


def _key_fault(run: Run, number: int, site: str, keys: SumKeys, kind: SumKind) -> str | None:
    due = due_weight(run, number, site, kind)
    if due is not None and keys.weight != due:
        return f"expected the declared {due} patients of its acceptance"
    try:
        check_public(keys.pair)
        check_public(keys.box)
    except BadShare as error:
        return str(error)
    return "its two keys are the same" if keys.pair == keys.box else None


def _sharing_keys(taken: Mapping[str, Signed[Statement]]) -> list[str]:
    """Return the hospitals whose keys another one has announced, too."""
    owners: dict[str, list[str]] = {}
    for site, each in taken.items():
        if isinstance(each.statement, SumKeys):
            for key in (each.statement.pair, each.statement.box):
                owners.setdefault(key, []).append(site)
    return sorted({site for sites in owners.values() if len(sites) > 1 for site in sites})
