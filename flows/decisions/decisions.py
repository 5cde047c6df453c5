"""What people decide about a run's models: each signed with the person's own key, all in one chain.

A verdict names the model by its sha256 and the chain of records that led to it, so it can't be used
for another; the coordinator puts it on record, signed, in the run's folder and in the exchange, where
nothing is ever replaced.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from flows.runs.dates import minute
from flows.runs.locks import waiting_for
from flows.runs.paths import Home
from flows.runs.run import GENESIS, BrokenRun, RoundRecord, Run
from models.config import Config
from models.files import sha256_of, write_atomically
from models.objectives import Name
from privacy.release import Sha256
from privacy.signing import sign, verified
from sites import yaml_files
from sites.exchange.exchange import AlreadyWritten
from sites.exchange.places import Place

Role = Literal["clinician", "officer"]
ROLES: Sequence[Role] = get_args(Role)
"""Who has to approve: a clinician, and a data-protection officer."""

DAY_MS = 24 * 3600 * 1000
AHEAD_MS = 10 * 60 * 1000
"""How far a person's clock may be ahead."""


class BadVerdict(ValueError):
    """What a person said does not count; the message says why and what would."""


class NotReleased(Exception):
    """The model stays a candidate; the message names what is missing or failed."""


class NotTakenBack(Exception):
    """What somebody has objected to is still the champion; the message says who can take it back."""


def _as_list(found: object) -> object:
    return found if isinstance(found, list | tuple) else [found]


class Person(Config):
    """Somebody who may decide: in which role, and the public key that signs for him."""

    role: Role
    key: Sha256


class People(Config):
    """A `people.yaml`: who may decide about models, and who might before, with the keys of then.

    A name of `former` has one entry, or a list of them: somebody may change keys or roles repeatedly.
    """

    people: Annotated[dict[Name, Person], Field(min_length=1)]
    former: dict[Name, Annotated[tuple[Person, ...], BeforeValidator(_as_list)]] = Field(
        default_factory=dict
    )

    def knows(self, name: str, role: Role, key: str) -> bool:
        """Return whether somebody may or might decide in a role with a key."""
        known = Person(role=role, key=key)
        return known in (self.people.get(name), *self.former.get(name, ()))

    def may(self, name: str, role: Role, key: str) -> bool:
        """Return whether somebody may decide in a role with a key now."""
        return self.people.get(name) == Person(role=role, key=key)

    @model_validator(mode="after")
    def _one_key_each(self) -> "People":
        whose: dict[str, str] = {}
        before = ((name, each) for name, former in self.former.items() for each in former)
        for name, person in (*self.people.items(), *before):
            if whose.setdefault(person.key, name) != name:
                raise ValueError(
                    f"expected a key of his own for each person, got one for {whose[person.key]} and "
                    f"{name}; nobody decides under two names."
                )
        return self


class Terms(Config):
    """What a verdict is about: one model, and the record that led to it."""

    study: str
    run: str
    round: Annotated[int, Field(ge=1)]
    model_sha256: Sha256
    record_sha256: Sha256


Word = Literal["approved", "refused", "revoked"]


class Verdict(Config):
    """What a person signs.

    Attributes:
        expires_ms: until when an approval counts; a refusal and a revocation count for good.
        reason: for the record, and for whoever reads the report.
    """

    kind: Literal["verdict"] = "verdict"
    word: Word
    person: Name
    role: Role
    terms: Terms
    at_ms: Annotated[int, Field(ge=0)]
    expires_ms: Annotated[int, Field(ge=0)]
    reason: Annotated[str, Field(max_length=1000)] = ""


class Evidence(Config):
    """One criterion of a release: what is due, what was found, and whether that will do."""

    criterion: str
    due: str
    found: str
    is_met: bool


