"""Verdicts of people about a model, signed with their own keys, and the links of the decision chain.

A verdict names the model by its sha256 and the chain of records that led to it, so it can't be used for
another model.
"""

import json
import time
from functools import cached_property
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field, ValidationError

from flows.decisions.people import People, Role
from flows.runs.records import RoundRecord
from flows.runs.run import Run
from models.config import Config
from models.errors import FixYourInput
from models.settings.tasks import Name
from privacy.signing import sign, verified
from privacy.statements import Sha256

DAY_MS = 24 * 3600 * 1000
NO_VERDICT = "Expected a signed verdict, as `wardround review sign` prints it."

VerdictWord = Literal["approved", "refused", "revoked"]


class BadVerdict(FixYourInput, ValueError):
    """A verdict that does not count; the message says why, and what would count."""

    next_step = "sign a verdict that counts, as the message says; nothing was recorded."


class Terms(Config):
    """The subject of a verdict: one model, and the record that led to it."""

    study: str
    run: str
    round: Annotated[int, Field(ge=1)]
    model_sha256: Sha256
    record_sha256: Sha256


class Verdict(Config):
    """The statement that a person signs.

    Attributes:
        expires_ms: the end of an approval; a refusal and a revocation have none.
        reason: for the record, and for readers of the report.
    """

    kind: Literal["verdict"] = "verdict"
    word: VerdictWord
    person: Name
    role: Role
    terms: Terms
    at_ms: Annotated[int, Field(ge=0)]
    expires_ms: Annotated[int, Field(ge=0)]
    reason: Annotated[str, Field(max_length=1000)] = ""


class Evidence(Config):
    """One criterion of a release: the requirement, the finding, and whether that suffices."""

    criterion: str
    due: str
    found: str
    is_met: bool


class ReleaseOutcome(Config):
    """The outcome for a model: released as an approved version, or withdrawn.

    `report_sha256` is of the report beside a released version.
    """

    kind: Literal["outcome"] = "outcome"
    what: Literal["released", "withdrawn"]
    terms: Terms
    version: str
    evidence: tuple[Evidence, ...] = ()
    report_sha256: str = ""


class Decision(Config):
    """One link of the chain: a person's signed verdict with their key, or an outcome."""

    kind: Literal["decision"] = "decision"
    run: str
    number: Annotated[int, Field(ge=1)]
    previous: Sha256
    at_ms: int
    signed: str = ""
    public_key: str = ""
    outcome: ReleaseOutcome | None = None

    @cached_property
    def verdict(self) -> Verdict | None:
        """The verdict, whose signature is checked; None for an outcome.

        Raises:
            BadSignature: nobody with that key signed it.
        """
        if not self.signed:
            return None
        person = signer_of(self.signed)
        return Verdict.model_validate(verified(self.signed.encode(), person, {person: self.public_key}))

    @property
    def terms(self) -> Terms | None:
        """The model that the link is about, None where it names none; raises as `verdict` does."""
        content = self.verdict or self.outcome
        return content.terms if content else None


def terms_of(run: Run, record: RoundRecord) -> Terms:
    """Return the terms of a verdict on the model of a round."""
    return Terms(
        study=run.study.name,
        run=run.name,
        round=record.round,
        model_sha256=record.model_sha256,
        record_sha256=record.sha256,
    )


def signed_verdict(
    terms: Terms,
    word: VerdictWord,
    person: str,
    role: Role,
    key: Ed25519PrivateKey,
    days: int,
    reason: str = "",
) -> str:
    """Return a verdict as the text that `record_verdict` and Prefect's form accept.

    Raises:
        BadVerdict: a name or a reason that a verdict can't hold.
    """
    now = int(time.time() * 1000)
    try:
        verdict = Verdict(
            word=word, person=person, role=role, terms=terms, at_ms=now,
            expires_ms=now + days * DAY_MS, reason=reason,
        )  # fmt: skip
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadVerdict(f"{where}: {first['msg']}. Nothing was signed.") from error
    return sign(verdict.model_dump(mode="json"), person, key).decode()


def parsed_verdict(text: str, people: People) -> Verdict:
    """Return a signed verdict; raise `BadVerdict` unless a person signed it in their role."""
    person = signer_of(text)
    if person not in people.people:
        raise BadVerdict(f"{person!r} is not in people.yaml, which lists the people who may decide.")
    known = people.people[person]
    try:
        verdict = Verdict.model_validate(verified(text.encode(), person, {person: known.key}))
    except ValueError as error:
        raise BadVerdict(f"{person} has not signed it with the key in people.yaml.") from error
    if (verdict.person, verdict.role) != (person, known.role):
        raise BadVerdict(f"Expected a verdict of {person} as {known.role}, got one as {verdict.role}.")
    return verdict


def round_in(text: str) -> int:
    """Return the round that a signed verdict names, unchecked."""
    _ = signer_of(text)
    try:
        return int(json.loads(text)["statement"]["terms"]["round"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise BadVerdict(NO_VERDICT) from error


def signer_of(text: str) -> str:
    """Return the signer that a signed text names, unchecked."""
    try:
        return str(json.loads(text)["signer"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadVerdict(NO_VERDICT) from error
