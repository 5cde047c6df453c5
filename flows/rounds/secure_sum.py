"""A secure sum, as the coordinator leads it: five phases, in each a statement of each member.

| phase           | a hospital's statement                     | the coordinator needs          |
|-----------------|--------------------------------------------|--------------------------------|
| `sum-keys`      | fresh public keys                          | the study's minimum            |
| `sum-shares`    | sealed shares of its secrets               | the threshold                  |
| `contribute`    | its masked vector                          | the threshold                  |
| `sum-survivors` | the list of those who sent one             | the threshold, with one list   |
| `sum-opening`   | shares that unmask the sum over that list  | the threshold                  |

These are the phases for a round's releases; metrics and surveys have their own (`sites.orders`).
If too few answer, another attempt at the releases begins with another roster: fresh keys, fresh noise, a
charge of its own. The members of each phase are stored once they are decided, so an interrupted attempt
goes on as it was.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from flows.rounds import releases
from flows.rounds.statements import Answers, TooFewHospitals, parse_signed
from flows.rounds.statements import signed as signed_statement
from flows.rounds.sum_progress import decide, declared, passed_on, progress, store, terms_of
from flows.rounds.sum_statements import fitting
from flows.runs.records import Absence, RoundRecord, Signed, SumRecord
from flows.runs.run import Run
from models import checkpoints
from models.errors import AskSomebody
from models.files import sha256_of
from models.params import Params
from privacy.secure_aggregation.fixed_point import CHANGE_GRID, MASKED, params_of
from privacy.secure_aggregation.keys import BadShare
from privacy.secure_aggregation.masking import Opening, opened_secrets, unmask
from privacy.secure_aggregation.ring import Vector, signed
from privacy.secure_aggregation.terms import BadTerms, Terms
from privacy.shared_noise import SharedGaussian
from privacy.statements import MOST_ATTEMPTS, Statement, SumKeys, SumOpening, SumShares
from sites.exchange.phases import SUMS, Phase, SumKind, act_of

S = TypeVar("S", bound=Statement)
Ask = Callable[[Run, int, Phase, Sequence[str]], Answers]
"""`(run, round, phase, sites) -> answers`: asks hospitals and waits for them."""
Vectors = Callable[[Sequence[str], Terms], Answers]
"""`(sites, terms) -> answers`: returns the members' statements with masked vectors that fit."""


TOO_FEW = Absence(kind="missing", text="too few hospitals took part in the sum of the figures")


class AttemptFailed(Exception):
    """Too few hospitals for one attempt; the answers name each one's reason.

    `is_free` states whether nothing of the attempt is decided, so that it can go on later.
    """

    def __init__(self, answers: Answers, fewest: int, *, is_free: bool = False) -> None:
        self.answers, self.fewest, self.is_free = answers, fewest, is_free


class NoAttemptLeft(AskSomebody):
    """A round has had as many attempts at its secure sum as there may be."""

    def __init__(self, round: int) -> None:
        super().__init__(
            f"Expected a secure sum of round {round} within {MOST_ATTEMPTS} attempts; each found too "
            f"few hospitals."
        )
        self.next_step = "ask the hospitals why; `--new` begins another run."


def contribute(run: Run, number: int, base: RoundRecord, ask: Ask) -> Answers:
    """Lead a round's secure sum to its end; return the releases that are in it.

    Raises:
        TooFewHospitals: no attempt found enough hospitals. The next start begins another attempt.
        NoAttemptLeft: the round has had all its attempts.
    """
    failed = AttemptFailed(Answers({}, {}), run.study.sites.min)
    for _ in range(1 + run.study.spare):
        record = progress(run, number)
        if record.failed and record.attempt >= MOST_ATTEMPTS:
            raise NoAttemptLeft(number)
        if record.failed:
            store(run, number, SumRecord(attempt=record.attempt + 1))
        try:
            return _attempt(run, number, "update", ask, partial(_releases, run, number, base, ask))
        except AttemptFailed as error:
            failed = error
        if failed.is_free:
            break
        store(run, number, progress(run, number).model_copy(update={"failed": True}))
    found, absent = len(failed.answers.taken), failed.answers.absent
    raise TooFewHospitals(found, run.study, absent, number, failed.fewest)


