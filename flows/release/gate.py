"""What a model needs to be released, and what happens when it is, or when it is taken back.

Evidence that is missing counts as failed. Nothing here can approve: that takes the signatures of a
clinician and of a data-protection officer (`flows.decisions.decisions`).
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

from flows.decisions import decisions, release_status
from flows.decisions.criteria import (
    ATTACK,
    CALIBRATION,
    EPSILON,
    LINEAGE,
    criteria_of,
    mean_of,
    worst_of,
)
from flows.decisions.decisions import (
    ROLES,
    Evidence,
    NotReleased,
    NotTakenBack,
    Outcome,
    Role,
    Terms,
    Verdict,
)
from flows.decisions.release_status import Standing
from flows.reporting.publish import tell_decisions
from flows.reporting.report import report
from flows.runs.locks import held, waiting_for
from flows.runs.run import NotAllowed, RoundRecord, Run, RunBusy
from flows.tracking import registry
from flows.verification.verify import lineage_faults
from models.files import sha256_of
from privacy.accounting import TOLERANCE
from sites.study import PromotionConfig

FLOW = "promote"
"""The name of the flow that waits for people; its runs are named by run and round, too."""


def record_of(run: Run, round: int | None) -> RoundRecord:
    """Return the record of a round, of the newest one by default; raise `NotReleased` without one."""
    records = run.records()
    if not records or records[-1].round == 0:
        raise NotReleased(f"{run.name} has no model that was trained.")
    number = records[-1].round if round is None else round
    if not 1 <= number <= records[-1].round:
        raise NotReleased(f"Expected a round from 1 to {records[-1].round} of {run.name}, got {number}.")
    return records[number]


def gather(run: Run, record: RoundRecord) -> tuple[Evidence, ...]:
    """Return the evidence for each criterion of the study, and for the run's lineage."""
    criteria = run.study.promotion
    if criteria is None:
        raise NotReleased(
            f"Study {run.study.name} has no `promotion`, which says what a model needs to be released."
        )
    fault = next(lineage_faults(run), None)
    lineage = Evidence(
        criterion=LINEAGE,
        due="verified",
        found=fault or "verified",
        is_met=fault is None,
    )
    return (*measured(run, record, criteria), lineage)


def measured(run: Run, record: RoundRecord, criteria: PromotionConfig) -> Iterator[Evidence]:
    """Yield the evidence for each criterion that a study names."""
    name = criteria.metric
    if criteria.mean is not None:
        yield _at_least(mean_of(criteria), criteria.mean, *_mean(run, record, name))
    if criteria.worst_site is not None:
        yield _at_least(worst_of(criteria), criteria.worst_site, *_worst(run, record, name))
    if criteria.calibration_error is not None:
        found = _mean(run, record, "calibration_error")
        yield _at_most(CALIBRATION, criteria.calibration_error, *found)
    if criteria.epsilon is not None:
        most = criteria.epsilon * (1 + TOLERANCE)  # as a hospital's ledger allows it
        yield _at_most(EPSILON, most, *_epsilon(run, record))
    if criteria.attack_auc is not None:
        yield _at_most(ATTACK, criteria.attack_auc, None, "no privacy audit is on record")


def _mean(run: Run, record: RoundRecord, name: str) -> tuple[float | None, str]:
    """Return the mean over the hospitals, or None and who did not publish it."""
    _, silent = _told(run, record, name)
    return (None, silent) if silent else (record.quality.get(name), "nobody published it")


def _worst(run: Run, record: RoundRecord, name: str) -> tuple[float | None, str]:
    """Return the worst hospital's value, or None and who did not publish it."""
    told, silent = _told(run, record, name)
    return (None, silent) if silent else (min(told.values()), "")


def _told(run: Run, record: RoundRecord, name: str) -> tuple[dict[str, float], str]:
    """Return what each hospital of a run published, and a sentence on those that did not."""
    members = {r.site for each in run.records()[: record.round + 1] for r in each.releases}
    told = {site: record.scores[site][name] for site in members if name in record.scores.get(site, {})}
    silent = ", ".join(sorted(members - told.keys()))
    return told, f"{silent} did not publish it" if silent else ""


def _epsilon(run: Run, record: RoundRecord) -> tuple[float | None, str]:
    """Return the largest epsilon of any hospital in the run, or None and why none bounds it."""
    releases = [r for each in run.records()[: record.round + 1] for r in each.releases]
    spent = [release.epsilon for release in releases if release.epsilon is not None]
    if len(spent) < len(releases) or not spent:
        return None, "a release states none"
    if any(release.noise == "test" for release in releases):
        return None, "repeatable test noise protects nobody"
    if plain := sorted({release.site for release in releases if release.plain_releases}):
        return None, f"{', '.join(plain)} made releases without privacy of the same patients"
    return max(spent), ""


def _at_least(criterion: str, least: float, found: float | None, why: str) -> Evidence:
    shown = f"missing: {why}" if found is None else f"{found:.4f}"
    is_met = found is not None and found >= least
    return Evidence(criterion=criterion, due=f"at least {least:g}", found=shown, is_met=is_met)


def _at_most(criterion: str, most: float, found: float | None, why: str) -> Evidence:
    shown = f"missing: {why}" if found is None else f"{found:.4f}"
    is_met = found is not None and found <= most
    return Evidence(criterion=criterion, due=f"at most {most:g}", found=shown, is_met=is_met)


