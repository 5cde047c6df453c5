"""Members of a run: who accepted at its start, who joins later, who has left."""

import math
from collections.abc import Iterable, Mapping

from flows.rounds.statements import Answers, TooFewHospitals, answers, has_left
from flows.runs.records import Participant, Signed
from flows.runs.run import Run
from privacy.statements import Acceptance, Statement


def participants(run: Run, asked: Answers) -> dict[str, Participant]:
    """Return the hospitals that accepted; raise `TooFewHospitals` under the study's minimum."""
    accepted = {
        site: _participant(run, signed, since=1)
        for site, signed in asked.taken.items()
        if isinstance(signed.statement, Acceptance)
    }
    if len(accepted) < run.study.sites.min:
        raise TooFewHospitals(len(accepted), run.study, asked.absent, round=None)
    return accepted


def absent(run: Run) -> list[str]:
    """Return the hospitals of the roster that take no part and may still join."""
    others = run.description.roster.keys() - run.description.participants.keys()
    return sorted(site for site in others if not has_left(run, site))


def has_changed(run: Run, number: int, invited: int) -> bool:
    """Return whether `before_round` would change the run's members."""
    return any(_changes(run, number, invited))


def before_round(run: Run, number: int, invited: int) -> Run:
    """Return the run with the hospitals that accepted meanwhile, without those that have left.

    The run keeps the earlier acceptances of a hospital that comes back, and why it had refused.

    Args:
        invited: the round in whose name absent hospitals were invited; a late answer to the run's first
            question counts too.
    """
    known = run.description
    joined, left = _changes(run, number, invited)
    if not joined and not left:
        return run
    staying = {site: member for site, member in known.participants.items() if site not in left}
    back = joined.keys() & known.departed.keys()
    return run.with_participants(
        {**staying, **joined},
        known.refused,
        {**{site: m for site, m in known.departed.items() if site not in joined}, **left},
        former=known.former | {site: known.acceptances(site) for site in back},
    )


def _changes(
    run: Run, number: int, invited: int
) -> tuple[dict[str, Participant], dict[str, Participant]]:
    """Return the hospitals that accepted meanwhile, and those that have left."""
    joined = {
        site: _participant(run, signed, since=number)
        for site in absent(run)
        for signed in [_acceptance(run, site, (invited, 0))]
        if signed
    }
    members = run.description.participants
    return joined, {site: member for site, member in members.items() if has_left(run, site)}


def with_roster(run: Run, roster: Mapping[str, str], most_patients: Mapping[str, int]) -> Run:
    """Return a run that goes on under another roster.

    A hospital that is not on it, or has declared more patients than it may now, takes no part while that
    is so. Keys that have changed hold from now on.
    """
    known = run.description
    if (roster, most_patients) == (known.roster, known.most_patients):
        return run
    staying = {
        site: member.model_copy(update={"key": roster[site]})
        for site, member in known.participants.items()
        if site in roster and member.statement.declared_patients <= most_patients.get(site, math.inf)
    }
    left = {site: member for site, member in known.participants.items() if site not in staying}
    return run.with_participants(
        staying,
        known.refused,
        {**known.departed, **left},
        roster,
        most_patients=most_patients,
    )


def _participant(run: Run, signed: Signed[Statement], since: int) -> Participant:
    key = run.description.roster[signed.statement.site]
    return Participant(**dict(signed), key=key, since=since)


def _acceptance(run: Run, site: str, rounds: Iterable[int]) -> Signed[Statement] | None:
    """Return a hospital's acceptance in the first of these rounds that has one, None where none has."""
    for round in rounds:
        signed = answers(run, round, "join", [site]).taken.get(site)
        if signed and isinstance(signed.statement, Acceptance):
            return signed
    return None