def _attempt(run: Run, number: int, kind: SumKind, ask: Ask, vectors: Vectors) -> Answers:
    """Lead one attempt through its phases; those that an interruption left decided stay as they are."""
    phases, everybody = SUMS[kind], asked_in(run, kind)
    absent: dict[str, Absence] = dict(progress(run, number, kind).absent)

    def phase(name: Phase, sites: Iterable[str], fewest: int) -> list[str]:
        decided = progress(run, number, kind).members(name)
        if decided:
            return sorted(decided)
        answers = fitting(run, number, name, ask(run, number, name, sorted(everybody & set(sites))))
        absent.update({site: why for site, why in answers.absent.items() if site not in absent})
        _keep_absent(run, number, kind, absent)
        if len(answers.taken) < fewest:
            raise AttemptFailed(Answers(answers.taken, absent), fewest, is_free=name == phases.keys)
        _decide(run, number, name, answers.taken, fewest)
        return sorted(answers.taken)

    keys = phase(phases.keys, everybody, run.study.sites.min)
    try:
        terms = terms_of(run, number, len(keys), kind=kind)
    except BadTerms as error:
        raise AttemptFailed(Answers({}, absent), run.study.sites.min) from error
    shares = phase(phases.shares, keys, terms.threshold)
    taken = vectors(sorted(everybody & set(shares)), terms)
    _decide(run, number, phases.vector, taken.taken, terms.threshold)
    lists = phase(phases.survivors, taken.taken, terms.threshold)
    phase(phases.opening, lists, terms.threshold)
    try:
        opened_secrets(
            sorted(taken.taken), opening_of(run, number, progress(run, number, kind), kind), terms
        )
    except BadShare as error:
        why = Absence(kind="rejected", text=str(error))
        raise AttemptFailed(Answers({}, dict.fromkeys(lists, why)), terms.threshold) from error
    return Answers(taken.taken, {**absent, **taken.absent})


def _keep_absent(run: Run, number: int, kind: SumKind, absent: Mapping[str, Absence]) -> None:
    """Store why hospitals are not in a sum of figures; those of releases are stored with them."""
    if kind != "update":
        store(run, number, progress(run, number, kind).model_copy(update={"absent": dict(absent)}), kind)


def asked_in(run: Run, kind: SumKind) -> frozenset[str]:
    """Return the hospitals that a sum is asked of: before a survey nobody has joined."""
    return frozenset(run.description.roster if kind == "survey" else run.description.participants)


def _releases(
    run: Run, number: int, base: RoundRecord, ask: Ask, sites: Sequence[str], terms: Terms
) -> Answers:
    """Return the members' masked releases that fit."""
    taken = releases.decided(run, number)
    if taken is None:
        try:
            taken = releases.accept_releases(
                run, number, base, ask(run, number, "contribute", sites), fewest=terms.threshold
            )
        except TooFewHospitals as error:
            raise AttemptFailed(Answers({}, error.absent), terms.threshold) from error
    return taken


def figures(
    run: Run, number: int, kind: SumKind, ask: Ask, fault: Callable[[Statement], str | None]
) -> Answers:
    """Lead a sum of figures to its end; return the statements in it, none where too few take part.

    There is one attempt: figures are worth no second charge.

    Args:
        fault: returns why a statement's figures do not fit the sum, or None.
    """

    def vectors(sites: Sequence[str], terms: Terms) -> Answers:
        phase = SUMS[kind].vector
        if decided := progress(run, number, kind).members(phase):
            return Answers(_decided(run, number, phase, decided), {})
        found = ask(run, number, phase, sites)
        faults = {site: fault(each.statement) for site, each in found.taken.items()}
        taken = {site: each for site, each in found.taken.items() if faults[site] is None}
        wrong = {
            site: Absence(kind="rejected", text=why) for site, why in faults.items() if why is not None
        }
        answers = Answers(taken, {**found.absent, **wrong})
        if len(taken) < terms.threshold:
            raise AttemptFailed(answers, terms.threshold)
        return answers

    try:
        if not progress(run, number, kind).failed:
            return _attempt(run, number, kind, ask, vectors)
    except AttemptFailed as error:
        absent = {**dict.fromkeys(error.answers.taken, TOO_FEW), **error.answers.absent}
        found = progress(run, number, kind)
        others = dict.fromkeys(asked_in(run, kind) - absent.keys() - found.absent.keys(), TOO_FEW)
        kept = {**others, **absent, **found.absent}
        store(run, number, found.model_copy(update={"failed": True, "absent": kept}), kind)
    return Answers({}, progress(run, number, kind).absent)


