"""The one door: whatever leaves a hospital is signed, lies in its outbox and is in its ledger."""

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from models.checkpoints import to_bytes
from privacy.accounting import epsilon, reported_epsilon
from privacy.ledger import Charge, LedgerError
from privacy.release import (
    Acceptance,
    Comparison,
    Departure,
    EventRecord,
    MetricsPolicy,
    Readiness,
    Refusal,
    ReleaseManifest,
    Scores,
    Statement,
    StatisticsPolicy,
    Survey,
    parse_statement,
)
from privacy.signing import sign
from sites.admission.admission import training_for
from sites.code_version import code_sha256
from sites.exchange.exchange import Exchange
from sites.exchange.places import Place
from sites.hospital import Hospital
from sites.local_models import GlobalModel
from sites.notifications import call
from sites.study import Study
from sites.update import Update

LOW = 0.9
"""From this share of a hospital's budget on, its budget is low."""


def settle_with_release(
    hospital: Hospital, study: Study, charge: Charge, update: Update, base: GlobalModel
) -> None:
    """Make a release of an update, write it to the outbox, and settle the charge that paid for it.

    The files are flushed to disk before the ledger's one transaction; nothing is published here.
    """
    data = to_bytes(update.tensors)
    statement = ReleaseManifest(
        kind="release",
        content=study.export,
        base_sha256=base.sha256,
        chain_head=base.chain_head,
        payload_sha256=hospital.outbox.put_tensors(data),
        payload_bytes=len(data),
        tensors={name: tuple(update.tensors[name].shape) for name in sorted(update.tensors)},
        declared_training=hospital.policy.declared_training,
        plain_releases=hospital.ledger.plain_charges(),
        noise=update.noise,
        **_spent(hospital, study, charge.run),
        **_common(hospital, study.sha256, charge),
    )
    hospital.ledger.settle(charge, _into_outbox(hospital, statement))
    _call_where_the_budget_ends(hospital, charge)


def settle_without_release(hospital: Hospital, study: Study, charge: Charge, reason: str) -> None:
    """Settle a charge without a release (training diverged).

    There is no second attempt: choosing between attempts would itself leak.
    """
    statement = Refusal(kind="refusal", reason=reason, **_common(hospital, study.sha256, charge))
    hospital.ledger.settle(charge, _into_outbox(hospital, statement))


def acceptance(hospital: Hospital, study: Study, act: Charge) -> None:
    """Put the hospital's consent to a run into the outbox."""
    policy = hospital.policy
    statement = Acceptance(
        kind="acceptance",
        declared_training=policy.declared_training,
        declared_patients=policy.declared_patients,
        budget=policy.budget,
        steps=training_for(policy, study).steps,
        version=version("wardround"),
        code_sha256=code_sha256(),
        cross_site=policy.cross_site == "allow",
        group=policy.group,
        **_common(hospital, study.sha256, act),
    )
    hospital.ledger.publish(act, _into_outbox(hospital, statement))


def readiness(hospital: Hospital, study: Study, act: Charge) -> None:
    """Put into the outbox that the hospital could take part."""
    statement = Readiness(kind="readiness", **_common(hospital, study.sha256, act))
    hospital.ledger.publish(act, _into_outbox(hospital, statement))


def refusal(hospital: Hospital, study: Study, act: Charge, reason: str) -> None:
    """Put a refusal into the outbox; its reason tells of no patient and no count."""
    statement = Refusal(kind="refusal", reason=reason, **_common(hospital, study.sha256, act))
    hospital.ledger.publish(act, _into_outbox(hospital, statement))


def departure(hospital: Hospital, study_sha256: str, act: Charge) -> None:
    """Put the hospital's leaving of a run into the outbox."""
    statement = Departure(kind="departure", **_common(hospital, study_sha256, act))
    hospital.ledger.publish(act, _into_outbox(hospital, statement))


def scores(
    hospital: Hospital,
    study: Study,
    act: Charge,
    model: GlobalModel,
    policy: MetricsPolicy,
    metrics: dict[str, float],
) -> None:
    """Put a global model's metrics into the outbox, and settle what they cost if they are noised."""
    statement = Scores(
        kind="scores",
        model_sha256=model.sha256,
        chain_head=model.chain_head,
        metrics_policy=policy,
        metrics=metrics,
        **_common(hospital, study.sha256, act),
    )
    record = hospital.ledger.settle if policy == "noised" else hospital.ledger.publish
    record(act, _into_outbox(hospital, statement))


