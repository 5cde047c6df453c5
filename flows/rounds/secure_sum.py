"""A round's secure sum, as the coordinator leads it: five phases, each a signed statement of each
member.

| phase           | a hospital's statement                     | the coordinator needs          |
|-----------------|--------------------------------------------|--------------------------------|
| `sum-keys`      | fresh public keys                          | the study's minimum            |
| `sum-shares`    | sealed shares of its secrets               | the threshold                  |
| `contribute`    | its masked vector                          | the threshold                  |
| `sum-survivors` | the list of those who sent one             | the threshold, with one list   |
| `sum-opening`   | shares that unmask the sum over that list  | the threshold                  |

If too few answer, another attempt begins with another roster: fresh keys, fresh noise, a charge of its
own. The members of each phase are stored once they are decided, so an interrupted attempt goes on as it
was.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from flows.rounds import releases
from flows.rounds.statements import Answers, TooFewHospitals, recorded, statement_named
from flows.rounds.sum_progress import declared, progress, store, terms_of
from flows.runs.records import Absence, RoundRecord, Signed, SumRecord
from flows.runs.run import Run
from models import checkpoints
from models.params import Params
from privacy.release import (
    MOST_ATTEMPTS,
    Statement,
    SumKeys,
    SumOpening,
    SumShares,
    SumSurvivors,
)
from privacy.secure_aggregation.fixed_point import CHANGE_GRID, MASKED, params_of
from privacy.secure_aggregation.keys import BadShare
from privacy.secure_aggregation.masking import Opening, opened_secrets, unmask
from privacy.secure_aggregation.ring import Vector, signed
from privacy.secure_aggregation.terms import BadTerms, Terms
from privacy.shared_noise import SharedGaussian
from sites.exchange.exchange import COORDINATOR
from sites.orders import Phase, act_of
from sites.secure_sum.relay import bundle
from sites.study import Study

S = TypeVar("S", bound=Statement)
Ask = Callable[[Run, int, Phase, Sequence[str]], Answers]
"""`(run, round, phase, sites) -> answers`: asks hospitals and waits for them."""


class AttemptFailed(Exception):
    """Too few hospitals for one attempt; the answers name each one's reason."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers


def contribute(run: Run, number: int, base: RoundRecord, ask: Ask) -> Answers:
    """Lead a round's secure sum to its end; return the releases that are in it.

    Raises:
        TooFewHospitals: no attempt found enough hospitals. The next start begins another attempt.
    """
    sites, last = sorted(run.description.participants), Answers({}, {})
    for _ in range(1 + spare_of(run.study)):
        record = progress(run, number)
        if record.failed and record.attempt == MOST_ATTEMPTS:
            break
        if record.failed:
            record = SumRecord(attempt=record.attempt + 1)
            store(run, number, record)
        try:
            return _attempt(run, number, base, sites, ask)
        except AttemptFailed as failed:
            last = failed.answers
            store(run, number, progress(run, number).model_copy(update={"failed": True}))
    raise TooFewHospitals(len(last.taken), run.study, last.absent, number)


def spare_of(study: Study) -> int:
    """Return how many attempts a study pays for beyond one a round."""
    return study.privacy.spare if study.privacy.mode != "none" else 0


def _attempt(run: Run, number: int, base: RoundRecord, sites: Sequence[str], ask: Ask) -> Answers:
    keys = _phase(run, number, "sum-keys", SumKeys, sites, ask, run.study.sites.min)
    for site, signed_keys in keys.taken.items():
        _check_weight(run, number, site, signed_keys)
    try:
        terms = terms_of(run, number, len(keys.taken))
    except BadTerms as error:
        raise AttemptFailed(keys) from error
    shares = _phase(run, number, "sum-shares", SumShares, sorted(keys.taken), ask, terms.threshold)
    taken = _releases(run, number, base, sorted(shares.taken), ask, terms)
    survivors = sorted(taken.taken)
    lists = _phase(run, number, "sum-survivors", SumSurvivors, survivors, ask, terms.threshold)
    openings = _phase(run, number, "sum-opening", SumOpening, sorted(lists.taken), ask, terms.threshold)
    try:
        opened_secrets(survivors, opening_of(run, number, progress(run, number)), terms)
    except BadShare as error:
        wrong = Absence(kind="rejected", text=str(error))
        raise AttemptFailed(Answers({}, dict.fromkeys(openings.taken, wrong))) from error
    absent = {site: why for each in (keys, shares, taken) for site, why in each.absent.items()}
    return Answers(taken.taken, absent)


def _check_weight(run: Run, number: int, site: str, keys: Signed[Statement]) -> None:
    """Raise `AttemptFailed` if a member's weight is not what it declared when it joined."""
    due = run.description.member(site, number).statement.declared_training
    if not isinstance(keys.statement, SumKeys) or keys.statement.declared_training != due:
        why = Absence(kind="rejected", text=f"expected the declared {due} patients of its acceptance")
        raise AttemptFailed(Answers({}, {site: why}))


