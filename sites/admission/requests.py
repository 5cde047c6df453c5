"""Requests to a person of the hospital, and the person's answers, which nobody else can write.

A request waits in `state/approvals`; its answer is a row that the hospital's key signs.
"""

import hmac
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from models.config import Config
from models.files import write_atomically
from privacy.signing import BadSignature, sign
from privacy.statements import Sha256
from sites.hospital import Hospital
from sites.yaml_files import ConfigError

CODE_LENGTH = 16


Act = Literal["check", "join", "export"]


class Request(Config):
    """A request to a person of the hospital: approval of `act` on these terms.

    `findings` are what the checks of the data found when it was made; they are no part of the terms.
    """

    act: Act
    study: str
    run: str
    round: int
    asked_ms: int
    terms: dict[str, Any]
    findings: tuple[str, ...] = ()


Answer = Literal["approved", "refused"]


class CodeAnswer(Config):
    """A remote answer to a request that waits: the code for yes or for no, and a name of the person."""

    code: Annotated[str, Field(max_length=100)]
    by: Annotated[str, Field(min_length=1, max_length=100)]


class ApprovalRow(Config):
    """A person's answer on terms, which are named by their hash."""

    terms: Sha256
    answer: Answer
    by: str
    at_ms: int


@dataclass(frozen=True)
class Waiting:
    """An undecided request, the hash of its terms, and the codes for yes and for no.

    Prefect's UI asks for one of the codes. A person who reads a code there can give no other answer
    with it.
    """

    request: Request
    terms: str
    codes: Mapping[Answer, str]


def waiting(hospital: Hospital) -> list[Waiting]:
    """Return the requests that nobody has decided, oldest first."""
    found = []
    for path in folder_of(hospital).glob("*.request.json"):
        terms = path.name.removesuffix(".request.json")
        if stored_row(hospital, terms) is None:
            request = Request.model_validate_json(path.read_bytes())
            found.append(Waiting(request, terms, _codes(hospital, terms)))
    return sorted(found, key=lambda each: each.request.asked_ms)


def decide(hospital: Hospital, named: str, answer: Answer, by: str) -> tuple[str, Request]:
    """Record a person's answer on the terms whose hash begins with `named`; return hash and request.

    Recording the same answer again changes nothing.

    Raises:
        ConfigError: no request or more than one has this name, or the answer on it was different.
    """
    folder = folder_of(hospital)
    found = sorted(folder.glob(f"{named}*.request.json")) if re.fullmatch("[0-9a-f]+", named) else []
    if len(found) != 1:
        listed = ", ".join(each.terms[:12] for each in waiting(hospital)) or "nothing"
        raise ConfigError(
            f"Expected the beginning of a waiting request's name ({listed}), got {named!r}."
        )
    terms = found[0].name.removesuffix(".request.json")
    if known := stored_row(hospital, terms):
        if known.answer != answer:
            raise ConfigError(
                f"{terms[:12]} was {known.answer} by {known.by}; an answer can't be changed."
            )
    else:
        row = ApprovalRow(terms=terms, answer=answer, by=by, at_ms=now_ms())
        signed = sign(row.model_dump(mode="json"), hospital.name, hospital.key)
        write_atomically(_row_path(hospital, terms), signed)
        hospital.security_log.write(answer, by, terms=terms)
    return terms, Request.model_validate_json(found[0].read_bytes())


def decide_by_code(hospital: Hospital, code: str, by: str) -> None:
    """Record the answer, yes or no, that a code stands for. `by` is not verified.

    Raises:
        ConfigError: no waiting request has this code.
    """
    for each in waiting(hospital):
        for answer, known in each.codes.items():
            if hmac.compare_digest(known.encode(), code.strip().encode()):
                decide(hospital, each.terms, answer, f"{by} (from afar)")
                return
    hospital.security_log.write("code_refused", f"{by} (from afar)")
    raise ConfigError("Expected a code that `wardround site waiting` shows, got another text.")


def stored_row(hospital: Hospital, digest: str) -> ApprovalRow | None:
    """Return the row on terms, None if there is none; raise `ConfigError` if it is not genuine."""
    path = _row_path(hospital, digest)
    if not path.exists():
        return None
    try:
        row = ApprovalRow.model_validate(hospital.verified(path.read_bytes()))
    except (BadSignature, ValueError) as error:
        raise ConfigError(f"{path}: expected a row that this hospital signed: {error}") from error
    if row.terms != digest:
        raise ConfigError(f"{path}: expected a row on the terms in its name, got one on other terms.")
    return row


def _codes(hospital: Hospital, digest: str) -> dict[Answer, str]:
    secret, answers = hospital.key.private_bytes_raw(), get_args(Answer)
    return {
        answer: hmac.new(secret, f"{answer} {digest}".encode(), sha256).hexdigest()[:CODE_LENGTH]
        for answer in answers
    }


def folder_of(hospital: Hospital) -> Path:
    """Return the folder of requests and answers."""
    return hospital.state / "approvals"


def _row_path(hospital: Hospital, digest: str) -> Path:
    return folder_of(hospital) / f"{digest}.json"


def now_ms() -> int:
    """Return the time, in milliseconds since 1970."""
    return int(time.time() * 1000)