class Outcome(Config):
    """What became of a model: it was released as an approved version, or taken back.

    `report_sha256` is of the report that lies beside a released version.
    """

    kind: Literal["outcome"] = "outcome"
    what: Literal["released", "withdrawn"]
    terms: Terms
    version: str
    evidence: tuple[Evidence, ...] = ()
    report_sha256: str = ""


class Decision(Config):
    """One link of the chain: a person's signed verdict with his key, or an outcome."""

    kind: Literal["decision"] = "decision"
    run: str
    number: Annotated[int, Field(ge=1)]
    previous: Sha256
    at_ms: int
    signed: str = ""
    public_key: str = ""
    outcome: Outcome | None = None

    @cached_property
    def verdict(self) -> Verdict | None:
        """The verdict, whose signature is checked; None for an outcome.

        Raises:
            BadSignature: nobody with that key signed it.
        """
        if not self.signed:
            return None
        person = _named_in(self.signed)
        return Verdict.model_validate(verified(self.signed.encode(), person, {person: self.public_key}))

    @property
    def terms(self) -> Terms | None:
        """Which model it is about, None where it says nothing; raises as `verdict` does."""
        said = self.verdict or self.outcome
        return said.terms if said else None


def load_people(home: Home) -> People:
    """Return who may decide, or raise `ConfigError`."""
    path = home.folder / "people.yaml"
    if not path.exists():
        raise yaml_files.ConfigError(
            f"{path}: no such file. It names who may decide: under `people:` the line that "
            f"`wardround review key` prints for each of them."
        )
    return people_in(path)


def people_in(path: Path) -> People:
    """Return who may decide by a file of the reader's own, or raise `ConfigError`."""
    return yaml_files.load(path, People)


def terms_of(run: Run, record: RoundRecord) -> Terms:
    """Return what a verdict on the model of a round is about."""
    return Terms(
        study=run.study.name,
        run=run.name,
        round=record.round,
        model_sha256=record.model_sha256,
        record_sha256=record.sha256,
    )


def signed_verdict(
    terms: Terms,
    word: Word,
    person: str,
    role: Role,
    key: Ed25519PrivateKey,
    days: int,
    reason: str = "",
) -> str:
    """Return a verdict as the text that `take_in` and Prefect's form take.

    Raises:
        BadVerdict: a name or a reason is none that a verdict can hold.
    """
    now = int(time.time() * 1000)
    try:
        said = Verdict(
            word=word, person=person, role=role, terms=terms, at_ms=now,
            expires_ms=now + days * DAY_MS, reason=reason,
        )  # fmt: skip
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadVerdict(f"{where}: {first['msg']}. Nothing was signed.") from error
    return sign(said.model_dump(mode="json"), person, key).decode()


