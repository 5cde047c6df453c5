"""What waits for a person of the hospital, and what he has said: signed rows in the hospital's state.

A policy with `approve: {join: manual}` lets a run in once its terms were approved: the study, the
code, the networks, the list of scans, the budget. With `export: manual` each release leaves once its
very bytes were approved. A row binds the hash of such terms, so whatever changes is asked again. Only a
row counts: Prefect's UI can carry a word to the hospital, with the code that `wardround site waiting`
shows there.
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

Act = Literal["join", "export"]


class ApprovalNeeded(Exception):
    """The act waits for a person of the hospital; `terms` is the hash of what he is asked."""

    def __init__(self, act: Act, terms: str) -> None:
        self.act, self.terms = act, terms
        super().__init__(f"{act} waits for the hospital's approval")


class Request(Config):
    """What a person is asked: to let `act` happen on these terms."""

    act: Act
    study: str
    run: str
    round: int
    asked_ms: int
    terms: dict[str, Any]


Answer = Literal["approved", "refused"]


class CodeAnswer(Config):
    """What a person says from afar about something that waits: the code that stands for yes or no."""

    code: Annotated[str, Field(max_length=100)]
    by: Annotated[str, Field(min_length=1, max_length=100)]


class ApprovalRow(Config):
    """What a person said about terms, by their hash."""

    terms: Sha256
    answer: Answer
    by: str
    at_ms: int


@dataclass(frozen=True)
class Waiting:
    """A request that nobody has decided, its terms' hash, and the codes that stand for yes and for no.

    Prefect's UI asks for one of them: who sees there what was typed can say nothing else with it.
    """

    request: Request
    terms: str
    codes: Mapping[Answer, str]


def check_join(hospital: Hospital, study: Study, run: str) -> None:
    """Let a study in as the policy says.

    Raises:
        ApprovalNeeded: a person has to say something first.
        Refused: he has said no.
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
    )


def check_export(hospital: Hospital, manifest: ReleaseManifest, sha256: str) -> None:
    """Let a release leave as the policy says; raises as `check_join` does.

    Args:
        sha256: of the signed manifest in the outbox, which names the tensors by theirs.
    """
    shown = manifest.model_dump(mode="json", exclude={"tensors"})
    terms = {"statement_sha256": sha256, "release": shown}
    _check(hospital, "export", (manifest.study, manifest.run, manifest.round), terms)


def waiting(hospital: Hospital) -> list[Waiting]:
    """Return what nobody has decided yet, oldest first."""
    found = []
    for path in _folder(hospital).glob("*.request.json"):
        terms = path.name.removesuffix(".request.json")
        if _stored_row(hospital, terms) is None:
            request = Request.model_validate_json(path.read_bytes())
            found.append(Waiting(request, terms, _codes(hospital, terms)))
    return sorted(found, key=lambda each: each.request.asked_ms)


def decide(hospital: Hospital, named: str, answer: Answer, by: str) -> tuple[str, Request]:
    """Put down what a person says about the terms whose hash begins with `named`; return both.

    Saying the same again changes nothing.

    Raises:
        ConfigError: nothing that waits is named so, or more than one is, or it was decided otherwise.
    """
    folder = _folder(hospital)
    found = sorted(folder.glob(f"{named}*.request.json")) if re.fullmatch("[0-9a-f]+", named) else []
    if len(found) != 1:
        listed = ", ".join(each.terms[:12] for each in waiting(hospital)) or "nothing"
        raise ConfigError(f"Expected the beginning of one that waits ({listed}), got {named!r}.")
    terms = found[0].name.removesuffix(".request.json")
    if known := _stored_row(hospital, terms):
        if known.answer != answer:
            raise ConfigError(f"{terms[:12]} was {known.answer} by {known.by}; a word stands.")
    else:
        row = ApprovalRow(terms=terms, answer=answer, by=by, at_ms=_now_ms())
        signed = sign(row.model_dump(mode="json"), hospital.name, hospital.key)
        write_atomically(_row_path(hospital, terms), signed)
    return terms, Request.model_validate_json(found[0].read_bytes())


def decide_by_code(hospital: Hospital, code: str, by: str) -> None:
    """Put down what a code says of something that waits: yes or no. `by` is anybody's word.

    Raises:
        ConfigError: nothing that waits has this code.
    """
    for each in waiting(hospital):
        for answer, known in each.codes.items():
            if hmac.compare_digest(known.encode(), code.strip().encode()):
                decide(hospital, each.terms, answer, f"{by} (from afar)")
                return
    raise ConfigError("Expected a code that `wardround site waiting` shows, got another.")


def _check(hospital: Hospital, act: Act, named: tuple[str, str, int], terms: Mapping[str, Any]) -> None:
    digest = sha256(canonical({"act": act, **terms})).hexdigest()
    row = _stored_row(hospital, digest)
    if row and row.answer == "refused":  # also under a policy that asks nobody any more
        raise Refused("the hospital does not take part")  # why is its own affair
    if row is None and getattr(hospital.policy.approve, act) == "manual":
        _ask(hospital, act, named, terms, digest)
        raise ApprovalNeeded(act, digest)


def _ask(
    hospital: Hospital, act: Act, named: tuple[str, str, int], terms: Mapping[str, Any], digest: str
) -> None:
    path = _folder(hospital) / f"{digest}.request.json"
    if path.exists():
        return
    study, run, round = named
    request = Request(act=act, study=study, run=run, round=round, asked_ms=_now_ms(), terms=dict(terms))
    write_atomically(path, request.model_dump_json(indent=1).encode())
    call(
        "wardround.approval.waits",
        f"{hospital.name}: {act} of {run}, round {round}, waits for approval; `wardround site waiting` "
        f"shows it.",
        site=hospital.name,
        run=run,
        round=round,
    )


def _stored_row(hospital: Hospital, digest: str) -> ApprovalRow | None:
    """Return the row about terms, None where there is none that this hospital has signed."""
    path = _row_path(hospital, digest)
    if not path.exists():
        return None
    try:
        row = ApprovalRow.model_validate(hospital.verified(path.read_bytes()))
    except (BadSignature, ValueError) as error:
        raise ConfigError(f"{path}: expected a row that this hospital signed: {error}") from error
    if row.terms != digest:
        raise ConfigError(f"{path}: expected a row about these terms, got one about others.")
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
