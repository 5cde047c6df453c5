"""An audit at a hospital: what stays, what leaves, and what it costs."""

import json

import numpy as np
import pytest
from coordinator import Coordinator, first_model

from models import params as P
from privacy.accounting import Budget, noise_for
from privacy.statements import AuditFigures, Refusal
from sites.audit.audit import report_path, reports
from sites.audit.membership import ranks_of_members
from sites.hospital import Hospital

NO_DISTILLATION = {"distillation": None, "export": "weights", "rounds": 1}


@pytest.fixture
def audited(hospital: Hospital, coordinator_of, study_with, edit):
    """A function that trains one round at a hospital, and has it audited under a policy."""

    def do(policy: object, **changes: object) -> tuple[Hospital, Coordinator, AuditFigures | Refusal]:
        study = study_with(**(NO_DISTILLATION | changes))
        edit(hospital.folder / "site.yaml", audit=policy)
        here = Hospital.open(hospital.folder, test_noise=1)
        coordinator = coordinator_of(study)
        model = first_model(study)
        coordinator.publish(0, model)
        coordinator.order(here, "join", 0)
        release = coordinator.order(here, "contribute", 1)
        change = here.outbox.tensors(release.payload_sha256)
        from models.checkpoints import StoredParams

        coordinator.publish(1, P.add(model, StoredParams(change)))
        return here, coordinator, coordinator.order(here, "audit", 1)

    return do


SMALL = {"epsilon": 4, "shadows": 4, "plain_steps": 3, "canaries": 200}


def test_an_audit_leaves_one_noised_number_that_is_charged_and_keeps_the_report_here(audited) -> None:
    hospital, _, answer = audited(SMALL)
    assert set(answer.figures) == {"mia_auc", "low/mia_auc", "high/mia_auc"}
    budget = Budget(epsilon=4, delta=hospital.policy.budget.delta)
    due = noise_for(budget, sampling_rate=1, steps=1)
    assert answer.event.noise_multiplier == pytest.approx(due)
    (charge,) = [c for c in hospital.ledger.charges() if c.purpose == "audit"]
    assert charge.event.noise_multiplier == pytest.approx(due)
    half = (answer.figures["high/mia_auc"] - answer.figures["low/mia_auc"]) / 2
    assert half == pytest.approx(1.96 * due / hospital.policy.declared_training / 2**0.5, abs=1e-5)
    (report,) = reports(hospital)
    kinds = {(each.model, each.attack) for each in report.attacks}
    models = {"global", "released", "private twin", "plain twin"}
    assert {model for model, _ in kinds} == models
    assert report.one_run.claimed == pytest.approx(report.epsilon, rel=1e-6)
    assert report.one_run.epsilon_lower <= report.epsilon
    left = {path.read_text() for path in (hospital.state / "outbox").glob("*.json")}
    assert not any("plain twin" in text for text in left)


def test_the_number_that_leaves_is_the_mean_rank_of_those_who_trained(audited, monkeypatch) -> None:
    """With noise that nobody could see the AUC is that of the report, over the declared patients."""
    hospital, _, answer = audited(SMALL | {"epsilon": 25.0})
    (report,) = reports(hospital)
    attack = next(a for a in report.attacks if (a.model, a.attack) == ("global", "calibrated loss"))
    declared = hospital.policy.declared_training
    due = 0.5 + (attack.auc.value - 0.5) * attack.members / declared
    assert answer.figures["mia_auc"] == pytest.approx(due, abs=5 * 0.2 / declared)


def test_a_second_order_changes_neither_the_answer_nor_the_report(audited) -> None:
    hospital, coordinator, answer = audited(SMALL)
    before = report_path(hospital, coordinator.run, 1).read_bytes()
    assert coordinator.order(hospital, "audit", 1) == answer
    assert report_path(hospital, coordinator.run, 1).read_bytes() == before
    assert sum(c.purpose == "audit" for c in hospital.ledger.charges()) == 1


def test_a_hospital_that_withholds_audits_trains_no_twins_and_pays_nothing(audited) -> None:
    hospital, _, answer = audited("withheld")
    assert (answer.figures, answer.event) == ({}, None)
    assert not (hospital.state / "audits").exists()


def test_an_audit_beyond_the_budget_is_refused_and_nothing_is_charged(audited) -> None:
    hospital, _, answer = audited(SMALL | {"epsilon": 60.0})
    assert isinstance(answer, Refusal)
    assert "Expected epsilon of at most 50" in answer.reason
    assert not (hospital.state / "audits").exists()
    assert not [c for c in hospital.ledger.charges() if c.purpose == "audit"]


def test_a_study_without_privacy_is_audited_without_private_twins(audited, edit, hospital) -> None:
    edit(hospital.folder / "site.yaml", plain_studies="allow")
    here, _, answer = audited(SMALL, privacy={"mode": "none"})
    (report,) = reports(here)
    assert (report.epsilon, report.one_run) == (None, None)
    assert "private twin" not in {each.model for each in report.attacks}
    assert "mia_auc" in answer.figures


def test_an_audit_needs_exact_metrics(hospital: Hospital, edit) -> None:
    from sites.yaml_files import ConfigError

    edit(hospital.folder / "site.yaml", audit=SMALL, metrics="withheld")
    with pytest.raises(ConfigError, match="audit: expected withheld, as metrics is withheld"):
        Hospital.open(hospital.folder)


def test_ranks_of_members_average_to_the_auc_and_each_moves_only_its_own() -> None:
    rng = np.random.default_rng(0)
    scores, trained = rng.normal(size=30), np.arange(30) < 20
    ranks = ranks_of_members(scores, trained)
    pairs = [[m > o for o in scores[20:]] for m in scores[:20]]
    assert ranks.tolist() == pytest.approx(np.mean(pairs, 1).tolist())
    other = scores.copy()
    other[3] = 100.0
    moved = ranks_of_members(other, trained) != ranks
    assert set(np.flatnonzero(moved)) <= {3}


def test_the_report_can_be_read_by_a_machine(audited) -> None:
    from typer.testing import CliRunner

    from flows.cli.main import app

    hospital, _, _ = audited(SMALL)
    shown = CliRunner().invoke(app, ["site", "audit", str(hospital.folder), "--json"])
    (report,) = json.loads(shown.stdout)
    assert {"value", "low", "high"} == set(report["attacks"][0]["auc"])
    words = CliRunner().invoke(app, ["site", "audit", str(hospital.folder)]).stdout
    assert "plain" in words and "confidence 0.9999" in words
