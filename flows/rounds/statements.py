"""Orders to hospitals, and their answers: signed statements read from the exchange and checked."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from flows.rounds.sum_progress import act_in, order_part
from flows.runs.records import Absence, Signed
from flows.runs.run import Run
from models.errors import AskSomebody, CorruptCheckpoint
from models.files import sha256_of
from privacy.audit.published import fits_its_noise
from privacy.signing import BadSignature, verified, verified_by_any
from privacy.statements import (
    Acceptance,
    AuditFigures,
    Comparison,
    Departure,
    Refusal,
    RejectedRelease,
    Revocation,
    Scores,
    Statement,
    Survey,
    parse_statement,
)
from sites.exchange.phases import SUMS, Phase, refusal_of
from sites.exchange.places import Place
from sites.orders import Order
from sites.study import Study

PHASES: Mapping[str, Sequence[Phase]] = {
    "none": ("contribute",),
    "local": ("contribute",),
    "masked": SUMS["update"],
    "shared_noise": SUMS["update"],
}
"""The phases of a round, one after the other, by privacy mode."""

AUDITED = frozenset({"mia_auc", "low/mia_auc", "high/mia_auc", "provenance"})
"""The figures that an audit may have."""
SILENT = Absence(kind="missing", text="it did not answer within the deadline")
LEFT = Absence(kind="missing", text="it has left the study")


class TooFewHospitals(AskSomebody):
    """Fewer hospitals than the study's minimum; the message lists each one's reason.

    `begun` states whether the run had begun; if not, nothing was recorded and nothing spent.
    """

    def __init__(
        self, found: int, study: Study, absent: Mapping[str, Absence], round: int | None,
        fewest: int | None = None,
    ) -> None:  # fmt: skip
        self.begun, self.absent = round is not None, dict(absent)
        when = f"in round {round}" if self.begun else "to start a run"
        lines = "".join(f"\n  {site}: {why}" for site, why in sorted(absent.items()))
        super().__init__(
            f"Expected at least {fewest or study.sites.min} hospitals {when} of study {study.name}, "
            f"got {found}.{lines}"
        )
        goes_on = (
            "the same command goes on from the last finished round, `--new` begins another run."
            if self.begun
            else "nothing was recorded or spent; repeat the command then."
        )
        refused = any(why.kind == "refused" for why in absent.values())
        way = "change the study or budget where that is why they refuse (docs/answers.md), or ask them"
        self.next_step = f"{way if refused else 'ask the hospitals that are missing'}; {goes_on}"


@dataclass(frozen=True)
class Answers:
    """Hospitals' answers to one question: `taken` by hospital, and why the others' are missing."""

    taken: Mapping[str, Signed[Statement]]
    absent: Mapping[str, Absence]

    def of(self, site: str) -> Signed[Statement] | Absence | None:
        """Return a hospital's answer, or why it is missing; None where it was not asked."""
        return self.taken.get(site) or self.absent.get(site)

    @property
    def asked(self) -> frozenset[str]:
        """The hospitals that were asked."""
        return frozenset(self.taken.keys() | self.absent.keys())


NO_ANSWERS = Answers({}, {})
"""For round 0, in which nobody is asked to contribute."""


def order(run: Run, round: int, phase: Phase, site: str, models: Sequence[str] = ()) -> Order:
    """Return the order of a phase for a hospital: public values only.

    Args:
        models: the hospitals whose released models are to be compared.
    """
    return Order(
        phase=phase,
        study=run.study,
        site=site,
        run=run.name,
        round=round,
        attempt=run.attempt,
        exchange=run.description.exchange,
        coordinator=run.public_key,
        public_cases=run.public_cases,
        models=tuple(models),
        sum=order_part(run, round, phase),
    )


def answers(run: Run, round: int, phase: Phase, sites: Sequence[str]) -> Answers:
    """Return the hospitals' answers to a phase of a round, read from the exchange and verified."""
    taken: dict[str, Signed[Statement]] = {}
    absent: dict[str, Absence] = {}
    for site in sorted(sites):
        found = _answer(run, round, phase, site)
        if isinstance(found, Absence):
            absent[site] = found
        else:
            taken[site] = found
    return Answers(taken, absent)


def _answer(run: Run, round: int, phase: Phase, site: str) -> Signed[Statement] | Absence:
    try:
        check_key_is_good(run, site)
        if has_left(run, site):
            return LEFT
        found = _statement(run, round, phase, site)
        if found is None:
            failure = run.failure(round, phase, site)
            return Absence(kind="missing", text=failure) if failure else SILENT
        purpose, data = found
        statement = parse_statement(verified(data, site, run.description.roster))
        check_addressed(run, round, purpose, site, statement)
    except (BadSignature, RejectedRelease, CorruptCheckpoint, OSError) as error:
        return Absence(kind="rejected", text=str(error))
    if isinstance(statement, Refusal):
        return Absence(kind="refused", text=statement.reason)
    return signed(statement, data, run.description.roster[site])


