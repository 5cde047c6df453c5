"""An audit at a hospital: what stays, what leaves, and what it costs."""

import json

import numpy as np
import pytest
from coordinator import Coordinator, first_model

from models import params as P
from models.checkpoints import StoredParams
from privacy.accounting import Budget, noise_for
from privacy.statements import AuditFigures, Refusal
from sites import export
from sites.audit.audit import report_path, reports
from sites.audit.membership import ranks_of_members
from sites.hospital import Hospital

NO_DISTILLATION = {"distillation": None, "export": "weights", "rounds": 1}


@pytest.fixture
def trained(hospital: Hospital, coordinator_of, study_with, edit):
    """A function that trains one round at a hospital under a policy, and publishes the model."""

    def do(policy: object, **changes: object) -> tuple[Hospital, Coordinator]:
        study = study_with(**(NO_DISTILLATION | changes))
        edit(hospital.folder / "site.yaml", audit=policy)
        here = Hospital.open(hospital.folder, test_noise=1)
        coordinator = coordinator_of(study)
        model = first_model(study)
        coordinator.publish(0, model)
        coordinator.order(here, "join", 0)
        release = coordinator.order(here, "contribute", 1)
        change = here.outbox.tensors(release.payload_sha256)
        coordinator.publish(1, P.add(model, StoredParams(change)))
        return here, coordinator

    return do


@pytest.fixture
def audited(trained):
    """A function that trains one round at a hospital, and has it audited under a policy."""

    def do(policy: object, **changes: object) -> tuple[Hospital, Coordinator, AuditFigures | Refusal]:
        here, coordinator = trained(policy, **changes)
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


def _twins(study, start, patients):
    from sites.audit.twins import Twins
    from sites.local_models import CPU

    return Twins(study, start, [], None, patients, 1, CPU)


def test_a_members_rank_depends_on_no_other_member_whatever_the_model_does(study_with) -> None:
    """Also where losses are not finite, and where scans can't be read."""
    from sites.audit.made_up import absent, made_up_patient

    study, rng = study_with(**NO_DISTILLATION), np.random.default_rng(0)
    patients = [made_up_patient(study, f"p{k}", rng) for k in range(10)]
    patients[7] = absent(patients[7])  # one of the others can't be read
    trained = np.arange(10) < 6
    start = first_model(study)
    for scale in (1.0, 1e20, 2e38):  # the last ones overflow for some patients, or for all
        broken = {name: value * scale for name, value in start.items()}

        def ranks(some, broken=broken):
            twins = _twins(study, start, some)
            seen = twins.seen()
            fell = twins.losses_of(twins.network(), seen) - twins.losses_of(twins.network(broken), seen)
            return ranks_of_members(fell, trained)

        whole = ranks(patients)
        assert np.isfinite(whole).all() and (whole >= 0).all() and (whole <= 1).all()
        for member in range(6):
            without = ranks([absent(p) if k == member else p for k, p in enumerate(patients)])
            others = np.arange(6) != member
            assert (without[others] == whole[others]).all()
            assert without[member] == 0.5  # as by guessing


def test_a_second_round_of_a_run_is_beyond_what_its_audits_may_cost(audited) -> None:
    hospital, coordinator, _ = audited(SMALL, rounds=2)
    coordinator.publish(2, first_model(coordinator.study))
    answer = coordinator.order(hospital, "audit", 2)
    assert isinstance(answer, Refusal)  # the run's audits have cost what the policy allows
    assert sum(c.purpose == "audit" for c in hospital.ledger.charges()) == 1


def test_a_run_in_which_the_hospital_never_trained_is_not_audited(
    hospital: Hospital, coordinator_of, study_with, edit
) -> None:
    edit(hospital.folder / "site.yaml", audit=SMALL)
    here = Hospital.open(hospital.folder, test_noise=1)
    coordinator = coordinator_of(study_with(**NO_DISTILLATION))
    for number in (0, 1):
        coordinator.publish(number, first_model(coordinator.study))
    answer = coordinator.order(here, "audit", 1)
    assert answer.reason == "this hospital has trained no model of this run"
    assert not [c for c in here.ledger.charges() if c.event]


def test_a_hospital_that_refuses_comparison_tells_nothing_of_whose_scans_are_told_apart(audited) -> None:
    *_, answer = audited(SMALL)
    assert "provenance" not in answer.figures


def test_an_interrupted_audit_is_charged_once_whatever_the_policy_says_by_then(
    trained, edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    hospital, coordinator = trained(SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(export, "audit_figures", killed)
        with pytest.raises(Killed):
            coordinator.order(hospital, "audit", 1)
    (charge,) = [c for c in hospital.ledger.charges() if c.purpose == "audit"]
    edit(hospital.folder / "site.yaml", audit=SMALL | {"epsilon": 2})
    again = Hospital.open(hospital.folder, test_noise=1)
    answer = coordinator.order(again, "audit", 1)
    assert answer.event.noise_multiplier == charge.event.noise_multiplier
    assert sum(c.purpose == "audit" for c in again.ledger.charges()) == 1