def comparison(
    hospital: Hospital,
    study: Study,
    act: Charge,
    models: dict[str, str],
    metrics: dict[str, dict[str, float]],
) -> None:
    """Put into the outbox how hospitals' released models do here."""
    statement = Comparison(
        kind="comparison", models=models, metrics=metrics, **_common(hospital, study.sha256, act)
    )
    hospital.ledger.publish(act, _into_outbox(hospital, statement))


def survey(
    hospital: Hospital,
    study: Study,
    act: Charge,
    policy: StatisticsPolicy,
    histograms: dict[str, list[float | None]],
) -> None:
    """Put what a survey tells into the outbox, and settle what it costs if it is noised."""
    statement = Survey(
        kind="survey",
        declared_patients=hospital.policy.declared_patients,
        statistics_policy=policy,
        histograms=histograms,
        **_common(hospital, study.sha256, act),
    )
    record = hospital.ledger.settle if policy == "noised" else hospital.ledger.publish
    record(act, _into_outbox(hospital, statement))


def publish(hospital: Hospital, exchange: Exchange, act: Charge) -> None:
    """Lay the recorded statement of an act down in the exchange, after the tensors it names.

    Again it lays down the same bytes, so a retry changes nothing.

    Raises:
        LedgerError: the act has not ended in a statement.
    """
    statement, sha256 = statement_of(hospital, act)
    if isinstance(statement, ReleaseManifest):
        exchange.put_object(hospital.outbox.tensors(statement.payload_sha256), hospital.name)
    place = Place.statement(act.run, act.round, act.purpose, hospital.name)
    exchange.put_statement(place, hospital.outbox.statement(sha256))


def statement_of(hospital: Hospital, act: Charge) -> tuple[Statement, str]:
    """Return the statement in which an act ended, and the sha256 under which it lies in the outbox.

    Raises:
        LedgerError: the act has not ended in a statement.
    """
    sha256 = hospital.ledger.file_of(act)
    if sha256 is None:
        raise LedgerError(f"The {act.purpose} of round {act.round} has no file to publish.")
    return parse_statement(hospital.verified(hospital.outbox.statement(sha256))), sha256


def _call_where_the_budget_ends(hospital: Hospital, charge: Charge) -> None:
    """Call a person of the hospital with each charge from `LOW` of its budget on."""
    budget = hospital.policy.budget
    spent = hospital.ledger.spent(budget.delta)
    if charge.event is None or spent < LOW * budget.epsilon:
        return
    call(
        "wardround.budget.low",
        f"{hospital.name}: epsilon {spent:.2f} of {budget.epsilon:g} is spent, over all studies.",
        site=hospital.name,
        epsilon=round(spent, 4),
        budget=budget.epsilon,
    )


def _into_outbox(hospital: Hospital, statement: Statement) -> str:
    fields = statement.model_dump(mode="json")
    return hospital.outbox.put_statement(sign(fields, hospital.name, hospital.key))


def _common(hospital: Hospital, study_sha256: str, act: Charge) -> dict[str, Any]:
    return {
        "study": act.study,
        "study_sha256": study_sha256,
        "run": act.run,
        "round": act.round,
        "purpose": act.purpose,
        "site": hospital.name,
        "ledger_head": hospital.ledger.head,
        "event": EventRecord(**asdict(act.event)) if act.event else None,
        "charges": hospital.ledger.count(act),
    }


def _spent(hospital: Hospital, study: Study, run: str) -> dict[str, Any]:
    """Return what the run has cost the patients whom it cost most."""
    if study.privacy.mode == "none":
        return {"epsilon": None, "delta": None, "epsilon_reported": {}}
    delta, accountants = study.privacy.delta, study.privacy.accountants
    rule = hospital.policy.rule
    worst = max(hospital.ledger.histories(run), key=lambda events: epsilon(events, delta, rule))
    return {
        "epsilon": epsilon(worst, delta, rule),
        "delta": delta,
        "epsilon_reported": {name: reported_epsilon(worst, delta, name) for name in accountants},
    }
