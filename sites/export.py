"""One door out of a hospital: what leaves is signed, stored in the outbox and recorded in the ledger."""

import logging
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from models.checkpoints import save_to
from privacy.accounting import epsilon, reported_epsilon
from privacy.eight_bits import to_eight_bits
from privacy.ledger import Charge, LedgerError
from privacy.signing import sign
from privacy.statements import (
    Acceptance,
    AuditFigures,
    Comparison,
    Departure,
    EventRecord,
    Masked,
    MetricsPolicy,
    Readiness,
    Refusal,
    ReleaseManifest,
    Scores,
    Statement,
    StatisticsPolicy,
    SumStatement,
    Survey,
    one_line,
    parse_statement,
)
from sites.admission.admission import lacking, training_for
from sites.code_version import code_sha256
from sites.exchange.exchange import Exchange
from sites.exchange.places import Place
from sites.hospital import Hospital
from sites.local_models import GlobalModel
from sites.notifications import call
from sites.study import Study
from sites.update import Update

log = logging.getLogger("wardround.site")

LOW = 0.9
"""Share of the budget that must be spent before the hospital is warned of a low budget."""


def settle_with_release(
    hospital: Hospital, study: Study, charge: Charge, update: Update, base: GlobalModel,
    masked: Masked | None = None,
) -> None:  # fmt: skip
    """Make a release of an update, write it to the outbox, and settle the charge that paid for it.

    The files are flushed to disk before the ledger's one transaction. Nothing is published here.
    """
    leaving = update.tensors
    if study.release_bits == 8:
        seed = study.seed_for(charge.round, hospital.name, "rounding")
        leaving = to_eight_bits(leaving, torch.Generator().manual_seed(seed))
    payload_sha256 = hospital.outbox.put_tensors(lambda path: save_to(path, leaving))
    statement = ReleaseManifest(
        kind="release",
        content=study.content_of(charge.round),
        base_sha256=base.sha256,
        chain_head=base.chain_head,
        payload_sha256=payload_sha256,
        payload_bytes=hospital.outbox.tensors(payload_sha256).stat().st_size,
        tensors={name: tuple(update.tensors[name].shape) for name in sorted(update.tensors)},
        declared_training=hospital.policy.declared_training,
        plain_releases=hospital.ledger.plain_charges(),
        noise=update.noise,
        masked=masked,
        **_spent(hospital, study, charge.run),
        **_common(hospital, study.sha256, charge),
    )
    hospital.ledger.settle(charge, _into_outbox(hospital, statement))
    _warn_of_low_budget(hospital, charge)


def settle_without_release(hospital: Hospital, study: Study, charge: Charge, reason: str) -> None:
    """Settle a charge without a release (training diverged).

    There is no second attempt: choosing between attempts would itself leak.
    """
    statement = Refusal(kind="refusal", reason=reason, **_common(hospital, study.sha256, charge))
    hospital.ledger.settle(charge, _into_outbox(hospital, statement))


def acceptance(hospital: Hospital, study: Study, act: Charge) -> None:
    """Write the hospital's acceptance of a run to the outbox, and record it."""
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
        lacks=lacking(hospital.current, study.task),
        **_common(hospital, study.sha256, act),
    )
    hospital.ledger.publish(act, _into_outbox(hospital, statement))


def free_statement(
    hospital: Hospital, study: Study, act: Charge, statement: type[SumStatement], **fields: Any
) -> None:  # fmt: skip
    """Write a message of a secure sum to the outbox, and record it; it costs nothing."""
    whole = statement(**fields, **_common(hospital, study.sha256, act))
    hospital.ledger.publish(act, _into_outbox(hospital, whole))


def readiness(hospital: Hospital, study: Study, act: Charge) -> None:
    """Write the statement that the hospital could take part to the outbox, and record it."""
    statement = Readiness(kind="readiness", **_common(hospital, study.sha256, act))
    hospital.ledger.publish(act, _into_outbox(hospital, statement))


def refusal(hospital: Hospital, study: Study, act: Charge, reason: str) -> None:
    """Write a refusal to the outbox, and record it; its reason must name no patient and no count."""
    statement = Refusal(kind="refusal", reason=one_line(reason), **_common(hospital, study.sha256, act))
    hospital.ledger.publish(act, _into_outbox(hospital, statement))


def departure(hospital: Hospital, study_sha256: str, act: Charge) -> None:
    """Write the statement that the hospital leaves a run to the outbox, and record it."""
    statement = Departure(kind="departure", **_common(hospital, study_sha256, act))
    hospital.ledger.publish(act, _into_outbox(hospital, statement))


