"""The release gate: evidence, people, the champion, and a flow that waits."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from homes import put_back
from mlflow.tracking import MlflowClient

from flows.decisions import decisions
from flows.decisions.criteria import LINEAGE
from flows.decisions.decisions import (
    BadVerdict,
    NotReleased,
    Outcome,
    People,
    Person,
    Verdict,
    signed_verdict,
    take_in,
    terms_of,
)
from flows.release import gate, reviews
from flows.reporting.publish import tell_decisions
from flows.runs.run import BrokenRun, RoundRecord, Run, StoreFailed
from flows.servers.loopback import running
from flows.tracking import registry
from flows.tracking.tracking import Tracking
from flows.verification.verify import faults
from privacy.signing import public_hex, sign
from sites.study import PromotionConfig
from sites.yaml_files import ConfigError

KEYS = {name: Ed25519PrivateKey.generate() for name in ("ada", "bo")}
ROLES = {"ada": "clinician", "bo": "officer"}
PEOPLE = People(people={n: Person(role=ROLES[n], key=public_hex(k)) for n, k in KEYS.items()})


@pytest.fixture
def run(finished: Path, with_mlflow: tuple[Path, str]) -> Run:
    """A finished run about which nobody has said anything."""
    copied = put_back(finished, with_mlflow[0])
    (copied.home.folder / "people.yaml").write_text(yaml.safe_dump(PEOPLE.model_dump()))
    return copied


@pytest.fixture
def mlflow(with_mlflow: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", with_mlflow[1])
    return MlflowClient(with_mlflow[1])


def say(run: Run, record: RoundRecord, name: str, word: str = "approved", days: int = 30) -> None:
    text = signed_verdict(terms_of(run, record), word, name, ROLES[name], KEYS[name], days)
    take_in(run, text, PEOPLE)


def say_for(run: Run, record: RoundRecord, name: str, seconds: float) -> float:
    """Approve a model for seconds; return when that is over, as `time.time` has it."""
    now = int(time.time() * 1000)
    said = Verdict(
        word="approved", person=name, role=ROLES[name], terms=terms_of(run, record), at_ms=now,
        expires_ms=now + int(seconds * 1000),
    )  # fmt: skip
    take_in(run, sign(said.model_dump(mode="json"), name, KEYS[name]).decode(), PEOPLE)
    return said.expires_ms / 1000


def with_criteria(run: Run, **criteria: object) -> Run:
    """Return the run as if its study had asked for something else."""
    promotion = PromotionConfig.model_validate({"metric": "dice", **criteria})
    study = run.study.model_copy(update={"promotion": promotion})
    return Run(run.folder, run.home, run.description.model_copy(update={"study": study}))


def test_a_criterion_that_is_missed_or_has_no_evidence_blocks_and_is_named(run: Run) -> None:
    record = run.records()[-1]
    for criteria, named in (
        ({"mean": 0.9}, r"mean dice: at least 0.9; 0\.0"),
        ({"worst_site": 0.9}, r"worst hospital's dice: at least 0.9; 0\.0"),
        ({"epsilon": 30}, "epsilon: at most 30; missing: repeatable test noise protects nobody"),
        ({"attack_auc": 0.6}, "attack AUC: at most 0.6; missing: no privacy audit is on record"),
    ):
        asked = with_criteria(run, **criteria)
        with pytest.raises(NotReleased, match=named):
            gate.check_evidence(list(gate.measured(asked, record, asked.study.promotion)))


def rewritten(run: Run, **changes: object) -> Run:
    """Return the run with other releases on record, each chained to the one before."""
    previous = run.records()[0].sha256
    for record in run.records()[1:]:
        releases = tuple(release.model_copy(update=changes) for release in record.releases)
        kept = record.model_copy(update={"releases": releases, "previous": previous})
        previous = kept.sha256
        (run.folder / "rounds" / f"round-{record.round:03d}.json").write_bytes(kept.data)
    return run


def found(run: Run, **criteria: object) -> decisions.Evidence:
    asked = PromotionConfig.model_validate({"metric": "dice", **criteria})
    (evidence,) = gate.measured(run, run.records()[-1], asked)
    return evidence


def test_the_largest_epsilon_of_any_hospital_decides(run: Run) -> None:
    most = max(r.epsilon for record in run.records() for r in record.releases)
    rewritten(run, noise="system")
    assert found(run, epsilon=round(most + 0.01, 4)).is_met
    above = found(run, epsilon=round(most - 0.01, 4))
    assert not above.is_met and above.found == f"{most:.4f}"
    assert found(run, epsilon=most).is_met  # as a ledger allows it


def test_an_epsilon_that_does_not_bound_everything_is_missing_evidence(run: Run) -> None:
    rewritten(run, noise="system", plain_releases=1)
    plain = found(run, epsilon=1000)
    assert not plain.is_met and "made releases without privacy of the same patients" in plain.found
    rewritten(run, noise="system", plain_releases=0, epsilon=None)
    assert found(run, epsilon=1000).found == "missing: a release states none"


def test_the_mean_calibration_error_decides(run: Run) -> None:
    record = run.records()[-1]
    scores = {s: {**m, "calibration_error": 0.1} for s, m in record.scores.items()}
    told = record.model_copy(
        update={"scores": scores, "quality": {**record.quality, "calibration_error": 0.1}}
    )
    for most, is_met in ((0.11, True), (0.1, True), (0.09, False)):
        asked = PromotionConfig(metric="dice", calibration_error=most)
        (evidence,) = gate.measured(run, told, asked)
        assert evidence.is_met == is_met and evidence.criterion == "calibration error"
    assert found(run, calibration_error=0.5).found.startswith("missing: east, north, south")


def test_a_hospital_that_withholds_its_figures_is_missing_evidence(run: Run) -> None:
    record = run.records()[-1]
    silent = record.model_copy(
        update={"scores": {s: m for s, m in record.scores.items() if s != "east"}}
    )
    (worst,) = gate.measured(run, silent, PromotionConfig(metric="dice", worst_site=0.0))
    assert not worst.is_met and worst.found == "missing: east did not publish it"
    (mean,) = gate.measured(run, silent, PromotionConfig(metric="dice", mean=0.0))
    assert not mean.is_met and mean.found == "missing: east did not publish it"


def test_a_study_without_criteria_releases_nothing(run: Run) -> None:
    study = run.study.model_copy(update={"promotion": None})
    bare = Run(run.folder, run.home, run.description.model_copy(update={"study": study}))
    with pytest.raises(NotReleased, match="has no `promotion`"):
        gate.gather(bare, run.records()[-1])


def test_a_missing_list_of_people_says_how_it_is_made(run: Run) -> None:
    (run.home.folder / "people.yaml").unlink()
    with pytest.raises(ConfigError, match=r"people.yaml: no such file.*`wardround review key` prints"):
        decisions.load_people(run.home)


def test_only_people_on_the_list_decide_each_in_his_role_about_this_very_model(run: Run) -> None:
    record, other = run.records()[-1], run.records()[-2]
    stranger, terms = Ed25519PrivateKey.generate(), terms_of(run, record)
    wrong = terms.model_copy(update={"model_sha256": other.model_sha256})
    for text, why in (
        (signed_verdict(terms, "approved", "eve", "officer", stranger, 30), "not in people.yaml"),
        (signed_verdict(terms, "approved", "bo", "officer", stranger, 30), "has not signed it"),
        (signed_verdict(terms, "approved", "ada", "officer", KEYS["ada"], 30), "as clinician"),
        (signed_verdict(wrong, "approved", "bo", "officer", KEYS["bo"], 30), "another model"),
        (signed_verdict(terms, "approved", "bo", "officer", KEYS["bo"], 0), "expired"),
        (signed_verdict(terms, "approved", "bo", "officer", KEYS["bo"], 31), "for 30 days at most"),
        ("yes", "Expected a signed verdict"),
    ):
        with pytest.raises(BadVerdict, match=why):
            take_in(run, text, PEOPLE)
    assert decisions.decisions(run) == []


def test_one_person_cannot_hold_two_roles() -> None:
    key = public_hex(KEYS["ada"])
    with pytest.raises(ValueError, match="a key of his own"):
        People(people={"a": Person(role="clinician", key=key), "b": Person(role="officer", key=key)})
    former = {"b": Person(role="officer", key=key)}
    with pytest.raises(ValueError, match="got one for a and b; nobody decides under two names"):
        People(people={"a": Person(role="clinician", key=key)}, former=former)
    People(
        people={"a": Person(role="clinician", key=key)}, former={"a": Person(role="officer", key=key)}
    )


def test_a_verdict_counts_once_and_none_that_is_older_than_the_last(run: Run) -> None:
    record = run.records()[-1]
    early = signed_verdict(terms_of(run, record), "approved", "ada", "clinician", KEYS["ada"], 30)
    time.sleep(0.002)
    say(run, record, "ada", "refused")
    with pytest.raises(BadVerdict, match="ada has objected since"):
        take_in(run, early, PEOPLE)
    late = signed_verdict(terms_of(run, record), "approved", "ada", "clinician", KEYS["ada"], 30)
    for _ in range(2):
        take_in(run, late, PEOPLE)
    assert len(decisions.decisions(run)) == 2
    again = signed_verdict(terms_of(run, record), "refused", "ada", "clinician", KEYS["ada"], 30)
    time.sleep(0.002)
    say(run, record, "ada")
    with pytest.raises(BadVerdict, match="ada has said something later"):
        take_in(run, again, PEOPLE)


def test_old_approvals_put_behind_a_refusal_with_the_coordinators_key_break_the_chain(run: Run) -> None:
    record = run.records()[-1]
    say(run, record, "ada")
    say(run, record, "bo")
    old = decisions.decisions(run)
    time.sleep(0.002)
    say(run, record, "bo", "refused")
    known = decisions.decisions(run)
    again = {"signed": old[0].signed, "public_key": old[0].public_key}
    decisions._append(run, known, known[-1].at_ms + 1, **again)
    with pytest.raises(BrokenRun, match="holds a verdict that does not count. bo has objected since"):
        gate.missing_roles(run, record)
    assert "does not count" in next(faults(run))


def test_who_may_decide_no_longer_approves_no_release(run: Run) -> None:
    record = run.records()[-1]
    say(run, record, "ada")
    say(run, record, "bo")
    assert gate.missing_roles(run, record) == []
    moved_on = {"people": {"ada": PEOPLE.people["ada"]}, "former": {"bo": PEOPLE.people["bo"]}}
    text = yaml.safe_dump(People.model_validate(moved_on).model_dump())
    (run.home.folder / "people.yaml").write_text(text)
    assert gate.missing_roles(run, record) == ["officer"]


def test_an_approval_expires_and_a_refusal_takes_every_approval_away(run: Run) -> None:
    record, terms = run.records()[-1], terms_of(run, run.records()[-1])
    say(run, record, "ada", days=1)
    known, now = decisions.decisions(run), int(time.time() * 1000)
    assert set(decisions.approvals(known, terms, now)) == {"clinician"}
    assert not decisions.approvals(known, terms, now + 2 * decisions.DAY_MS)
    say(run, record, "bo", "refused")
    with pytest.raises(NotReleased, match=r"bo \(officer\) has refused it"):
        gate.missing_roles(run, record)
    say(run, record, "bo")
    assert gate.missing_roles(run, record) == ["clinician"]


def test_a_release_that_was_interrupted_before_it_was_on_record_can_be_made_again(
    run: Run, mlflow: MlflowClient
) -> None:
    record = run.records()[-1]
    for name in KEYS:
        say(run, record, name)
    assert registry.write_approved(run, record, {}, b"a report") == "1"
    assert registry.champion("small") == ""
    evidence = gate.gather(run, record)  # with the lineage, whose check reads MLflow, too
    gate.check_evidence([each for each in evidence if each.criterion == LINEAGE])
    assert gate.release(run, record, gate.gather(run, record)) == "1" == registry.champion("small")
    assert list(faults(run)) == []


def test_a_release_needs_both_roles_and_a_revocation_moves_the_champion_back(
    run: Run, mlflow: MlflowClient
) -> None:
    first, second = run.records()[1:]
    say(run, first, "ada")
    evidence = gate.gather(run, first)
    with pytest.raises(NotReleased, match="Expected the approvals of clinician, officer"):
        gate.release(run, first, evidence)
    say(run, first, "bo")
    with pytest.raises(NotReleased, match="Expected evidence of lineage"):
        gate.release(run, first, evidence[:-1])
    assert gate.release(run, first, evidence) == "1" == registry.champion("small")
    for name in KEYS:
        say(run, second, name)
    assert gate.release(run, second, gate.gather(run, second)) == "2" == registry.champion("small")
    again = gate.release(run, second, gate.gather(run, second))
    assert again == "2"  # and nothing has changed
    assert gate.withdraw(run) == [] and registry.champion("small") == "2"
    say(run, second, "bo", "revoked")
    assert gate.withdraw(run) == ["2"] and registry.champion("small") == "1"
    say(run, first, "ada", "revoked")
    assert gate.withdraw(run) == ["1"] and registry.champion("small") == ""
    words = [d.verdict.word if d.verdict else d.outcome.what for d in decisions.decisions(run)]
    assert words.count("revoked") == 2 and words.count("withdrawn") == 2 and words.count("released") == 2
    version = mlflow.get_model_version("small-approved", "2")
    assert version.tags["wardround.approved_by.officer"].startswith("bo, until")
    assert registry.REVOKED in version.tags


def test_no_model_is_fallen_back_on_whose_approvals_have_expired(run: Run, mlflow: MlflowClient) -> None:
    first, second = run.records()[1:]
    evidence = gate.gather(run, first), gate.gather(run, second)
    until = say_for(run, first, "ada", 8.0)
    say(run, first, "bo")
    gate.release(run, first, evidence[0])
    for name in KEYS:
        say(run, second, name)
    gate.release(run, second, evidence[1])
    time.sleep(max(0.0, until - time.time()) + 0.01)
    say(run, second, "bo", "revoked")
    assert gate.withdraw(run) == ["2"] and registry.champion("small") == ""
    assert list(faults(run)) == []


@pytest.mark.slow
def test_approvals_that_have_expired_are_renewed_and_the_release_says_until_when(
    run: Run, mlflow: MlflowClient
) -> None:
    record = run.records()[-1]
    evidence = gate.gather(run, record)
    until = say_for(run, record, "ada", 6.0)
    say(run, record, "bo")
    assert gate.release(run, record, evidence) == "1"
    before = mlflow.get_model_version("small-approved", "1").tags["wardround.approved_until"]
    time.sleep(max(0.0, until - time.time()) + 0.01)
    assert "its approvals have expired" in next(faults(run))
    assert gate.missing_roles(run, record) == ["clinician"]
    say(run, record, "ada")
    gate.check_evidence(gate.gather(run, record))  # what has expired hinders no new release
    assert gate.release(run, record, gate.gather(run, record)) == "1" == registry.champion("small")
    after = mlflow.get_model_version("small-approved", "1").tags["wardround.approved_until"]
    assert before < after
    assert [d.outcome.what for d in decisions.decisions(run) if d.outcome] == ["released", "released"]
    assert list(faults(run)) == []


def test_an_earlier_model_that_is_promoted_again_is_the_champion_again(
    run: Run, mlflow: MlflowClient
) -> None:
    first, second = run.records()[1:]
    for record in (first, second, first):
        for name in KEYS if record is second or not decisions.decisions(run) else ():
            say(run, record, name)
        gate.release(run, record, gate.gather(run, record))
    assert registry.champion("small") == "1"
    assert list(faults(run)) == []
    mlflow.set_registered_model_alias("small-approved", "champion", "2")
    assert next(faults(run)) == "version 2 is the champion, and the decisions made it 1"


def test_no_release_is_put_on_record_behind_an_approval_that_has_expired_meanwhile(
    run: Run, mlflow: MlflowClient
) -> None:
    record = run.records()[-1]
    until = say_for(run, record, "ada", 1.5)
    say(run, record, "bo")
    terms = terms_of(run, record)
    outcome = Outcome(what="released", terms=terms, version="1")
    given = decisions.approvals(decisions.decisions(run), terms, int(time.time() * 1000))
    decisions.note_release(run, outcome, given)
    time.sleep(max(0.0, until - time.time()) + 0.01)
    with pytest.raises(NotReleased, match="An approval has expired"):
        decisions.note_release(run, outcome, given)
    say(run, record, "ada")
    with pytest.raises(NotReleased, match="An approval was replaced by another"):
        decisions.note_release(run, outcome, given)
    given = decisions.approvals(decisions.decisions(run), terms, int(time.time() * 1000))
    decisions.note_release(run, outcome, given)
    say(run, record, "bo", "refused")
    with pytest.raises(NotReleased, match="or somebody has objected"):
        decisions.note_release(run, outcome, given)


def test_what_was_revoked_is_taken_back_whatever_is_approved_later(
    run: Run, mlflow: MlflowClient
) -> None:
    record = run.records()[-1]
    for name in KEYS:
        say(run, record, name)
    gate.release(run, record, gate.gather(run, record))
    say(run, record, "bo", "revoked")
    say(run, record, "bo")
    assert "was taken back; `wardround review withdraw` does it" in next(faults(run))
    assert gate.missing_roles(run, record) == ["clinician"]
    say(run, record, "ada")
    assert gate.missing_roles(run, record) == []
    assert gate.withdraw(run) == ["1"] and registry.champion("small") == ""
    assert list(faults(run)) == []
    assert gate.release(run, record, gate.gather(run, record)) == "1" == registry.champion("small")
    assert registry.REVOKED not in mlflow.get_model_version("small-approved", "1").tags
    assert list(faults(run)) == []


def test_a_release_that_was_interrupted_behind_its_record_is_finished_by_the_next(
    run: Run, mlflow: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = run.records()[-1]
    for name in KEYS:
        say(run, record, name)
    gate.release(run, record, gate.gather(run, record))
    say(run, record, "bo", "revoked")
    gate.withdraw(run)
    for name in KEYS:
        say(run, record, name)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(registry, "crown", killed)
        gate.release(run, record, gate.gather(run, record))
    assert registry.REVOKED in mlflow.get_model_version("small-approved", "1").tags
    assert gate.release(run, record, gate.gather(run, record)) == "1" == registry.champion("small")
    assert list(faults(run)) == []


def test_what_the_exchange_lacks_of_the_decisions_is_laid_down_by_whoever_decides_next(
    run: Run, mlflow: MlflowClient
) -> None:
    record = run.records()[-1]
    say(run, record, "ada")
    laid = Path(run.description.exchange) / "models" / f"{run.name}.decision-0001.json"
    for again in (
        lambda: take_in(run, decisions.decisions(run)[0].signed, PEOPLE),
        lambda: gate.withdraw(run),
    ):
        laid.unlink()
        again()
        assert laid.read_bytes() == decisions.folder_bytes(run)[1]


def test_a_release_that_a_new_store_lacks_is_written_there_again(run: Run, mlflow: MlflowClient) -> None:
    record = run.records()[-1]
    for name in KEYS:
        say(run, record, name)
    gate.release(run, record, gate.gather(run, record))
    mlflow.delete_registered_model("small-approved")
    assert "MLflow lacks version 1" in next(faults(run))
    assert gate.release(run, record, gate.gather(run, record)) == "1" == registry.champion("small")
    assert list(faults(run)) == []


def test_whoever_has_changed_keys_or_roles_repeatedly_is_known_by_each() -> None:
    keys = [public_hex(Ed25519PrivateKey.generate()) for _ in range(3)]
    former = [{"role": "clinician", "key": keys[0]}, {"role": "officer", "key": keys[1]}]
    people = {"people": {"bo": {"role": "officer", "key": keys[2]}}, "former": {"bo": former}}
    known = People.model_validate(people)
    for role, key in (("clinician", keys[0]), ("officer", keys[1]), ("officer", keys[2])):
        assert known.knows("bo", role, key) and known.may("bo", role, key) == (key == keys[2])
    assert not known.knows("bo", "officer", keys[0])
    one = People.model_validate({**people, "former": {"bo": former[0]}})
    assert one.knows("bo", "clinician", keys[0])


def test_an_approval_that_another_has_replaced_counts_no_more_when_that_one_may_decide_no_longer(
    run: Run,
) -> None:
    record, key = run.records()[-1], Ed25519PrivateKey.generate()
    cy = Person(role="officer", key=public_hex(key))
    for name in KEYS:
        say(run, record, name)
    people = PEOPLE.model_copy(update={"people": {**PEOPLE.people, "cy": cy}})
    take_in(run, signed_verdict(terms_of(run, record), "approved", "cy", "officer", key, 30), people)
    moved_on = PEOPLE.model_copy(update={"former": {"cy": cy}})
    (run.home.folder / "people.yaml").write_text(yaml.safe_dump(moved_on.model_dump()))
    assert gate.missing_roles(run, record) == ["officer"]


def test_nothing_is_decided_while_the_exchange_has_another_decision_than_the_folder(run: Run) -> None:
    say(run, run.records()[-1], "ada")
    laid = Path(run.description.exchange) / "models" / f"{run.name}.decision-0001.json"
    laid.write_bytes(laid.read_bytes().replace(b"approved", b"approvee"))
    with pytest.raises(BrokenRun, match=r"0001.json is not the decision that the exchange has"):
        decisions.lay_down(run)
    with pytest.raises(BrokenRun, match="one of the two was altered"):
        say(run, run.records()[-1], "bo")


def test_a_store_that_is_not_there_is_told_in_one_message(run: Run, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    record = run.records()[-1]
    for ask, named in (
        (lambda: tell_decisions(run), "MLflow has not taken the report of"),
        (lambda: Tracking(run), "MLflow has not taken the experiment of small"),
        (lambda: registry.champion("small"), "MLflow has not told the champion of small"),
        (lambda: registry.write_approved(run, record, {}, b""), "MLflow has not taken the released"),
    ):
        with pytest.raises(StoreFailed, match=named):
            ask()
    assert "MLflow can't be read" in next(faults(run))


def test_what_is_released_is_written_from_the_run_and_not_from_the_candidate(
    run: Run, mlflow: MlflowClient, tmp_path: Path
) -> None:
    record = run.records()[-1]
    for name in KEYS:
        say(run, record, name)
    evidence = gate.gather(run, record)
    for path in (run.home.folder / "mlruns").rglob("MLmodel"):
        path.write_text(path.read_text().replace("flows.served_model", "os"))
    assert gate.release(run, record, evidence) == "1"
    (tmp_path / "released").mkdir()
    files = registry.fetch("small-approved", "champion", tmp_path / "released").folder
    assert "flows.served_model" in (files / "MLmodel").read_text()
    with pytest.raises(NotReleased, match="loads other code than what is installed"):
        gate.check_evidence(gate.gather(run, record))


@pytest.mark.slow
def test_the_flow_waits_for_people_who_decide_in_the_form_or_at_the_terminal(
    run: Run, mlflow: MlflowClient
) -> None:
    home, record = run.home.folder, run.records()[-1]
    command = [sys.executable, "-m", "flows.cli", "promote", "--wait-s", "200"]
    with running(run.home.prefect) as prefect:
        waiting = subprocess.Popen(
            command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        flow_run = paused(f"{prefect}/api", f"promote {run.name} {record.round}", waiting)
        text = signed_verdict(terms_of(run, record), "approved", "ada", "clinician", KEYS["ada"], 30)
        fill_in(f"{prefect}/api", flow_run, "what is no verdict")
        again = paused(f"{prefect}/api", f"promote {run.name} {record.round}", waiting, after=1)
        fill_in(f"{prefect}/api", again, text)
        paused(f"{prefect}/api", f"promote {run.name} {record.round}", waiting, after=2)
        reviews.decide(run, record, "approved", "bo", KEYS["bo"], "")
        said, _ = waiting.communicate(timeout=600)
    assert waiting.returncode == 0, said
    assert "Released: version 1 is the champion." in said
    assert [d.verdict.person for d in decisions.decisions(run) if d.verdict] == ["ada", "bo"]


@pytest.mark.slow
@pytest.mark.parametrize("wait_s", ["0", "2.5"])
def test_a_gate_for_which_nobody_decides_in_time_names_who_is_missing(
    run: Run, mlflow: MlflowClient, wait_s: str
) -> None:
    command = [sys.executable, "-m", "flows.cli", "promote", "--wait-s", wait_s]
    done = subprocess.run(command, cwd=run.home.folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert "Not released. The approval of these is missing: clinician, officer." in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_revocation_in_the_form_of_another_model_takes_the_champion_back(
    run: Run, mlflow: MlflowClient
) -> None:
    home, record = run.home.folder, run.records()[-1]
    for name in KEYS:
        say(run, record, name)
    gate.release(run, record, gate.gather(run, record))
    command = [sys.executable, "-m", "flows.cli", "promote", "--round", "1", "--wait-s", "200"]
    with running(run.home.prefect) as prefect:
        waiting = subprocess.Popen(
            command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        times = len(decisions.decisions(run))
        flow_run = paused(f"{prefect}/api", f"promote {run.name} 1", waiting, after=times)
        text = signed_verdict(terms_of(run, record), "revoked", "bo", "officer", KEYS["bo"], 30)
        fill_in(f"{prefect}/api", flow_run, text)
        paused(f"{prefect}/api", f"promote {run.name} 1", waiting, after=times + 1)
        assert registry.champion("small") == ""
        waiting.terminate()
        waiting.wait(60)
    assert list(faults(run)) == []


def test_a_prefect_that_can_not_be_reached_is_told_in_one_message(
    run: Run, mlflow: MlflowClient
) -> None:
    environment = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    command = [sys.executable, "-m", "flows.cli", "promote"]
    done = subprocess.run(
        command, cwd=run.home.folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "PREFECT_API_URL: http://127.0.0.1:9/api can't be reached" in done.stderr


def paused(api: str, name: str, process: subprocess.Popen, after: int = 0) -> str:
    """Return the id of the flow run of a name once it waits for its form for another time."""
    import httpx

    for _ in range(600):
        assert process.poll() is None, process.stdout.read()
        found = httpx.post(
            f"{api}/flow_runs/filter", json={"flow_runs": {"name": {"any_": [name]}}}
        ).json()
        for each in found:
            details = (each["state"] or {}).get("state_details") or {}
            if each["state_type"] == "PAUSED" and details.get("pause_key") == f"people-{after}":
                return str(each["id"])
        time.sleep(0.2)
    raise TimeoutError(name)


def fill_in(api: str, flow_run: str, signed: str) -> None:
    import httpx

    reply = httpx.post(f"{api}/flow_runs/{flow_run}/resume", json={"run_input": {"signed": signed}})
    reply.raise_for_status()
    assert reply.json()["status"] == "ACCEPT", reply.text
