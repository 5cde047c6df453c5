"""Approvals: requests that wait for a person of the hospital, and their answers as signed rows.

With `approve: {join: manual}` in the policy, or a check with the severity `stop`, a run is joined only
after a person approved its terms: the study, the code, the networks, the list of scans and the budget.
The person also sees what the checks found in the scans. With `export: manual`, each release
leaves only after a person approved its exact bytes. A row names the hash of the terms, so changed terms
need a new approval. Only a signed row counts. Prefect's UI can send an answer to the hospital; it must
contain a code that `wardround site waiting` shows at the hospital.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from models.files import write_atomically
from privacy.signing import canonical
from privacy.statements import ReleaseManifest
from sites.admission.admission import teacher_for
from sites.admission.requests import Act, Request, folder_of, now_ms, stored_row
from sites.code_version import code_sha256
from sites.hospital import Hospital
from sites.notifications import call
from sites.policy.policy import Refused
from sites.study import Study


class ApprovalNeeded(Exception):
    """The act waits for a person of the hospital; `terms` is the hash of the terms to approve."""

    def __init__(self, act: Act, terms: str) -> None:
        self.act, self.terms = act, terms
        super().__init__(f"{act} waits for the hospital's approval")


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


def _check(
    hospital: Hospital,
    act: Act,
    named: tuple[str, str, int],
    terms: Mapping[str, Any],
    findings: Sequence[str] = (),
) -> None:
    digest = sha256(canonical({"act": act, **terms})).hexdigest()
    row = stored_row(hospital, digest)
    if row and row.answer == "refused":  # also if the policy now needs no approval
        raise Refused("the hospital does not take part")  # the reason stays in the hospital
    policy = hospital.policy
    by_person = policy.person_joins if act == "join" else getattr(policy.approve, act) == "manual"
    if row is None and by_person:
        study, run, round = named
        request = Request(
            act=act, study=study, run=run, round=round, asked_ms=now_ms(), terms=dict(terms),
            findings=tuple(findings),
        )  # fmt: skip
        _ask(hospital, request, digest)
        raise ApprovalNeeded(act, digest)


def _ask(hospital: Hospital, request: Request, digest: str) -> None:
    path = folder_of(hospital) / f"{digest}.request.json"
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