def scores(
    hospital: Hospital,
    study: Study,
    act: Charge,
    model: GlobalModel,
    policy: MetricsPolicy,
    metrics: dict[str, float],
    masked: Masked | None = None,
    hidden: tuple[int, ...] = (),
) -> None:
    """Write a global model's metrics to the outbox; settle their charge if they are noised.

    Args:
        hidden: masked sums of the metrics, in their place.
    """
    statement = Scores(
        kind="scores",
        model_sha256=model.sha256,
        chain_head=model.chain_head,
        metrics_policy=policy,
        metrics=metrics,
        masked=masked,
        hidden=hidden,
        **_common(hospital, study.sha256, act),
    )
    record = hospital.ledger.settle if act.event else hospital.ledger.publish
    record(act, _into_outbox(hospital, statement))


def comparison(
    hospital: Hospital,
    study: Study,
    act: Charge,
    models: dict[str, str],
    metrics: dict[str, dict[str, float]],
) -> None:
    """Write the metrics of hospitals' released models at this hospital to the outbox, and record them.

    Args:
        models: the sha256 of each compared model, by hospital.
        metrics: the metrics of each compared model, by hospital.
    """
    statement = Comparison(
        kind="comparison", models=models, metrics=metrics, **_common(hospital, study.sha256, act)
    )
    hospital.ledger.publish(act, _into_outbox(hospital, statement))


def audit_figures(
    hospital: Hospital, study: Study, act: Charge, model: GlobalModel, figures: dict[str, float]
) -> None:
    """Write what an audit found to the outbox, and settle its charge, if there are figures."""
    statement = AuditFigures(
        kind="audit",
        model_sha256=model.sha256,
        figures=figures,
        **_common(hospital, study.sha256, act),
    )
    record = hospital.ledger.settle if act.event else hospital.ledger.publish
    record(act, _into_outbox(hospital, statement))


def survey(
    hospital: Hospital,
    study: Study,
    act: Charge,
    policy: StatisticsPolicy,
    histograms: dict[str, list[float | None]],
    masked: Masked | None = None,
    hidden: tuple[int, ...] = (),
) -> None:
    """Write a survey's histograms to the outbox; settle their charge if they are noised.

    Args:
        hidden: masked sums of the histograms, in their place.
    """
    statement = Survey(
        kind="survey",
        declared_patients=hospital.policy.declared_patients,
        statistics_policy=policy,
        histograms=histograms,
        masked=masked,
        hidden=hidden,
        **_common(hospital, study.sha256, act),
    )
    record = hospital.ledger.settle if act.event else hospital.ledger.publish
    record(act, _into_outbox(hospital, statement))


def publish(hospital: Hospital, exchange: Exchange, act: Charge) -> None:
    """Write the recorded statement of an act to the exchange, after the tensors that it names.

    A second call writes the same bytes, so a retry changes nothing. Where somebody else left a file, the
    statement is published under a further name, at no further cost.

    Raises:
        LedgerError: the ledger records no statement of the act.
        AlreadyWritten: the hospital's own other statement is there.
    """
    statement, sha256 = statement_of(hospital, act)
    if isinstance(statement, ReleaseManifest):
        exchange.put_object(hospital.outbox.tensors(statement.payload_sha256), hospital.name)
    place = Place.statement(act.run, act.round, act.purpose, hospital.name)
    data = hospital.outbox.statement(sha256)
    found = exchange.put_statement(place, data, lambda other: hospital.wrote(other, place))
    if found != place:
        log.warning("somebody else's file is at %s; the statement was published at %s", place, found)


def statement_of(hospital: Hospital, act: Charge) -> tuple[Statement, str]:
    """Return the statement of an act, and the sha256 under which the outbox stores it.

    Raises:
        LedgerError: the ledger records no statement of the act.
    """
    sha256 = hospital.ledger.file_of(act)
    if sha256 is None:
        raise LedgerError(
            f"Expected a recorded statement of {act.purpose}, round {act.round} of {act.run}, got none."
        )
    return parse_statement(hospital.verified(hospital.outbox.statement(sha256))), sha256


def _warn_of_low_budget(hospital: Hospital, charge: Charge) -> None:
    """Call the webhook after a private charge if at least `LOW` of the budget is spent."""
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
    """Return the epsilon that the run has cost so far, for the patients with the highest cost."""
    if study.privacy.mode == "none":
        return {"epsilon": None, "delta": None, "epsilon_reported": {}}
    delta, accountants = study.privacy.delta, study.privacy.accountants
    rule = hospital.ledger.rule
    worst = max(hospital.ledger.histories(run), key=lambda events: epsilon(events, delta, rule))
    return {
        "epsilon": epsilon(worst, delta, rule),
        "delta": delta,
        "epsilon_reported": {name: reported_epsilon(worst, delta, name) for name in accountants},
    }
