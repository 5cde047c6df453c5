"""Who takes part in a run: who accepted at its start, who joins later, who has left."""

from collections.abc import Iterable, Mapping

from flows.rounds.rounds import Answers, TooFewHospitals, answers, has_left
from flows.runs.run import Participant, Run
from privacy.release import Acceptance


def participants(run: Run, asked: Answers) -> dict[str, Participant]:
    """Return the hospitals that accepted; raise `TooFewHospitals` under the study's minimum."""
    accepted = {
        site: _participant(run, statement, since=1)
        for site, statement in asked.taken.items()
        if isinstance(statement, Acceptance)
    }
    if len(accepted) < run.study.sites.min:
        raise TooFewHospitals(len(accepted), run.study, asked.left_out, round=None)
    return accepted


def absent(run: Run) -> list[str]:
    """Return the hospitals of the roster that take no part and may still."""
    others = run.description.roster.keys() - run.description.participants.keys()
    return sorted(site for site in others if not has_left(run, site))


def before_round(run: Run, number: int, asked: int) -> Run:
    """Return the run with whom has accepted meanwhile, without whom has left.

    Of a hospital that comes back the run keeps what it had declared before, and why it had refused.

    Args:
        asked: the round in which absent hospitals were asked to join; a late answer to the run's first
            question counts too.
    """
    known, rounds = run.description, (asked, 0)
    joined = {
        site: _participant(run, statement, since=number)
        for site in absent(run)
        for statement in [_acceptance(run, site, rounds)]
        if statement
    }
    left = {site: member for site, member in known.participants.items() if has_left(run, site)}
    if not joined and not left:
        return run
    staying = {site: member for site, member in known.participants.items() if site not in left}
    return run.with_participants(
        {**staying, **joined},
        known.refused,
        {**{site: m for site, m in known.departed.items() if site not in joined}, **left},
        former=known.former
        | {site: known.selves(site) for site in joined.keys() & known.departed.keys()},
    )


def with_roster(run: Run, roster: Mapping[str, str]) -> Run:
    """Return a run that goes on under another roster: who is not on it takes no part while that is so.

    Keys that have changed hold from now on.
    """
    known = run.description
    if roster == known.roster:
        return run
    staying = {
        site: member.model_copy(update={"public_key": roster[site]})
        for site, member in known.participants.items()
        if site in roster
    }
    left = {site: member for site, member in known.participants.items() if site not in roster}
    return run.with_participants(staying, known.refused, {**known.departed, **left}, roster)


def _participant(run: Run, statement: Acceptance, since: int) -> Participant:
    return Participant(
        public_key=run.description.roster[statement.site],
        accepted_with=run.description.roster[statement.site],
        declared_patients=statement.declared_patients,
        declared_training=statement.declared_training,
        steps=statement.steps,
        budget=statement.budget,
        version=statement.version,
        code_sha256=statement.code_sha256,
        cross_site=statement.cross_site,
        group=statement.group,
        since=since,
    )


def _acceptance(run: Run, site: str, rounds: Iterable[int]) -> Acceptance | None:
    """Return a hospital's acceptance in the first of these rounds that has one, None where none has."""
    for round in rounds:
        said = answers(run, round, "join", [site]).taken.get(site)
        if isinstance(said, Acceptance):
            return said
    return None