def check_evidence(evidence: Sequence[Evidence]) -> None:
    """Raise `NotReleased`, which names each criterion that is missing or failed."""
    failed = [e for e in evidence if not e.is_met]
    if failed:
        lines = "".join(f"\n  {e.criterion}: {e.due}; {e.found}" for e in failed)
        raise NotReleased(f"The evidence does not suffice:{lines}")


def missing_roles(run: Run, record: RoundRecord) -> list[str]:
    """Return whose approval is missing now.

    Raises:
        NotReleased: somebody has refused or revoked, and nobody has approved since.
    """
    known, terms = decisions.decisions(run), decisions.terms_of(run, record)
    if against := decisions.objections(known, terms):
        said = ", ".join(
            f"{v.person} ({v.role}) has {v.word} it{': ' if v.reason else ''}{v.reason}" for v in against
        )
        raise NotReleased(f"{said}. Both roles can approve it anew.")
    given = _given(run, known, terms)
    return [role for role in ROLES if role not in given]


def _given(run: Run, known: Sequence[decisions.Decision], terms: decisions.Terms) -> dict[Role, Verdict]:
    """Return the approvals that count now, of people who may decide now."""
    people = decisions.load_people(run.home)
    return decisions.approvals(known, terms, int(time.time() * 1000), people)


def release(run: Run, record: RoundRecord, evidence: Sequence[Evidence]) -> str:
    """Make an approved model the champion, and put that on record; return its version.

    One that is released already, on the same approvals, stays as it is. New approvals renew it.

    Raises:
        NotReleased: evidence or an approval is missing, or this process's account may not write the
            approved models.
        NotTakenBack: somebody has objected meanwhile, and this account may not take it back.
        StoreFailed: MLflow has not taken all of it; again it goes on.
    """
    known, terms = decisions.decisions(run), decisions.terms_of(run, record)
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
        raise NotReleased("Somebody has objected while it was released; it was taken back.")
    tell_decisions(run)
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
    before = _standing(decisions.decisions(run), decisions.terms_of(run, record))
    if before and _is_as_it_was(run, before, given):
        version = before.version
    else:
        version = _put_on_record(run, record, evidence, given)
    if registry.champion(run.study.name) != version:
        registry.crown(run.study.name, version)
    return version


def _is_as_it_was(run: Run, before: Standing, given: Mapping[Role, Verdict]) -> bool:
    """Return whether a model is the champion on the same approvals, and MLflow has it still."""
    is_champion = before.given == given and before.version == release_status.champion(_chains(run))
    return is_champion and registry.has_approved(run, before.version)


def _standing(known: Sequence[decisions.Decision], terms: Terms) -> Standing | None:
    return next((each for each in release_status.released(known).values() if each.terms == terms), None)


def _put_on_record(
    run: Run, record: RoundRecord, evidence: Sequence[Evidence], given: Mapping[Role, Verdict]
) -> str:
    """Write an approved model and its report to MLflow, then that it is released; return its version."""
    terms = decisions.terms_of(run, record)
    outcome = Outcome(what="released", terms=terms, version="", evidence=tuple(evidence))
    page = report(run, record.round, outcome)
    version = registry.write_approved(run, record, release_status.tags_of(given), page)
    told = {"version": version, "report_sha256": sha256_of(page)}
    newest = release_status.newest_ms(_chains(run))
    decisions.note_release(run, outcome.model_copy(update=told), given, newest)  # before it is champion
    return version


def _chains(run: Run) -> Sequence[release_status.Chain]:
    return release_status.chains_of(run.home, run.study.name)


def withdraw(run: Run) -> Sequence[str]:
    """Take back what somebody has objected to since it was released; return the versions, if any.

    The model released before is the champion then, if its approvals still count; otherwise none is.

    Raises:
        NotTakenBack: this account may not write the approved models.
        StoreFailed: MLflow has not taken all of it; again it goes on.
    """
    decisions.lay_down(run)
    taken_back = []
    try:
        with _one_at_a_time(run):
            for each in release_status.revoked(decisions.decisions(run)):
                _take_back(run, each)
                taken_back.append(each.version)
    except NotAllowed as error:
        raise NotTakenBack(
            f"The objection is on record, and the model is not taken back yet. {error} "
            f"{_with_account('`wardround review withdraw`')}"
        ) from error
    if taken_back:
        tell_decisions(run)
    return taken_back


def _take_back(run: Run, before: Standing) -> None:
    chains = _chains(run)
    newest = release_status.newest_ms(chains)
    follower = release_status.newest_standing(chains, max(int(time.time() * 1000), newest))
    reason = f"{before.against[-1].person}: {before.against[-1].reason}"
    registry.withdraw(run.study.name, before.version, reason, follower)
    outcome = Outcome(what="withdrawn", terms=before.terms, version=before.version)
    decisions.note_withdrawal(run, outcome, newest)


def alone(run: Run) -> AbstractContextManager[None]:
    """Let one promotion of a run be at work; raise `RunBusy` in any other."""
    busy = RunBusy(f"Another promotion of run {run.name} is at work.")
    return held(run.folder / "promotion.lock", busy)


def _one_at_a_time(run: Run) -> AbstractContextManager[None]:
    """Wait until no other run of the study is released or taken back: they share one champion."""
    return waiting_for(run.home.state / f"releases-{run.study.name}.lock")