def _decided(
    run: Run, number: int, phase: Phase, members: Mapping[str, str]
) -> dict[str, Signed[Statement]]:
    """Return the statements of a phase that is decided, as the run's folder has them."""
    kept = passed_on(run, number, 1, phase)
    return {
        site: signed_statement(
            parse_signed(run, number, phase, site, kept[site]), kept[site], run.description.roster[site]
        )
        for site in members
    }


def _decide(
    run: Run, number: int, phase: Phase, taken: Mapping[str, Signed[Statement]], fewest: int
) -> None:
    try:
        decide(run, number, phase, {site: each.statement_sha256 for site, each in taken.items()})
    except LookupError as error:  # somebody has removed it since
        raise AttemptFailed(Answers({}, {}), fewest) from error


def total_of(run: Run, number: int, kind: SumKind, vector: Callable[[str], Vector]) -> NDArray[np.int64]:
    """Return the whole numbers that a sum of a round stands for.

    Args:
        vector: returns the masked vector of a hospital.

    Raises:
        ValueError: the opened shares do not unmask the sum.
    """
    record = progress(run, number, kind)
    survivors = sorted(record.members(SUMS[kind].vector))
    opening = opening_of(run, number, record, kind)
    terms = terms_of(run, number, len(opening.numbers), record.attempt, kind)
    try:
        return signed(unmask((vector(site) for site in survivors), survivors, opening, terms))
    except BadShare as error:
        raise ValueError(f"The sum of round {number} can't be unmasked: {error}") from error


def mean_change(run: Run, number: int, template: Params) -> Params:
    """Return the mean change of the parameters that a round's secure sum stands for.

    A sum of gradients moves against them, at the round's learning rate, over all declared patients; of
    the hospitals' clipped changes it is the plain mean.

    Raises:
        ValueError: the opened shares do not unmask the sum.
    """
    total = total_of(run, number, "update", lambda site: _vector(run, number, site))
    return params_of(total, _unit(run, number, progress(run, number), len(total)), template)


def _unit(run: Run, number: int, record: SumRecord, numel: int) -> float:
    """Return what one unit of the sum stands for in the mean change.

    Each hospital's change counts once where the hospital is the unit of privacy.
    """
    everybody = declared(run, number, record.members("sum-keys"))
    survivors = record.members("contribute")
    patients = declared(run, number, survivors)
    if not run.study.shares_noise:
        return CHANGE_GRID * everybody / patients
    mechanism = releases.mechanism_of(run, min(survivors), number)
    terms = terms_of(run, number, len(record.members("sum-keys")), record.attempt)
    grid = SharedGaussian(mechanism, numel, terms.honest).grid
    if mechanism.unit == "hospital":
        return grid / len(survivors)
    training = run.study.training.at_rate(run.rate)
    rate = training.in_round(number, run.study.rounds).step_size
    return -rate * grid / patients


def opening_of(run: Run, number: int, record: SumRecord, kind: SumKind = "update") -> Opening:
    """Return what the members of an attempt have announced and revealed, from the exchange."""
    phases = SUMS[kind]
    keys = statements_in(run, number, record, phases.keys, SumKeys)
    shares = statements_in(run, number, record, phases.shares, SumShares)
    openings = statements_in(run, number, record, phases.opening, SumOpening)
    survivors = record.members(phases.vector)

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
    """Return the members' statements of a phase as the run's folder has them, by a record's hashes.

    Raises:
        BadSignature: no key that a hospital had in this run signed it.
        RejectedRelease: it is about another act.
        LookupError: the folder has none, or another one than the record names.
        ValueError: it is of another kind.
    """
    act, written = act_of(phase, record.attempt), passed_on(run, number, record.attempt, phase)
    found: dict[str, S] = {}
    for site, sha256 in record.members(phase).items():
        if site not in written or sha256_of(written[site]) != sha256:
            raise LookupError(f"the {phase} of {site} is another statement than the record names.")
        statement = parse_signed(run, number, act, site, written[site])
        if not isinstance(statement, kind):
            raise ValueError(f"Expected the {phase} of {site}, got a {statement.kind}.")
        found[site] = statement
    return found


def _vector(run: Run, number: int, site: str) -> Vector:
    stored = checkpoints.StoredParams(releases.release_path(run, number, site))
    return stored[MASKED].numpy().view("uint32")
