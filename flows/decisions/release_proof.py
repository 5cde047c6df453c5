"""Proof that people released a model. It travels with an approved version and with a bundle.

It holds the study, the round's record and the run's signed decisions. With `people.yaml`, anybody can
check without MLflow that a clinician and a data-protection officer have approved exactly these weights
and this study, and until when. Whoever can write MLflow can put an older proof in place of a newer one,
so a withdrawal may be missing from it; in the home of the run its own decisions are read instead.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from flows.decisions import chain
from flows.decisions.people import ROLES, People
from flows.decisions.release_status import ReleasedVersion, released
from flows.decisions.verdicts import Decision, Terms
from flows.runs.dates import day
from flows.runs.record_files import BrokenRun
from flows.runs.records import RoundRecord
from flows.runs.run import Run
from models.config import Config
from models.errors import AskSomebody
from privacy.signing import BadSignature, canonical, verified
from privacy.statements import Sha256
from sites.study import Study

MOST_BYTES = 2**26
"""Size of the largest proof that is read."""


class NotProven(AskSomebody):
    """Nothing proves that people released this model; the message names what is missing."""

    next_step = (
        "ask the data-protection officer whether it is released; `wardround verify` in the folder of "
        "its run shows the decisions."
    )


class ReleaseProof(Config):
    """The content of a proof.

    Attributes:
        record: the record of the round that the model is of.
        coordinators: the public keys that signed the decisions, as their holder names them.
        decisions: the signed links of the run's chain of decisions, oldest first.
    """

    kind: Literal["release proof"] = "release proof"
    study: Study
    record: RoundRecord
    coordinators: Annotated[tuple[Sha256, ...], Field(min_length=1, max_length=100)]
    decisions: Annotated[tuple[str, ...], Field(max_length=10_000)]

    @property
    def terms(self) -> Terms:
        """The subject of the verdicts that count here."""
        return Terms(
            study=self.study.name,
            run=self.record.run,
            round=self.record.round,
            model_sha256=self.record.model_sha256,
            record_sha256=self.record.sha256,
        )


def proof_of(run: Run, record: RoundRecord) -> ReleaseProof:
    """Return the proof of a run's model, released or not, from the run's own folder."""
    links = tuple(data.decode() for _, data in sorted(chain.folder_bytes(run).items()))
    keys = (run.public_key, *run.home.former_keys)
    return ReleaseProof(study=run.study, record=record, coordinators=keys, decisions=links)


def to_bytes(proof: ReleaseProof) -> bytes:
    """Return a proof as its file has it."""
    return canonical(proof.model_dump(mode="json"))


def parsed(data: bytes) -> ReleaseProof:
    """Return the proof in a file's bytes, unchecked; raise `NotProven` where it is none."""
    if len(data) > MOST_BYTES:
        raise NotProven(f"Expected a proof of {MOST_BYTES} bytes at most, got {len(data)}.")
    try:
        return ReleaseProof.model_validate_json(data)
    except ValidationError as error:
        raise NotProven(
            f"The proof of its release can't be read: {error.errors()[0]['msg']}."
        ) from error


def check_proof(
    proof: ReleaseProof, weights_sha256: str, study: Study, people: People, at_ms: int | None = None
) -> ReleasedVersion:
    """Check that people released a model, and return what they released.

    Args:
        weights_sha256: of the model's weights.
        study: the study as the model's files describe it.
        people: who may decide, by the reader's own file.
        at_ms: the time at which the approvals have to count; None for now.

    Raises:
        NotProven: the proof is of other weights or another study; an approval is missing, has expired or
            is signed by nobody in `people`; or the model was refused, revoked or withdrawn.
    """
    record = proof.record
    if weights_sha256 != record.model_sha256 or study != proof.study:
        raise NotProven("The proof of a release is of another model: its weights or its study differ.")
    if (record.study, record.study_sha256) != (study.name, study.sha256):
        raise NotProven("The proof's record is of another study.")
    known = [link for link in _links(proof) if _counts(link, people)]
    now = int(time.time() * 1000) if at_ms is None else at_ms
    if against := chain.objections(known, proof.terms):
        raise NotProven(f"{against[-1].person} has {against[-1].word} it: {against[-1].reason or '-'}.")
    found = next((each for each in released(known).values() if each.terms == proof.terms), None)
    if found is None or set(found.given) != set(ROLES):
        raise NotProven(
            "No decision releases it: that takes the approvals of a clinician and a data-protection "
            "officer of people.yaml."
        )
    if now >= found.until_ms:
        raise NotProven(f"Its approvals ended {day(found.until_ms)}.")
    return found


def _links(proof: ReleaseProof) -> Sequence[Decision]:
    """Return the proof's chain; raise `NotProven` where a link is broken or has another signature."""
    links = {f"decision {number}": text.encode() for number, text in enumerate(proof.decisions, start=1)}
    first, *others = proof.coordinators

    def read(data: bytes) -> dict[str, Any]:
        for key in others:
            with suppress(BadSignature):
                return verified(data, "coordinator", {"coordinator": key})
        return verified(data, "coordinator", {"coordinator": first})

    try:
        return chain.checked(links, proof.record.run, proof.study, read)
    except BrokenRun as error:
        raise NotProven(f"The proof's decisions are broken: {error}") from error


def _counts(link: Decision, people: People) -> bool:
    verdict = link.verdict
    return verdict is None or people.knows(verdict.person, verdict.role, link.public_key)