def round_in(text: str) -> int:
    """Return the round that a signed verdict names, unchecked."""
    _ = _named_in(text)
    try:
        return int(json.loads(text)["statement"]["terms"]["round"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise BadVerdict("Expected a signed verdict, as `wardround review sign` prints it.") from error


def take_in(run: Run, text: str, people: People) -> Verdict:
    """Put a person's verdict on record; the same text again changes nothing.

    Raises:
        BadVerdict: it is not signed by somebody in `people`, in his role, about a model of this run, or
            it is older than what he said last, or over.
    """
    with _alone(run):
        known = decisions(run)
        lay_down(run)  # what an interruption has kept from the exchange
        if text in {each.signed for each in known}:
            return _parsed(text, people)
        said = _parsed(text, people)
        records = {record.round: record for record in run.records()}
        record = records.get(said.terms.round)
        if record is None or terms_of(run, record) != said.terms:
            raise BadVerdict("It is about another model than any of this run's; read the terms again.")
        at_ms = _now_ms(known)
        _check_counts(run, known, said, at_ms)
        _append(run, known, at_ms, signed=text, public_key=people.people[said.person].key)
        return said


def _check_counts(run: Run, known: Sequence[Decision], said: Verdict, at_ms: int) -> None:
    """Raise `BadVerdict` where a verdict does not count at a time, after what is on record.

    `decisions` asks the same of each link, so that nobody can put an older word behind a later one.
    """
    if said.at_ms > at_ms + AHEAD_MS:
        raise BadVerdict("It is dated in the future; set the clock on which it was signed.")
    if said.word == "approved":
        _check_approval(run, known, said, at_ms)
    if said.at_ms <= max((v.at_ms for v in _verdicts(known) if v.person == said.person), default=-1):
        raise BadVerdict(f"{said.person} has said something later; the person signs again.")


def _check_approval(run: Run, known: Sequence[Decision], said: Verdict, at_ms: int) -> None:
    days = run.study.promotion.approval_days if run.study.promotion else 1
    if said.expires_ms - said.at_ms > days * DAY_MS:
        raise BadVerdict(f"Expected an approval for {days} days at most; the person signs anew.")
    against = objections(known, said.terms)
    if against and said.at_ms <= against[-1].at_ms:
        raise BadVerdict(f"{against[-1].person} has objected since; the person signs anew.")
    if at_ms >= said.expires_ms:
        raise BadVerdict("It has expired; the person signs again.")


def _now_ms(known: Sequence[Decision]) -> int:
    """Return the time, which never falls along the chain, whatever a clock says."""
    return max(int(time.time() * 1000), known[-1].at_ms if known else 0)


def note_release(run: Run, outcome: Outcome, given: Mapping[Role, Verdict], after_ms: int = 0) -> None:
    """Put on record that a model was released on the approvals of each role.

    Args:
        after_ms: when the study's runs decided last; a clock that was set back puts nothing before it.

    Raises:
        NotReleased: others count now, or none.
    """
    with _alone(run):
        known = decisions(run)
        at_ms = max(_now_ms(known), after_ms)
        now = approvals(known, outcome.terms, at_ms)
        if set(now) != set(ROLES):
            raise NotReleased(
                f"An approval has expired, or somebody has objected, by {minute(at_ms)}: now, or the "
                f"date of the study's newest decision."
            )
        if now != given:
            raise NotReleased(
                "An approval was replaced by another while it was released; the same command releases "
                "it on that one."
            )
        _append(run, known, at_ms, outcome=outcome)


def note_withdrawal(run: Run, outcome: Outcome, after_ms: int = 0) -> None:
    """Put on record that a model was taken back; `after_ms` as for a release."""
    with _alone(run):
        known = decisions(run)
        _append(run, known, max(_now_ms(known), after_ms), outcome=outcome)


def decisions(run: Run) -> list[Decision]:
    """Return everything that was decided about a run's models, in order.

    Raises:
        BrokenRun: a link of the chain is missing, was changed, is not signed as it says, or is a verdict
            that did not count when it was put there.
    """
    found: list[Decision] = []
    previous = GENESIS
    for number, path in enumerate(sorted(_folder(run).glob("*.json")), start=1):
        data = path.read_bytes()
        try:
            decision = Decision.model_validate(run.coordinators(data))
            said = decision.verdict
        except ValueError as error:
            raise BrokenRun(f"{path}: {error}") from error
        if (decision.run, decision.number, decision.previous) != (run.name, number, previous):
            raise BrokenRun(f"{path} does not follow from the decision before it.")
        if found and decision.at_ms < found[-1].at_ms:
            raise BrokenRun(f"{path} is dated before the decision that it follows.")
        try:
            if said:
                _check_counts(run, found, said, decision.at_ms)
        except BadVerdict as error:
            raise BrokenRun(f"{path} holds a verdict that does not count. {error}") from error
        found.append(decision)
        previous = sha256_of(data)
    return found


def approvals(
    known: Sequence[Decision], terms: Terms, at_ms: int, people: People | None = None
) -> dict[Role, Verdict]:
    """Return by role the approval of a model that counts at a time.

    A person's later word replaces his earlier one; whoever refuses or revokes takes every approval of
    the model away, until each role has approved anew.

    Args:
        people: who may decide now; nobody else's approval counts then, nor one that it has replaced.
    """
    counting: dict[Role, tuple[Verdict, str]] = {}
    for decision in known:
        verdict = decision.verdict
        if verdict is None or verdict.terms != terms:
            continue
        if verdict.word != "approved":
            counting.clear()
        else:
            counting[verdict.role] = verdict, decision.public_key
    standing = {
        role: (verdict, key)
        for role, (verdict, key) in counting.items()
        if at_ms < verdict.expires_ms and (people is None or people.may(verdict.person, role, key))
    }
    persons, keys = {v.person for v, _ in standing.values()}, {key for _, key in standing.values()}
    is_each_his_own = len(persons) == len(keys) == len(standing)
    return {role: verdict for role, (verdict, _) in standing.items()} if is_each_his_own else {}


def objections(known: Sequence[Decision], terms: Terms) -> list[Verdict]:
    """Return the refusals and revocations of a model after which nobody has approved it again."""
    standing: list[Verdict] = []
    for verdict in _verdicts(known):
        if verdict.terms == terms:
            standing = [] if verdict.word == "approved" else [*standing, verdict]
    return standing


def lay_down(run: Run) -> None:
    """Have the exchange hold every decision, also those that an interruption kept from it.

    Raises:
        BrokenRun: another decision lies there already.
    """
    for path in sorted(_folder(run).glob("*.json")):
        try:
            run.exchange.put_statement(Place.decision(run.name, int(path.stem)), path.read_bytes())
        except AlreadyWritten as error:
            raise BrokenRun(
                f"{path} is not the decision that the exchange has under this number: one of the two "
                f"was altered. Nothing more is decided about this run until both are the same; "
                f"`wardround verify` says which signature fits."
            ) from error


def folder_bytes(run: Run) -> dict[int, bytes]:
    """Return the signed decisions of a run by number, as they lie in its folder."""
    paths = sorted(_folder(run).glob("*.json"))
    return {number: path.read_bytes() for number, path in enumerate(paths, start=1)}


def heads(run: Run) -> list[str]:
    """Return the sha256 of each decision, in order; the last is the chain's head."""
    return [sha256_of(data) for _, data in sorted(folder_bytes(run).items())]


def _verdicts(known: Sequence[Decision]) -> Iterator[Verdict]:
    for decision in known:
        if verdict := decision.verdict:
            yield verdict


def _append(run: Run, known: Sequence[Decision], at_ms: int, **content: Any) -> None:
    folder, number = _folder(run), len(known) + 1
    previous = sha256_of((folder / f"{number - 1:04d}.json").read_bytes()) if known else GENESIS
    link = Decision(run=run.name, number=number, previous=previous, at_ms=at_ms, **content)
    data = sign(link.model_dump(mode="json"), "coordinator", run.key)
    write_atomically(folder / f"{number:04d}.json", data)
    lay_down(run)


def _parsed(text: str, people: People) -> Verdict:
    person = _named_in(text)
    if person not in people.people:
        raise BadVerdict(f"{person!r} is not in people.yaml, which says who may decide.")
    known = people.people[person]
    try:
        said = Verdict.model_validate(verified(text.encode(), person, {person: known.key}))
    except ValueError as error:
        raise BadVerdict(f"{person} has not signed it with the key in people.yaml.") from error
    if (said.person, said.role) != (person, known.role):
        raise BadVerdict(f"Expected a verdict of {person} as {known.role}, got one as {said.role}.")
    return said


def _named_in(text: str) -> str:
    """Return the signer that a signed text names, unchecked."""
    try:
        return str(json.loads(text)["signer"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadVerdict("Expected a signed verdict, as `wardround review sign` prints it.") from error


def _folder(run: Run) -> Path:
    return run.folder / "decisions"


def _alone(run: Run) -> AbstractContextManager[None]:
    return waiting_for(run.folder / "decisions.lock")
