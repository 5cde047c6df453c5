"""Evidence for the release of a model: a finding for each criterion of its study.

Missing evidence counts as failed.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress

from flows.audits.records import audit_of
from flows.decisions.chain import NotReleased
from flows.decisions.criteria import ATTACK, CALIBRATION, EPSILON, GAIN, LINEAGE, mean_of, worst_of
from flows.decisions.verdicts import Evidence
from flows.rounds import statements
from flows.rounds.recording import quality_of
from flows.runs.records import RoundRecord, Signed
from flows.runs.run import Run
from flows.verification.verify import lineage_faults
from models.errors import FixYourInput
from models.settings.metrics import LOWER_IS_BETTER, flat
from privacy.accounting import TOLERANCE
from privacy.audit.published import NAME
from privacy.signing import BadSignature, verified
from privacy.statements import AuditFigures, RejectedRelease, parse_statement
from sites.exchange.places import Place
from sites.study_sections import PromotionConfig


class UnknownModel(FixYourInput):
    """The run has no trained model of this round."""


def record_of(run: Run, round: int | None) -> RoundRecord:
    """Return the record of a round, of the newest one by default; raise `UnknownModel` without one."""
    records = run.records()
    if not records or records[-1].round == 0:
        raise UnknownModel(f"Expected a run with a trained model, got {run.name}, which has none.")
    number = records[-1].round if round is None else round
    if not 1 <= number <= records[-1].round:
        raise UnknownModel(
            f"Expected a round from 1 to {records[-1].round} of {run.name}, got {number}."
        )
    return records[number]


def gather(run: Run, record: RoundRecord) -> tuple[Evidence, ...]:
    """Return the evidence for each criterion of the study, and for the run's lineage."""
    criteria = run.study.promotion
    if criteria is None:
        raise NotReleased(
            f"Study {run.study.name} has no `promotion`, which states the criteria of a release."
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
    if criteria.gain is not None:
        yield _gain(criteria.gain, *_gained(run, record, name))
    if criteria.worst_site is not None:
        yield _at_least(worst_of(criteria), criteria.worst_site, *_worst(run, record, name))
    if criteria.calibration_error is not None:
        found = _mean(run, record, "calibration_error")
        yield _at_most(CALIBRATION, criteria.calibration_error, *found)
    if criteria.epsilon is not None:
        most = criteria.epsilon * (1 + TOLERANCE)  # as a hospital's ledger allows it
        yield _at_most(EPSILON, most, *_epsilon(run, record))
    if criteria.attack_auc is not None:
        yield _at_most(ATTACK, criteria.attack_auc, *_attacked(run, record))


def check_evidence(evidence: Sequence[Evidence]) -> None:
    """Raise `NotReleased`, which names each criterion that is missing or failed."""
    failed = [e for e in evidence if not e.is_met]
    if failed:
        lines = "".join(f"\n  {e.criterion}: {e.due}; {e.found}" for e in failed)
        raise NotReleased(f"The evidence does not suffice:{lines}")


def _mean(run: Run, record: RoundRecord, name: str) -> tuple[float | None, str]:
    """Return the mean over the hospitals, or None and who did not publish it."""
    if run.study.evaluation.summed:
        return _of_all(record, name, worse=True), "too few hospitals took part in the sum of the metrics"
    values, silent = _published(run, record, name)
    if silent or not any(_is_noised(record, site) for site in values):
        return (None, silent) if silent else (record.quality.get(name), "nobody published it")
    found = quality_of(run, record.round, {site: {name: value} for site, value in values.items()})
    return found.get(name), ""


def _worst(run: Run, record: RoundRecord, name: str) -> tuple[float | None, str]:
    """Return the worst hospital's value, or None and who did not publish it."""
    if run.study.evaluation.summed:
        return None, "metrics are summed, and no hospital's own is known"
    values, silent = _published(run, record, name)
    return (None, silent) if silent else (min(values.values()), "")


def _published(run: Run, record: RoundRecord, name: str) -> tuple[dict[str, float], str]:
    """Return a metric by hospital of a run, and a sentence on those that did not publish it.

    Of a noised metric it is the worse end of its interval: noise alone must not let a model pass.
    """
    members = {site for each in run.records()[: record.round + 1] for site in each.releases}
    metrics = record.metrics
    end = "high" if name in LOWER_IS_BETTER else "low"
    values = {
        site: metrics[site].get(f"{end}/{flat(name)}", metrics[site][name])
        if _is_noised(record, site)
        else metrics[site][name]
        for site in members
        if name in metrics.get(site, {})
    }
    silent = ", ".join(sorted(members - values.keys()))
    return values, f"{silent} did not publish it" if silent else ""


def _of_all(record: RoundRecord, name: str, *, worse: bool) -> float | None:
    """Return the worse or the better end of a metric of all hospitals together, None without one."""
    end = "low" if worse != (name in LOWER_IS_BETTER) else "high"
    return record.quality.get(f"{end}/{flat(name)}", record.quality.get(name))


def _is_noised(record: RoundRecord, site: str) -> bool:
    return site in record.scores and record.scores[site].statement.metrics_policy == "noised"


def _epsilon(run: Run, record: RoundRecord) -> tuple[float | None, str]:
    """Return the largest epsilon of any hospital in the run, or None and why none bounds it."""
    records = run.records()[: record.round + 1]
    releases = [r.statement for each in records for r in each.releases.values()]
    spent = [release.epsilon for release in releases if release.epsilon is not None]
    if len(spent) < len(releases) or not spent:
        return None, "a release states none"
    if any(release.noise == "test" for release in releases):
        return None, "repeatable test noise protects nobody"
    if plain := sorted({release.site for release in releases if release.plain_releases}):
        return None, f"{', '.join(plain)} made releases without privacy of the same patients"
    privacy = run.study.privacy
    if record.round < run.study.rounds and privacy.mode != "none":
        # A run that stops because of what came out has its budget as the only valid bound (a filter is
        # no odometer: Rogers et al. 2016, Privacy Odometers and Filters, https://arxiv.org/abs/1605.08294).
        return max(privacy.epsilon, *spent), ""
    if run.study.evaluation.summed:  # what those who evaluate have paid
        return max(run.study.evaluation.summed.epsilon, *spent), ""
    return max(spent), ""


def _attacked(run: Run, record: RoundRecord) -> tuple[float | None, str]:
    """Return the worst end of the attack's AUC at any hospital of the run, or None and why it is
    missing.

    The figures are read from the hospitals' signed statements. A check of the mechanism that failed
    makes every figure worthless.
    """
    found = audit_of(run, record.round)
    if found is None:
        return None, "no privacy audit is recorded"
    if found.alarms:
        return None, f"the audit's checks failed: {', '.join(found.alarms)}"
    members = {site for each in run.records()[: record.round + 1] for site in each.releases}
    values = {
        site: each.statement.figures[f"high/{NAME}"]
        for site, each in found.hospitals.items()
        if isinstance(each, Signed) and each.statement.figures and _is_signed_by(run, site, each)
    }
    silent = sorted(members - values.keys())
    if silent:
        return None, f"{', '.join(silent)} did not publish it"
    return max(values[site] for site in members), ""


def _is_signed_by(run: Run, site: str, recorded: Signed[AuditFigures]) -> bool:
    """Return whether a hospital has signed recorded figures, with a key that it had in the run."""
    place = Place.statement(run.name, recorded.statement.round, recorded.statement.purpose, site)
    if recorded.public_key not in statements.keys_in(run, site):
        return False
    for data in run.exchange.answers(place):
        with suppress(BadSignature, RejectedRelease):
            fields = verified(data, site, {site: recorded.public_key})
            if parse_statement(fields) == recorded.statement:
                return True
    return False


def _gained(run: Run, record: RoundRecord, name: str) -> tuple[float | None, str]:
    """Return by how much the mean over hospitals has grown since the start, or None and who is silent.

    A noised metric counts with the worse ends of both intervals.
    """
    if run.study.evaluation.summed:
        now_all, then = _of_all(record, name, worse=True), _of_all(run.records()[0], name, worse=False)
        why = "too few hospitals took part in the sum of the metrics"
        return (None, why) if now_all is None or then is None else (now_all - then, "")
    now, silent = _published(run, record, name)
    first = run.records()[0]
    before = {
        site: first.metrics[site].get(f"high/{flat(name)}", first.metrics[site][name])
        if _is_noised(first, site)
        else first.metrics[site][name]
        for site in now
        if name in first.metrics.get(site, {})
    }
    if silent or before.keys() < now.keys():
        missing = ", ".join(sorted(now.keys() - before.keys()))
        return None, silent or f"{missing} did not publish it for the start"
    means = [
        quality_of(run, record.round, {site: {name: value} for site, value in each.items()})
        for each in (now, before)
    ]
    after, earlier = (mean.get(name) for mean in means)
    return (None, "nobody published it") if after is None or earlier is None else (after - earlier, "")


def _gain(least: float, found: float | None, why: str) -> Evidence:
    shown = f"missing: {why}" if found is None else f"{found:+.4f}"
    is_met = found is not None and found > 0 and found >= least
    due = f"at least {least:+g} over the start" if least else "better than the start"
    return Evidence(criterion=GAIN, due=due, found=shown, is_met=is_met)


def _at_least(criterion: str, least: float, found: float | None, why: str) -> Evidence:
    shown = f"missing: {why}" if found is None else f"{found:.4f}"
    is_met = found is not None and found >= least
    return Evidence(criterion=criterion, due=f"at least {least:g}", found=shown, is_met=is_met)


def _at_most(criterion: str, most: float, found: float | None, why: str) -> Evidence:
    shown = f"missing: {why}" if found is None else f"{found:.4f}"
    is_met = found is not None and found <= most
    return Evidence(criterion=criterion, due=f"at most {most:g}", found=shown, is_met=is_met)
