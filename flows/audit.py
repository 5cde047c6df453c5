"""The audit flow, after a training: is the privacy that was claimed also measured?

The coordinator checks the study's mechanism on made-up patients, inverts gradients of one, and looks
whether releases give their hospitals away. The hospitals attack the model that they trained, each as far
as its policy asks for it; what they publish is charged there.
"""

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.asking import SIDE_BY_SIDE, ask_all
from flows.audits.picture import picture
from flows.audits.records import AuditRecord, audit_of, keep, path_of, picture_of, sacro_of
from flows.audits.sacro import attack_report
from flows.reporting.publish import pages_of
from flows.rounds.release_provenance import provenance, scans_told_apart
from flows.rounds.statements import Answers
from flows.runs.artifacts import artifact_lock
from flows.runs.paths import Home
from flows.runs.records import Absence, Signed
from flows.runs.run import Run
from flows.tracking.tracking import attach_pages, log_audit
from models.errors import AskSomebody
from privacy.statements import AuditFigures
from sites.audit.made_up import Bench, NothingToAudit
from sites.audit.mechanism import Measured, examine
from sites.audit.one_run import OneRun
from sites.audit.reconstruction import Pictures, Reconstruction, reconstructed
from sites.study import Study


class NoAnswer(AskSomebody):
    """A hospital did not answer an audit."""

    next_step = (
        "ask the hospitals, then repeat the command: what others answered stays; --partial records the "
        "audit without them, for good."
    )


OTHER = Absence(kind="rejected", text="its audit is of another model")
SEED = 0


@flow(flow_run_name="audit {run} {number}", task_runner=SIDE_BY_SIDE)  # type: ignore[arg-type]  # Prefect's own type
def audit(
    run: str, number: int, home: str, sites: list[str], steps: int, canaries: int, partial: bool = False
) -> None:
    """Audit the model of a round, record what was found, and publish it.

    A round is audited once: hospitals answer once, and MLflow replaces no number. What is on record is
    published again.

    Args:
        sites: the hospitals that are asked.
        steps: steps of each gradient inversion.
        canaries: gradients that are planted in the audit of one training.
        partial: whether to record an audit to which a hospital gave no answer.

    Raises:
        NoAnswer: a hospital did not answer; nothing is recorded, and a repeated audit goes on.
    """
    with Run.open(Home(Path(home)), run).locked() as opened:
        started = time.time()
        if recorded := audit_of(opened, number):
            publish(opened, recorded)
            return
        opened.begin_attempt()
        checks = mechanism_checks(opened.study)
        canaries_found = canary_run(opened, canaries)
        found, images = inversion(opened.study, steps)
        hospitals = _figures(opened, number, ask_all(opened, number, "audit", sites))
        _check_answered(hospitals, partial=partial)
        record = AuditRecord(
            study=opened.study.name,
            study_sha256=opened.study.sha256,
            run=opened.name,
            round=number,
            model_sha256=opened.records()[number].model_sha256,
            at_ms=int(time.time() * 1000),
            delta=None if opened.study.privacy.mode == "none" else opened.study.privacy.delta,
            checks=tuple(checks),
            one_run=canaries_found,
            reconstruction=found,
            releases=provenance(opened, number),
            scans=scans_told_apart(opened, number, hospitals),
            hospitals=hospitals,
            seconds=round(time.time() - started, 1),
        )
        with artifact_lock(opened):
            keep(opened, picture_of(number), picture(found, images))
            keep(opened, sacro_of(number), attack_report(record))
            keep(opened, path_of(number), record.model_dump_json(indent=1).encode())
        publish(opened, record)


def publish(run: Run, record: AuditRecord) -> None:
    """Publish an audit in MLflow and in the run's report; a second call changes nothing."""
    with artifact_lock(run):
        log_audit(run, record)
        attach_pages(run, pages_of(run))


@task(cache_policy=NO_CACHE, persist_result=False)
def mechanism_checks(study: Study) -> list[Measured]:
    """Check the study's mechanism on made-up patients; nothing without privacy for patients."""
    try:
        return list(examine(Bench.of(study), SEED))
    except NothingToAudit:
        return []


@task(cache_policy=NO_CACHE, persist_result=False)
def inversion(study: Study, steps: int) -> tuple[Reconstruction, Pictures]:
    """Invert the gradient of a made-up patient."""
    return reconstructed(study, steps, SEED)


@task(cache_policy=NO_CACHE, persist_result=False)
def canary_run(run: Run, canaries: int) -> OneRun | None:
    """Audit one training of made-up patients by canaries; None without privacy for each patient."""
    try:
        bench = Bench.of(run.study)
    except NothingToAudit:
        return None
    if run.study.shares_noise or not canaries:
        return None
    return bench.one_run(run.rate, canaries, np.random.default_rng(SEED))


def _check_answered(hospitals: Mapping[str, Signed[AuditFigures] | Absence], *, partial: bool) -> None:
    """Raise `NoAnswer` where a hospital said nothing: a round is audited once."""
    silent = {
        site: each
        for site, each in hospitals.items()
        if isinstance(each, Absence) and each.kind == "missing"
    }
    if silent and not partial:
        lines = "".join(f"\n  {site}: {why}" for site, why in sorted(silent.items()))
        raise NoAnswer(f"Expected an answer of every hospital of the run, got none of:{lines}")


def _figures(run: Run, number: int, answers: Answers) -> dict[str, Signed[AuditFigures] | Absence]:
    """Return each hospital's figures of the round's model, or why there are none, smallest first."""
    found: dict[str, Signed[AuditFigures] | Absence] = dict(answers.absent)
    due = run.records()[number].model_sha256
    for site, answer in answers.taken.items():
        statement = answer.statement
        if isinstance(statement, AuditFigures) and statement.model_sha256 == due:
            found[site] = Signed[AuditFigures](**dict(answer))
        else:
            found[site] = OTHER
    size = {site: run.description.member(site, number).statement.declared_training for site in found}
    return {site: found[site] for site in sorted(found, key=lambda site: (size[site], site))}
