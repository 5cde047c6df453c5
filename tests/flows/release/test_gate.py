"""The release gate: evidence, approvals, the champion."""

import time
from pathlib import Path

import pytest
import yaml
from deciders import (
    KEYS,
    PEOPLE,
    found,
    rewritten,
    say,
    say_for,
    with_criteria,
    with_metrics,
    with_people,
)
from homes import put_back
from mlflow.tracking import MlflowClient

from flows.decisions import chain
from flows.decisions.chain import NotReleased, record_verdict
from flows.decisions.criteria import LINEAGE
from flows.decisions.people import People
from flows.decisions.verdicts import ReleaseOutcome, terms_of
from flows.release import champion, evidence
from flows.runs.run import Run
from flows.tracking import registry
from flows.verification.verify import faults
from sites.study_sections import PromotionConfig


@pytest.fixture
def run(finished: Path, with_mlflow: tuple[Path, str]) -> Run:
    """A finished run about which nobody has decided."""
    return with_people(put_back(finished, with_mlflow[0]))


@pytest.fixture
def mlflow(with_mlflow: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", with_mlflow[1])
    return MlflowClient(with_mlflow[1])


def test_a_criterion_that_is_missed_or_has_no_evidence_blocks_and_is_named(run: Run) -> None:
    record = run.records()[-1]
    for criteria, named in (
        ({"mean": 0.9}, r"mean dice: at least 0.9; 0\.0"),
        ({"worst_site": 0.9}, r"worst hospital's dice: at least 0.9; 0\.0"),
        ({"epsilon": 30}, "epsilon: at most 30; missing: repeatable test noise protects nobody"),
        ({"attack_auc": 0.6}, "attack AUC: at most 0.6; missing: no privacy audit is recorded"),
    ):
        asked = with_criteria(run, **criteria)
        with pytest.raises(NotReleased, match=named):
            evidence.check_evidence(list(evidence.measured(asked, record, asked.study.promotion)))


def test_a_model_that_is_no_better_than_its_start_is_blocked_by_the_gain(run: Run) -> None:
    first, record = run.records()[0], run.records()[-1]
    for change, least, is_met in (
        (0.05, 0.0, True), (0.05, 0.04, True), (0.05, 0.06, False), (0.0, 0.0, False),
        (-0.01, 0.0, False),
    ):  # fmt: skip
        now = with_metrics(
            record, **{site: {**m, "dice": m["dice"] + change} for site, m in first.metrics.items()}
        )
        asked = PromotionConfig(metric="dice", gain=least)
        (only,) = evidence.measured(run, now, asked)
        assert only.criterion == "gain over the start"
        assert (only.is_met, only.found) == (is_met, f"{change:+.4f}")
    silent = with_metrics(record, east=None)
    (only,) = evidence.measured(run, silent, PromotionConfig(metric="dice", gain=0))
    assert not only.is_met and only.found == "missing: east did not publish it"


def test_the_largest_epsilon_of_any_hospital_decides(run: Run) -> None:
    most = max(r.statement.epsilon for record in run.records() for r in record.releases.values())
    rewritten(run, noise="system")
    assert found(run, epsilon=round(most + 0.01, 4)).is_met
    above = found(run, epsilon=round(most - 0.01, 4))
    assert not above.is_met and above.found == f"{most:.4f}"
    assert found(run, epsilon=most).is_met  # as a ledger allows it


def test_before_the_last_round_the_epsilon_is_the_studys_budget(run: Run) -> None:
    """A run that is stopped because of what came out has no other valid bound."""
    rewritten(run, noise="system")
    first, asked = run.records()[1], run.study.privacy.epsilon
    for most, is_met in ((asked + 0.01, True), (asked - 0.01, False)):
        (only,) = evidence.measured(run, first, PromotionConfig(metric="dice", epsilon=most))
        assert (only.is_met, only.found) == (is_met, f"{asked:.4f}")


def test_of_a_noised_metric_the_worse_end_of_its_interval_decides(run: Run) -> None:
    record = run.records()[-1]
    exact = {site: {**each, "dice": 0.8} for site, each in record.metrics.items()}
    noised = {"dice": 0.9, "low/dice": 0.5, "high/dice": 1.3}
    record = with_metrics(record, **exact)
    east = record.hospitals["east"]
    statement = east.scores.statement.model_copy(update={"metrics_policy": "noised", "metrics": noised})
    scores = east.scores.model_copy(update={"statement": statement})
    hospitals = {**record.hospitals, "east": east.model_copy(update={"scores": scores})}
    record = record.model_copy(update={"hospitals": hospitals})
    (worst,) = evidence.measured(run, record, PromotionConfig(metric="dice", worst_site=0.6))
    assert (worst.is_met, worst.found) == (False, "0.5000")
    (mean,) = evidence.measured(run, record, PromotionConfig(metric="dice", mean=0.75))
    assert (mean.is_met, mean.found) == (False, f"{(0.8 + 0.8 + 0.5) / 3:.4f}")


def test_an_epsilon_that_does_not_bound_everything_is_missing_evidence(run: Run) -> None:
    rewritten(run, noise="system", plain_releases=1)
    plain = found(run, epsilon=1000)
    assert not plain.is_met and "made releases without privacy of the same patients" in plain.found
    rewritten(
        run, noise="none", plain_releases=0, epsilon=None, event=None, delta=None, epsilon_reported={}
    )
    assert found(run, epsilon=1000).found == "missing: a release states none"


def test_the_mean_calibration_error_decides(run: Run) -> None:
    record = run.records()[-1]
    scores = {s: {**m, "calibration_error": 0.1} for s, m in record.metrics.items()}
    calibrated = with_metrics(record, **scores).model_copy(
        update={"quality": {**record.quality, "calibration_error": 0.1}}
    )
    for most, is_met in ((0.11, True), (0.1, True), (0.09, False)):
        asked = PromotionConfig(metric="dice", calibration_error=most)
        (only,) = evidence.measured(run, calibrated, asked)
        assert only.is_met == is_met and only.criterion == "calibration error"
    assert found(run, calibration_error=0.5).found.startswith("missing: east, north, south")


def test_a_hospital_that_withholds_its_figures_is_missing_evidence(run: Run) -> None:
    record = run.records()[-1]
    silent = with_metrics(record, east=None)
    (worst,) = evidence.measured(run, silent, PromotionConfig(metric="dice", worst_site=0.0))
    assert not worst.is_met and worst.found == "missing: east did not publish it"
    (mean,) = evidence.measured(run, silent, PromotionConfig(metric="dice", mean=0.0))
    assert not mean.is_met and mean.found == "missing: east did not publish it"


def test_a_study_without_criteria_releases_nothing(run: Run) -> None:
    study = run.study.model_copy(update={"promotion": None})
    bare = Run(run.folder, run.home, run.description.model_copy(update={"study": study}))
    with pytest.raises(NotReleased, match="has no `promotion`"):
        evidence.gather(bare, run.records()[-1])


def test_who_may_decide_no_longer_approves_no_release(run: Run) -> None:
    record = run.records()[-1]
    say(run, record, "ada")
    say(run, record, "bo")
    assert champion.missing_roles(run, record) == []
    moved_on = {"people": {"ada": PEOPLE.people["ada"]}, "former": {"bo": PEOPLE.people["bo"]}}
    text = yaml.safe_dump(People.model_validate(moved_on).model_dump())
    (run.home.folder / "people.yaml").write_text(text)
    assert champion.missing_roles(run, record) == ["officer"]


def test_a_release_that_was_interrupted_before_it_was_on_record_can_be_made_again(
    run: Run, mlflow: MlflowClient
) -> None:
    record = run.records()[-1]
    for name in KEYS:
        say(run, record, name)
    assert registry.write_approved(run, record, {}, b"a report") == "1"
    assert registry.champion("small") == ""
    proof = evidence.gather(run, record)  # with the lineage, whose check reads MLflow, too
    evidence.check_evidence([each for each in proof if each.criterion == LINEAGE])
    assert (
        champion.release_model(run, record, evidence.gather(run, record))
        == "1"
        == registry.champion("small")
    )
    assert list(faults(run)) == []


def test_a_release_needs_both_roles_and_a_revocation_moves_the_champion_back(
    run: Run, mlflow: MlflowClient
) -> None:
    first, second = run.records()[1:]
    say(run, first, "ada")
    proof = evidence.gather(run, first)
    with pytest.raises(NotReleased, match="Expected the approvals of clinician, officer"):
        champion.release_model(run, first, proof)
    say(run, first, "bo")
    with pytest.raises(NotReleased, match="Expected evidence of lineage"):
        champion.release_model(run, first, proof[:-1])
    assert champion.release_model(run, first, proof) == "1" == registry.champion("small")
    for name in KEYS:
        say(run, second, name)
    assert (
        champion.release_model(run, second, evidence.gather(run, second))
        == "2"
        == registry.champion("small")
    )
    again = champion.release_model(run, second, evidence.gather(run, second))
    assert again == "2"  # and nothing has changed
    assert champion.withdraw(run) == [] and registry.champion("small") == "2"
    say(run, second, "bo", "revoked")
    assert champion.withdraw(run) == ["2"] and registry.champion("small") == "1"
    say(run, first, "ada", "revoked")
    assert champion.withdraw(run) == ["1"] and registry.champion("small") == ""
    words = [d.verdict.word if d.verdict else d.outcome.what for d in chain.decisions(run)]
    assert words.count("revoked") == 2 and words.count("withdrawn") == 2 and words.count("released") == 2
    version = mlflow.get_model_version("small-approved", "2")
    assert version.tags["wardround.approved_by.officer"].startswith("bo, until")
    assert registry.REVOKED in version.tags


def test_no_model_is_fallen_back_on_whose_approvals_have_expired(run: Run, mlflow: MlflowClient) -> None:
    first, second = run.records()[1:]
    proof = evidence.gather(run, first), evidence.gather(run, second)
    until = say_for(run, first, "ada", 8.0)
    say(run, first, "bo")
    champion.release_model(run, first, proof[0])
    for name in KEYS:
        say(run, second, name)
    champion.release_model(run, second, proof[1])
    time.sleep(max(0.0, until - time.time()) + 0.01)
    say(run, second, "bo", "revoked")
    assert champion.withdraw(run) == ["2"] and registry.champion("small") == ""
    assert list(faults(run)) == []


@pytest.mark.slow
def test_approvals_that_have_expired_are_renewed_and_the_release_says_until_when(
    run: Run, mlflow: MlflowClient
) -> None:
    record = run.records()[-1]
    proof = evidence.gather(run, record)
    until = say_for(run, record, "ada", 6.0)
    say(run, record, "bo")
    assert champion.release_model(run, record, proof) == "1"
    before = mlflow.get_model_version("small-approved", "1").tags["wardround.approved_until"]
    time.sleep(max(0.0, until - time.time()) + 0.01)
    assert "its approvals have expired" in next(faults(run))
    assert champion.missing_roles(run, record) == ["clinician"]
    say(run, record, "ada")
    evidence.check_evidence(evidence.gather(run, record))  # what has expired hinders no new release
    assert (
        champion.release_model(run, record, evidence.gather(run, record))
        == "1"
        == registry.champion("small")
    )
    after = mlflow.get_model_version("small-approved", "1").tags["wardround.approved_until"]
    assert before < after
    assert [d.outcome.what for d in chain.decisions(run) if d.outcome] == ["released", "released"]
    assert list(faults(run)) == []


def test_an_earlier_model_that_is_promoted_again_is_the_champion_again(
    run: Run, mlflow: MlflowClient
) -> None:
    first, second = run.records()[1:]
    for record in (first, second, first):
        for name in KEYS if record is second or not chain.decisions(run) else ():
            say(run, record, name)
        champion.release_model(run, record, evidence.gather(run, record))
    assert registry.champion("small") == "1"
    assert list(faults(run)) == []
    mlflow.set_registered_model_alias("small-approved", "champion", "2")
    assert next(faults(run)) == "version 2 is the champion, the decisions name 1"


def test_no_release_is_put_on_record_behind_an_approval_that_has_expired_meanwhile(
    run: Run, mlflow: MlflowClient
) -> None:
    record = run.records()[-1]
    until = say_for(run, record, "ada", 1.5)
    say(run, record, "bo")
    terms = terms_of(run, record)
    outcome = ReleaseOutcome(what="released", terms=terms, version="1")
    given = chain.approvals(chain.decisions(run), terms, int(time.time() * 1000))
    chain.record_release(run, outcome, given)
    time.sleep(max(0.0, until - time.time()) + 0.01)
    with pytest.raises(NotReleased, match="An approval has expired"):
        chain.record_release(run, outcome, given)
    say(run, record, "ada")
    with pytest.raises(NotReleased, match="An approval was replaced by another"):
        chain.record_release(run, outcome, given)
    given = chain.approvals(chain.decisions(run), terms, int(time.time() * 1000))
    chain.record_release(run, outcome, given)
    say(run, record, "bo", "refused")
    with pytest.raises(NotReleased, match="or somebody has objected"):
        chain.record_release(run, outcome, given)


def test_what_was_revoked_is_taken_back_whatever_is_approved_later(
    run: Run, mlflow: MlflowClient
) -> None:
    record = run.records()[-1]
    for name in KEYS:
        say(run, record, name)
    champion.release_model(run, record, evidence.gather(run, record))
    say(run, record, "bo", "revoked")
    say(run, record, "bo")
    assert "has an objection against it; `wardround review withdraw` takes it back" in next(faults(run))
    assert champion.missing_roles(run, record) == ["clinician"]
    say(run, record, "ada")
    assert champion.missing_roles(run, record) == []
    assert champion.withdraw(run) == ["1"] and registry.champion("small") == ""
    assert list(faults(run)) == []
    assert (
        champion.release_model(run, record, evidence.gather(run, record))
        == "1"
        == registry.champion("small")
    )
    assert registry.REVOKED not in mlflow.get_model_version("small-approved", "1").tags
    assert list(faults(run)) == []


def test_a_release_that_was_interrupted_behind_its_record_is_finished_by_the_next(
    run: Run, mlflow: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = run.records()[-1]
    for name in KEYS:
        say(run, record, name)
    champion.release_model(run, record, evidence.gather(run, record))
    say(run, record, "bo", "revoked")
    champion.withdraw(run)
    for name in KEYS:
        say(run, record, name)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(registry, "make_champion", killed)
        champion.release_model(run, record, evidence.gather(run, record))
    assert registry.REVOKED in mlflow.get_model_version("small-approved", "1").tags
    assert (
        champion.release_model(run, record, evidence.gather(run, record))
        == "1"
        == registry.champion("small")
    )
    assert list(faults(run)) == []


def test_what_the_exchange_lacks_of_the_decisions_is_laid_down_by_whoever_decides_next(
    run: Run, mlflow: MlflowClient
) -> None:
    record = run.records()[-1]
    say(run, record, "ada")
    laid = Path(run.description.exchange) / "models" / f"{run.name}.decision-0001.json"
    for again in (
        lambda: record_verdict(run, chain.decisions(run)[0].signed, PEOPLE),
        lambda: champion.withdraw(run),
    ):
        laid.unlink()
        again()
        assert laid.read_bytes() == chain.folder_bytes(run)[1]
