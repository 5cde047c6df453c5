"""The champion: the release of a model on evidence and approvals, and its withdrawal.

No function here can approve: that takes the signatures of a clinician and of a data-protection officer
(`flows.decisions`).
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

from flows.decisions import chain, release_proof, release_status
from flows.decisions.chain import NotReleased, NotTakenBack
from flows.decisions.criteria import criteria_of
from flows.decisions.people import ROLES, Role, load_people
from flows.decisions.release_status import ReleasedVersion
from flows.decisions.verdicts import Decision, Evidence, ReleaseOutcome, Terms, Verdict, terms_of
from flows.release.evidence import check_evidence
from flows.reporting.publish import publish_decisions_page
from flows.reporting.report import report
from flows.runs.locks import held, waiting_for
from flows.runs.records import RoundRecord
from flows.runs.run import NotAllowed, Run, RunBusy
from flows.tracking import registry
from models.files import sha256_of


def missing_roles(run: Run, record: RoundRecord) -> list[str]:
    """Return the roles whose approval is missing now.

    Raises:
        NotReleased: somebody has refused or revoked, and nobody has approved since.
    """
    known, terms = chain.decisions(run), terms_of(run, record)
    if against := chain.objections(known, terms):
        objections = ", ".join(
            f"{v.person} ({v.role}) has {v.word} it{': ' if v.reason else ''}{v.reason}" for v in against
        )
        raise NotReleased(f"{objections}. Both roles can approve it anew.")
    given = _given(run, known, terms)
    return [role for role in ROLES if role not in given]


def _given(run: Run, known: Sequence[Decision], terms: Terms) -> dict[Role, Verdict]:
    """Return the approvals that count now, of people who may decide now."""
    people = load_people(run.home)
    return chain.approvals(known, terms, int(time.time() * 1000), people)


def release_model(run: Run, record: RoundRecord, evidence: Sequence[Evidence]) -> str:
    """Make an approved model the champion, and record that; return its version.

    A model that is released already, on the same approvals, stays as it is. New approvals renew it.

    Raises:
        NotReleased: evidence or an approval is missing, or this process's account may not write the
            approved models.
        NotTakenBack: somebody has objected meanwhile, and this account may not withdraw the model.
        StoreFailed: MLflow stored only part of it; a repeated call completes it.
    """
    known, terms = chain.decisions(run), terms_of(run, record)
    given = _given(run, known, terms)
    check_evidence(evidence)
    if lacking := criteria_of(run.study) - {each.criterion for each in evidence}:
        raise NotReleased(f"Expected evidence of {', '.join(sorted(lacking))}, and it is missing.")
    if set(given) != set(ROLES):
        raise NotReleased(f"Expected the approvals of {', '.join(ROLES)}, got {sorted(given)}.")
    try:
        with _one_at_a_time(run):
            version = _make_champion(run, record, evidence, given)
    except NotAllowed as error:
        raise NotReleased(f"Evidence and approvals are complete. {error} {_with_account('')}") from error
    except LookupError as error:
        raise NotReleased(str(error)) from error
    if version in withdraw(run):  # while the model was copied
        raise NotReleased("Somebody has objected while it was released; it was withdrawn.")
    publish_decisions_page(run)
    return version


def _with_account(command: str) -> str:
    return (
        f"With that account's MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
        f"{command or 'the same command'} does it."
    )


def _make_champion(
    run: Run, record: RoundRecord, evidence: Sequence[Evidence], given: Mapping[Role, Verdict]
) -> str:
    """Release an approved model, unless it is released on the same approvals; return its version."""
    before = _version_of(chain.decisions(run), terms_of(run, record))
    if before and _is_unchanged(run, before, given):
        version = before.version
    else:
        version = _record_release(run, record, evidence, given)
    registry.attach_proof(run.study.name, version, _proof(run, record))
    if registry.champion(run.study.name) != version:
        registry.make_champion(run.study.name, version)
    return version


def _proof(run: Run, record: RoundRecord) -> bytes:
    return release_proof.to_bytes(release_proof.proof_of(run, record))


def _is_unchanged(run: Run, before: ReleasedVersion, given: Mapping[Role, Verdict]) -> bool:
    """Return whether a model is still the champion, on the same approvals, and MLflow still has it."""
    is_champion = before.given == given and before.version == release_status.champion(_chains(run))
    return is_champion and registry.has_approved(run, before.version)


def _version_of(known: Sequence[Decision], terms: Terms) -> ReleasedVersion | None:
    return next((each for each in release_status.released(known).values() if each.terms == terms), None)


def _record_release(
    run: Run, record: RoundRecord, evidence: Sequence[Evidence], given: Mapping[Role, Verdict]
) -> str:
    """Write an approved model and its report to MLflow, then record the release; return its version."""
    terms = terms_of(run, record)
    outcome = ReleaseOutcome(what="released", terms=terms, version="", evidence=tuple(evidence))
    page = report(run, record.round, outcome)
    version = registry.write_approved(run, record, release_status.tags_of(given), page)
    written = {"version": version, "report_sha256": sha256_of(page)}
    newest = release_status.newest_ms(_chains(run))
    chain.record_release(run, outcome.model_copy(update=written), given, newest)  # before it is champion
    run.home.security_log.write("model_released", run=run.name, round=record.round, version=version)
    return version


def _chains(run: Run) -> Sequence[release_status.Chain]:
    return release_status.chains_of(run.home, run.study.name)


def withdraw(run: Run) -> Sequence[str]:
    """Withdraw each released model with an objection since; return the versions, if any.

    The model released before becomes the champion, if its approvals still count; otherwise none is.

    Raises:
        NotTakenBack: this account may not write the approved models.
        StoreFailed: MLflow stored only part of it; a repeated call completes it.
    """
    chain.publish_decisions(run)
    withdrawn = []
    try:
        with _one_at_a_time(run):
            for each in release_status.revoked(chain.decisions(run)):
                _withdraw_version(run, each)
                run.home.security_log.write("model_withdrawn", run=run.name, version=each.version)
                withdrawn.append(each.version)
    except NotAllowed as error:
        raise NotTakenBack(
            f"The objection is recorded, and the model is not withdrawn yet. {error} "
            f"{_with_account('`wardround review withdraw`')}"
        ) from error
    if withdrawn:
        publish_decisions_page(run)
    return withdrawn


def _withdraw_version(run: Run, before: ReleasedVersion) -> None:
    chains = _chains(run)
    newest = release_status.newest_ms(chains)
    follower = release_status.newest_approved(chains, max(int(time.time() * 1000), newest))
    reason = f"{before.against[-1].person}: {before.against[-1].reason}"
    registry.withdraw(run.study.name, before.version, reason, follower)
    outcome = ReleaseOutcome(what="withdrawn", terms=before.terms, version=before.version)
    chain.record_withdrawal(run, outcome, newest)
    records = {record.round: record for record in run.records()}
    registry.attach_proof(run.study.name, before.version, _proof(run, records[before.terms.round]))


def promotion_lock(run: Run) -> AbstractContextManager[None]:
    """Hold the lock of a run's promotion; raise `RunBusy` where another promotion holds it."""
    busy = RunBusy(f"Another promotion of run {run.name} holds its lock.")
    return held(run.folder / "promotion.lock", busy)


def _one_at_a_time(run: Run) -> AbstractContextManager[None]:
    """Wait until no other run of the study is released or withdrawn: they share one champion."""
    return waiting_for(run.home.state / f"releases-{run.study.name}.lock")
