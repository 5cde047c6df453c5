"""Who takes part in a run: who accepted at its start, who joins later, who has left."""

from collections.abc import Iterable, Mapping

from flows.rounds import Answers, TooFewHospitals, check_addressed
from flows.run import Participant, Run
from models.checkpoints import CorruptCheckpoint
from privacy.release import Acceptance, Departure, RejectedRelease, parse_statement
from privacy.signing import BadSignature, verified
from sites.exchange import statement_place


def participants(run: Run, answers: Answers) -> dict[str, Participant]:
    """Return the hospitals that accepted; raise `TooFewHospitals` under the study's minimum."""
    accepted = {
        site: _participant(run, statement, since=1)
        for site, statement in answers.taken.items()
        if isinstance(statement, Acceptance)
    }
    if len(accepted) < run.study.sites.min:
        raise TooFewHospitals(len(accepted), run.study, answers.left_out, round=None)
    return accepted


def absent(run: Run) -> list[str]:
    """Return the hospitals of the roster that take no part and may still."""
    gone = run.description.participants.keys() | run.description.departed.keys()
    return sorted(run.description.roster.keys() - gone)


def before_round(run: Run, number: int, asked: int) -> Run:
    """Return the run with whom has accepted meanwhile, without whom has left.

    Args:
        asked: the round in which absent hospitals were asked to join; a late answer to the run's first
            question counts too.
    """
    known, rounds = run.description, (asked, 0)
    joined = {
        site: _participant(run, statement, since=number)
        for site in absent(run)
        for statement in [_newest(run, site, "join", rounds)]
        if isinstance(statement, Acceptance)
    }
    left = {
        site: known.participants[site]
        for site in known.participants
        if isinstance(_newest(run, site, "leave", [0]), Departure)
    }
    if not joined and not left:
        return run
    staying = {site: member for site, member in known.participants.items() if site not in left}
    return run.with_participants(
        {**staying, **joined},
        {site: reason for site, reason in known.refused.items() if site not in joined},
        {**known.departed, **left},
    )


def with_roster(run: Run, roster: Mapping[str, str]) -> Run:
    """Return a run that goes on under another roster: who is no longer on it has left.

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
        declared_patients=statement.declared_patients,
        declared_training=statement.declared_training,
        steps=statement.steps,
        budget=statement.budget,
        version=statement.version,
        code_sha256=statement.code_sha256,
        since=since,
    )


def _newest(run: Run, site: str, act: str, rounds: Iterable[int]) -> object:
    """Return a hospital's newest statement on an act that counts, None where there is none."""
    for round in rounds:
        try:
            data = run.exchange.statement(statement_place(run.name, round, act, site))
            if data is None:
                continue
            statement = parse_statement(verified(data, site, run.description.roster))
            check_addressed(run, round, act, site, statement)
        except (BadSignature, RejectedRelease, CorruptCheckpoint, OSError):
            continue
        return statement
    return None
