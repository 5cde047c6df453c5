"""Approvals: requests that wait for a person of the hospital, and their answers as signed rows.

With `approve: {join: manual}` in the policy, or a check with the severity `stop`, a run is joined only
after a person approved its terms: the study, the code, the networks, the list of scans and the budget.
The person also sees what the checks found in the scans. With `export: manual`, each release
leaves only after a person approved its exact bytes. A row names the hash of the terms, so changed terms
need a new approval. Only a signed row counts. Prefect's UI can send an answer to the hospital; it must
contain a code that `wardround site waiting` shows at the hospital.
"""

import hmac
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from models.config import Config
from models.files import write_atomically
from privacy.release import ReleaseManifest, Sha256
from privacy.signing import BadSignature, canonical, sign
from sites.admission.admission import teacher_for
from sites.code_version import code_sha256
from sites.hospital import Hospital
from sites.notifications import call
from sites.policy.policy import Refused
from sites.study import Study
from sites.yaml_files import ConfigError

CODE_LENGTH = 16

Act = Literal["check", "join", "export"]


class ApprovalNeeded(Exception):
    """The act waits for a person of the hospital; `terms` is the hash of the terms to approve."""

    def __init__(self, act: Act, terms: str) -> None:
        self.act, self.terms = act, terms
        super().__init__(f"{act} waits for the hospital's approval")


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


def check_probe(hospital: Hospital, study: Study, run: str) -> None:
    """Check that the hospital may answer if it could take part; raises as `check_join`."""
    terms = {"run": run, "study": study.model_dump(mode="json"), "study_sha256": study.sha256}
    _check(hospital, "check", (study.name, run, 0), terms)


def check_join(hospital: Hospital, study: Study, run: str, findings: Sequence[str] = ()) -> None:
    """Check that a study may join, by the policy or by a person's approval.

    Args:
        findings: what the checks found in the scans, for the person.

    Raises:
        ApprovalNeeded: a person has to answer first.
        Refused: a person has refused these terms.
    """
    teacher = teacher_for(hospital.policy, study)
    _check(
        hospital,
        "join",
        (study.name, run, 0),
        {
            "run": run,
            "study": study.model_dump(mode="json"),
            "study_sha256": study.sha256,
            "code_sha256": code_sha256(),
            "teacher": teacher.model_dump(mode="json") if teacher else None,
            "data_sha256": hospital.data_sha256,
            "budget": hospital.policy.budget.model_dump(mode="json"),
        },
        findings,
    )


def check_export(hospital: Hospital, manifest: ReleaseManifest, sha256: str) -> None:
    """Check that a release may leave, by the policy or by a person's approval; raises as `check_join`.

    Args:
        sha256: hash of the signed manifest in the outbox, which names the hash of the tensors.
    """
    shown = manifest.model_dump(mode="json", exclude={"tensors"})
    terms = {"statement_sha256": sha256, "release": shown}
    _check(hospital, "export", (manifest.study, manifest.run, manifest.round), terms)


def waiting(hospital: Hospital) -> list[Waiting]:
    """Return the requests that nobody has decided, oldest first."""
    found = []
    for path in _folder(hospital).glob("*.request.json"):
        terms = path.name.removesuffix(".request.json")
        if _stored_row(hospital, terms) is None:
            request = Request.model_validate_json(path.read_bytes())
            found.append(Waiting(request, terms, _codes(hospital, terms)))
    return sorted(found, key=lambda each: each.request.asked_ms)


def decide(hospital: Hospital, named: str, answer: Answer, by: str) -> tuple[str, Request]:
    """Record a person's answer on the terms whose hash begins with `named`; return hash and request.

    Recording the same answer again changes nothing.

    Raises:
        ConfigError: no request or more than one has this name, or the answer on it was different.
    """
    folder = _folder(hospital)
    found = sorted(folder.glob(f"{named}*.request.json")) if re.fullmatch("[0-9a-f]+", named) else []
    if len(found) != 1:
        listed = ", ".join(each.terms[:12] for each in waiting(hospital)) or "nothing"
        raise ConfigError(
            f"Expected the beginning of a waiting request's name ({listed}), got {named!r}."
        )
    terms = found[0].name.removesuffix(".request.json")
    if known := _stored_row(hospital, terms):
        if known.answer != answer:
            raise ConfigError(
                f"{terms[:12]} was {known.answer} by {known.by}; an answer can't be changed."
            )
    else:
        row = ApprovalRow(terms=terms, answer=answer, by=by, at_ms=_now_ms())
        signed = sign(row.model_dump(mode="json"), hospital.name, hospital.key)
        write_atomically(_row_path(hospital, terms), signed)
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
    raise ConfigError("Expected a code that `wardround site waiting` shows, got another text.")


def _check(
    hospital: Hospital,
    act: Act,
    named: tuple[str, str, int],
    terms: Mapping[str, Any],
    findings: Sequence[str] = (),
) -> None:
    digest = sha256(canonical({"act": act, **terms})).hexdigest()
    row = _stored_row(hospital, digest)
    if row and row.answer == "refused":  # also if the policy now needs no approval
        raise Refused("the hospital does not take part")  # the reason stays in the hospital
    policy = hospital.policy
    by_person = policy.person_joins if act == "join" else getattr(policy.approve, act) == "manual"
    if row is None and by_person:
        study, run, round = named
        request = Request(
            act=act, study=study, run=run, round=round, asked_ms=_now_ms(), terms=dict(terms),
            findings=tuple(findings),
        )  # fmt: skip
        _ask(hospital, request, digest)
        raise ApprovalNeeded(act, digest)


def _ask(hospital: Hospital, request: Request, digest: str) -> None:
    path = _folder(hospital) / f"{digest}.request.json"
    if path.exists():
        return
    write_atomically(path, request.model_dump_json(indent=1).encode())
    call(
        "wardround.approval.waits",
        f"{hospital.name}: {request.act} of {request.run}, round {request.round}, waits for approval; "
        f"`wardround site waiting` shows it.",
        site=hospital.name,
        run=request.run,
        round=request.round,
    )


def _stored_row(hospital: Hospital, digest: str) -> ApprovalRow | None:
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


def _folder(hospital: Hospital) -> Path:
    return hospital.state / "approvals"


def _row_path(hospital: Hospital, digest: str) -> Path:
    return _folder(hospital) / f"{digest}.json"


def _now_ms() -> int:
    return int(time.time() * 1000)