def _phase(
    run: Run, number: int, phase: Phase, kind: type[Statement], sites: Sequence[str], ask: Ask, fewest:
    int
) -> Answers:  # fmt: skip
    """Return the answers of one phase; those of an interrupted attempt stay what they were."""
    known = progress(run, number).members(phase)
    found = ask(run, number, phase, sorted(known or sites))
    wrong = Absence(kind="rejected", text=f"expected its {phase}")
    taken = {
        site: each
        for site, each in found.taken.items()
        if isinstance(each.statement, kind) and (not known or known.get(site) == each.statement_sha256)
    }
    absent = dict(found.absent) | dict.fromkeys(found.taken.keys() - taken.keys(), wrong)
    answers = Answers(taken, absent)
    if len(taken) < fewest or len(taken) < len(known):
        raise AttemptFailed(answers)
    _decide(run, number, phase, taken)
    return answers


def _releases(
    run: Run, number: int, base: RoundRecord, sites: Sequence[str], ask: Ask, terms: Terms
) -> Answers:
    """Return the members' masked releases that fit."""
    taken = releases.decided(run, number)
    if taken is None:
        try:
            taken = releases.accept_releases(
                run, number, base, ask(run, number, "contribute", sites), fewest=terms.threshold
            )
        except TooFewHospitals as error:
            raise AttemptFailed(Answers({}, error.absent)) from error
    _decide(run, number, "contribute", taken.taken)
    return taken


def _decide(run: Run, number: int, phase: Phase, taken: Mapping[str, Signed[Statement]]) -> None:
    """Store the members of a phase, and what the next phase passes on to hospitals."""
    record = progress(run, number)
    if record.members(phase):
        return
    act = act_of(phase, record.attempt)
    passed = {
        site: statement_named(run, number, act, site, each.statement_sha256)
        for site, each in taken.items()
    }
    relay = run.exchange.put_object(bundle(passed), COORDINATOR)
    members = {site: each.statement_sha256 for site, each in sorted(taken.items())}
    decided = {**record.phases, phase: members}
    store(run, number, record.model_copy(update={"phases": decided, "relay": relay}))


def mean_change(run: Run, number: int, template: Params) -> Params:
    """Return the mean change of the parameters that a round's secure sum stands for.

    A sum of gradients moves against them, at the round's learning rate, over all declared patients.

    Raises:
        ValueError: the opened shares do not unmask the sum.
    """
    record = progress(run, number)
    survivors = sorted(record.members("contribute"))
    opening = opening_of(run, number, record)
    terms = terms_of(run, number, len(opening.numbers), record.attempt)
    try:
        total = unmask((_vector(run, number, site) for site in survivors), survivors, opening, terms)
    except BadShare as error:
        raise ValueError(f"The sum of round {number} can't be unmasked: {error}") from error
    return params_of(signed(total), _unit(run, number, record, len(total), terms), template)


def _unit(run: Run, number: int, record: SumRecord, numel: int, terms: Terms) -> float:
    """Return what one unit of the sum stands for in the mean change."""
    everybody = declared(run, number, record.members("sum-keys"))
    patients = declared(run, number, record.members("contribute"))
    if run.study.export != "gradient_sum":
        return CHANGE_GRID * everybody / patients
    site = min(record.members("contribute"))
    mechanism = releases.mechanism_of(run, site, number)
    training = run.study.training.at_rate(run.rate)
    rate = training.in_round(number, run.study.rounds).step_size
    return -rate * SharedGaussian(mechanism, numel, terms.honest).grid / patients


def opening_of(run: Run, number: int, record: SumRecord) -> Opening:
    """Return what the members of an attempt have announced and revealed, from the exchange."""
    keys = statements_in(run, number, record, "sum-keys", SumKeys)
    shares = statements_in(run, number, record, "sum-shares", SumShares)
    openings = statements_in(run, number, record, "sum-opening", SumOpening)
    survivors = record.members("contribute")

    def revealed(whose: str, part: str) -> dict[str, bytes]:
        found = {giver: getattr(each, part).get(whose) for giver, each in openings.items()}
        return {giver: bytes.fromhex(share) for giver, share in found.items() if share is not None}

    return Opening(
        numbers={site: number for number, site in enumerate(sorted(keys), start=1)},
        public={site: keys[site].pair for site in shares},
        commitments={site: each.commitment for site, each in shares.items()},
        own={site: revealed(site, "own") for site in survivors},
        pair={site: revealed(site, "pair") for site in shares.keys() - survivors.keys()},
    )


def statements_in(
    run: Run, number: int, record: SumRecord, phase: Phase, kind: type[S]
) -> dict[str, S]:  # fmt: skip
    """Return the members' statements of a phase from the exchange, by the hashes that a record names.

    Raises:
        BadSignature: no key that a hospital had in this run signed it.
        RejectedRelease: it is about another act.
        LookupError: there is none, or another one than the record names.
        ValueError: it is of another kind.
    """
    act = act_of(phase, record.attempt)
    found: dict[str, S] = {}
    for site, sha256 in record.members(phase).items():
        statement = recorded(run, number, act, site, sha256)
        if not isinstance(statement, kind):
            raise ValueError(f"Expected the {phase} of {site}, got a {statement.kind}.")
        found[site] = statement
    return found


def _vector(run: Run, number: int, site: str) -> Vector:
    stored = checkpoints.StoredParams(releases.release_path(run, number, site))
    return stored[MASKED].numpy().view("uint32")
