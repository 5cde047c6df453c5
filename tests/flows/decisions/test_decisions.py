"""Decisions: the people, what they sign, and the chain that it makes."""

import time
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from deciders import KEYS, PEOPLE, say, with_people
from homes import moved

from flows.decisions import chain, people, verdicts
from flows.decisions.chain import NotReleased, record_verdict
from flows.decisions.people import People, Person
from flows.decisions.verdicts import BadVerdict, signed_verdict, terms_of
from flows.release import champion
from flows.runs.record_files import BrokenRun
from flows.runs.run import Run
from flows.verification.verify import faults
from privacy.signing import public_hex
from sites.yaml_files import ConfigError


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Run:
    """A finished run about which nobody has decided."""
    return with_people(moved(finished, tmp_path / "home"))


def test_a_missing_list_of_people_says_how_it_is_made(run: Run) -> None:
    (run.home.folder / "people.yaml").unlink()
    with pytest.raises(ConfigError, match=r"people.yaml: no such file.*`wardround review key` prints"):
        people.load_people(run.home)


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
            record_verdict(run, text, PEOPLE)
    assert chain.decisions(run) == []


def test_one_person_cannot_hold_two_roles() -> None:
    key = public_hex(KEYS["ada"])
    with pytest.raises(ValueError, match="another key for each person"):
        People(people={"a": Person(role="clinician", key=key), "b": Person(role="officer", key=key)})
    former = {"b": Person(role="officer", key=key)}
    with pytest.raises(ValueError, match="got one key for a and b; nobody decides under two names"):
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
        record_verdict(run, early, PEOPLE)
    late = signed_verdict(terms_of(run, record), "approved", "ada", "clinician", KEYS["ada"], 30)
    for _ in range(2):
        record_verdict(run, late, PEOPLE)
    assert len(chain.decisions(run)) == 2
    again = signed_verdict(terms_of(run, record), "refused", "ada", "clinician", KEYS["ada"], 30)
    time.sleep(0.002)
    say(run, record, "ada")
    with pytest.raises(BadVerdict, match="ada has signed a later verdict"):
        record_verdict(run, again, PEOPLE)


def test_old_approvals_put_behind_a_refusal_with_the_coordinators_key_break_the_chain(run: Run) -> None:
    record = run.records()[-1]
    say(run, record, "ada")
    say(run, record, "bo")
    old = chain.decisions(run)
    time.sleep(0.002)
    say(run, record, "bo", "refused")
    known = chain.decisions(run)
    again = {"signed": old[0].signed, "public_key": old[0].public_key}
    chain._append(run, known, known[-1].at_ms + 1, **again)
    with pytest.raises(BrokenRun, match="holds a verdict that does not count. bo has objected since"):
        champion.missing_roles(run, record)
    assert "does not count" in next(faults(run))


def test_an_approval_expires_and_a_refusal_takes_every_approval_away(run: Run) -> None:
    record, terms = run.records()[-1], terms_of(run, run.records()[-1])
    say(run, record, "ada", days=1)
    known, now = chain.decisions(run), int(time.time() * 1000)
    assert set(chain.approvals(known, terms, now)) == {"clinician"}
    assert not chain.approvals(known, terms, now + 2 * verdicts.DAY_MS)
    say(run, record, "bo", "refused")
    with pytest.raises(NotReleased, match=r"bo \(officer\) has refused it"):
        champion.missing_roles(run, record)
    say(run, record, "bo")
    assert champion.missing_roles(run, record) == ["clinician"]


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
    record_verdict(
        run, signed_verdict(terms_of(run, record), "approved", "cy", "officer", key, 30), people
    )
    moved_on = PEOPLE.model_copy(update={"former": {"cy": cy}})
    (run.home.folder / "people.yaml").write_text(yaml.safe_dump(moved_on.model_dump()))
    assert champion.missing_roles(run, record) == ["officer"]


def test_nothing_is_decided_while_the_exchange_has_another_decision_than_the_folder(run: Run) -> None:
    say(run, run.records()[-1], "ada")
    laid = Path(run.description.exchange) / "models" / f"{run.name}.decision-0001.json"
    laid.write_bytes(laid.read_bytes().replace(b"approved", b"approvee"))
    with pytest.raises(BrokenRun, match=r"0001.json is not the decision that the exchange has"):
        chain.publish_decisions(run)
    with pytest.raises(BrokenRun, match="one of the two was altered"):
        say(run, run.records()[-1], "bo")