def signed(statement: Statement, data: bytes, public_key: str) -> Signed[Statement]:
    """Return a verified statement with the sha256 of its signed file and the key that signed it."""
    return Signed[Statement](
        statement=statement, statement_sha256=sha256_of(data), public_key=public_key
    )


def _statement(run: Run, round: int, phase: Phase, site: str) -> tuple[str, bytes] | None:
    """Return a hospital's statement on a phase, or its refusal in this attempt, with its purpose.

    What the hospital did not sign counts only if there is nothing else.
    """
    key, others = run.description.roster[site], []
    answer = act_in(run, round, phase)
    for act in (answer, refusal_of(answer, run.attempt)):
        place = Place.statement(run.name, round, act, site)
        data = run.exchange.signed_answer(place, [key])
        if data is not None:
            return act, data
        others += [(act, other) for other in run.exchange.answers(place)]
    return others[0] if others else None  # what somebody else left there, for its reason


def keys_in(run: Run, site: str) -> set[str]:
    """Return the keys that a hospital had in a run, those of its acceptances included."""
    known = run.description
    joined = known.acceptances(site) if site in known.everybody else ()
    keys = {key for each in joined for key in (each.key, each.public_key)}
    rostered = {known.roster.get(site, ""), *known.former_keys.get(site, ())}
    return {*rostered, *keys} - {""}


def parse_signed(
    run: Run, round: int, act: str, site: str, data: bytes, public_key: str | None = None
) -> Statement:
    """Return a hospital's statement, signed by a key that it had in this run, about an act of a round.

    Raises:
        BadSignature: no such key signed it.
        RejectedRelease: it is about another act.
    """
    keys = [public_key] if public_key else sorted(keys_in(run, site))
    statement = parse_statement(verified_by_any(data, site, keys))
    check_addressed(run, round, act, site, statement)
    return statement


def has_left(run: Run, site: str) -> bool:
    """Return whether a hospital has stated, with the roster's key, that it has left the study."""
    for data in run.exchange.answers(Place.statement(run.name, 0, "leave", site)):
        with suppress(BadSignature, RejectedRelease):
            check_key_is_good(run, site)
            statement = parse_statement(verified(data, site, run.description.roster))
            check_addressed(run, 0, "leave", site, statement)
            return isinstance(statement, Departure)
    return False


def check_key_is_good(run: Run, site: str) -> None:
    """Raise `RejectedRelease` where a hospital has revoked the key that the roster has for it."""
    key = run.description.roster[site]
    for data in run.exchange.answers(Place.revocation(site, key)):
        try:
            revocation = Revocation.model_validate(verified(data, site, {site: key}))
        except ValueError:  # signed by somebody else
            continue
        if (revocation.site, revocation.public_key) == (site, key):
            raise RejectedRelease("it has revoked its key; put its new one into federation.yaml")


def check_addressed(run: Run, round: int, purpose: str, site: str, statement: Statement) -> None:
    """Raise `RejectedRelease` unless a statement is of this run, round, act and hospital."""
    found = (statement.study_sha256, statement.run, statement.round, statement.purpose, statement.site)
    if found != (run.study.sha256, run.name, round, purpose, site):
        raise RejectedRelease("it is about another study, run, round, act or hospital")
    _check_declared(run, statement)
    training = run.study.training
    if isinstance(statement, Acceptance) and not (
        (training.fewest_steps or training.steps) <= statement.steps <= training.steps
    ):
        raise RejectedRelease(f"the study has no place for {statement.steps} steps a round")
    if isinstance(statement, Scores):
        unknown = sorted(statement.metrics.keys() - run.study.metric_names)
        if unknown:
            raise RejectedRelease(f"the study has no metric {unknown[0]!r}")
    if isinstance(statement, AuditFigures):
        _check_audit(run, round, site, statement)
    if isinstance(statement, Comparison):
        names = {name for metrics in statement.metrics.values() for name in metrics}
        if names - run.study.metric_names or statement.models.keys() != statement.metrics.keys():
            raise RejectedRelease("it compares in a metric that the study has not, or no model")


def _check_audit(run: Run, round: int, site: str, statement: AuditFigures) -> None:
    """Reject figures that no audit has, or whose interval is not that of the charged noise."""
    if statement.figures.keys() - AUDITED:
        raise RejectedRelease("it has figures that no audit has")
    declared = run.description.member(site, round).statement.declared_training
    event = statement.event
    if event and not fits_its_noise(statement.figures, event.noise_multiplier, declared):
        raise RejectedRelease("its interval is not that of the noise that was charged")


def _check_declared(run: Run, statement: Statement) -> None:
    """Reject declared numbers of patients beyond what the operator has agreed with the hospital."""
    if not isinstance(statement, Acceptance | Survey):
        return
    most = run.description.most_patients.get(statement.site)
    if most is not None and statement.declared_patients > most:
        raise RejectedRelease(
            f"it declares {statement.declared_patients} patients, the coordinator's federation.yaml "
            f"has at most {most}"
        )
    if isinstance(statement, Acceptance) and statement.declared_training > statement.declared_patients:
        raise RejectedRelease("it declares more training patients than patients")
