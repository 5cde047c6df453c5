"""What decisions come to: links are made here as the gate makes them, with times of the test's own."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from flows.decisions.release_status import (
    CANDIDATE,
    champion,
    in_words,
    newest_approved,
    released,
    revoked,
    waits_for,
)
from flows.decisions.verdicts import Decision, ReleaseOutcome, Terms, Verdict
from flows.runs.records import GENESIS
from privacy.signing import public_hex, sign

KEYS = {name: Ed25519PrivateKey.generate() for name in ("ada", "bo")}
ROLES = {"ada": "clinician", "bo": "officer"}
LONG = 10**6


def about(round: int, run: str = "run-a") -> Terms:
    return Terms(study="s", run=run, round=round, model_sha256=f"{round:064x}", record_sha256="1" * 64)


def link(at_ms: int, **content: object) -> Decision:
    return Decision(run="run-a", number=1, previous=GENESIS, at_ms=at_ms, **content)


def said(at_ms: int, terms: Terms, name: str, word: str = "approved", for_ms: int = LONG) -> Decision:
    verdict = Verdict(
        word=word, person=name, role=ROLES[name], terms=terms, at_ms=at_ms, expires_ms=at_ms + for_ms
    )
    text = sign(verdict.model_dump(mode="json"), name, KEYS[name]).decode()
    return link(at_ms, signed=text, public_key=public_hex(KEYS[name]))


def became(at_ms: int, terms: Terms, what: str, version: str) -> Decision:
    return link(at_ms, outcome=ReleaseOutcome(what=what, terms=terms, version=version))


def release(at_ms: int, terms: Terms, version: str, for_ms: int = LONG) -> list[Decision]:
    approved = [said(at_ms, terms, name, for_ms=for_ms) for name in KEYS]
    return [*approved, became(at_ms + 1, terms, "released", version)]


def revocation(at_ms: int, terms: Terms, version: str) -> list[Decision]:
    return [said(at_ms, terms, "bo", "revoked"), became(at_ms + 1, terms, "withdrawn", version)]


def test_nothing_decided_is_a_candidate_and_no_champion() -> None:
    assert in_words([]) == CANDIDATE
    assert champion([[], []]) == "" == newest_approved([[]], 0)


def test_the_model_released_last_is_the_champion_until_it_is_withdrawn() -> None:
    chain = release(10, about(1), "1")
    assert champion([chain]) == "1"
    chain += release(20, about(2), "2")
    assert champion([chain]) == "2"
    assert in_words(chain) == "round 2 as version 2, approved by ada (clinician) and bo (officer)"
    chain.append(said(30, about(2), "bo", "revoked"))
    assert champion([chain]) == "2"  # until somebody takes it back
    told = "round 1 as version 1, approved by ada (clinician) and bo (officer); round 2 revoked by bo"
    assert in_words(chain) == f"{told} (officer)"
    chain.append(became(31, about(2), "withdrawn", "2"))
    assert champion([chain]) == "1"
    chain += revocation(40, about(1), "1")
    assert champion([chain]) == "" and in_words(chain) == "no: round 1 revoked by bo (officer)"


def test_one_approval_is_told_and_releases_nothing() -> None:
    chain = [said(10, about(3), "ada")]
    assert in_words(chain) == "no: round 3 approved by ada (clinician)"
    assert released(chain) == {} and champion([chain]) == ""


def test_who_is_waited_for_is_told_of_the_model_that_was_decided_about_last() -> None:
    assert waits_for([], 4) == "clinician and officer, about round 4"
    chain = [said(10, about(3), "ada")]
    assert waits_for(chain, 4) == "officer, about round 3"
    chain.append(said(11, about(3), "bo"))
    assert waits_for(chain, 4) == "`wardround promote`, about round 3"
    chain.append(became(12, about(3), "released", "1"))
    assert waits_for(chain, 4) == "nobody"
    chain.append(said(13, about(3), "bo", "revoked"))
    assert waits_for(chain, 4) == "clinician and officer, about round 3"


def test_an_objection_to_what_was_released_is_undone_by_no_later_approval() -> None:
    chain = [*release(10, about(1), "1"), said(20, about(1), "bo", "refused")]
    for name in KEYS:
        chain.append(said(30, about(1), name))
        assert revoked(chain) == [released(chain)["1"]]
        assert newest_approved([chain], 40) == ""
        assert in_words(chain).startswith("no: round 1 approved by")
    chain.append(became(41, about(1), "withdrawn", "1"))
    chain.append(became(42, about(1), "released", "1"))
    assert revoked(chain) == [] and newest_approved([chain], 50) == "1" == champion([chain])


def test_a_version_of_a_new_store_takes_the_place_of_the_one_that_its_model_had() -> None:
    chain = [*release(10, about(1), "1"), *release(20, about(2), "2"), *release(30, about(2), "1")]
    assert {each.version for each in released(chain).values()} == {"1"}
    assert champion([chain]) == "1"


def test_nothing_follows_whose_approvals_have_expired() -> None:
    chain = [*release(10, about(1), "1", for_ms=50), *release(20, about(2), "2")]
    assert champion([[*chain, *revocation(40, about(2), "2")]]) == "1"
    assert champion([[*chain, *revocation(60, about(2), "2")]]) == ""
    assert newest_approved([chain], 59) == "2" and newest_approved([chain[:3]], 60) == ""


def test_a_renewed_release_stands_until_the_first_of_its_new_approvals_expires() -> None:
    chain = release(10, about(1), "1", for_ms=50)
    assert released(chain)["1"].until_ms == 60
    chain += [said(55, about(1), "ada", for_ms=500), said(56, about(1), "bo", for_ms=300)]
    assert released(chain)["1"].until_ms == 60
    chain.append(became(57, about(1), "released", "1"))
    assert released(chain)["1"].until_ms == 356
    assert released(chain)["1"].tags["wardround.approved_by.officer"] == "bo, until 1970-01-01"


def test_the_champion_of_a_study_is_found_across_its_runs() -> None:
    one, other = release(10, about(1), "1"), release(20, about(1, "run-b"), "2")
    assert champion([one, other]) == champion([other, one]) == "2"
    other += revocation(30, about(1, "run-b"), "2")
    assert champion([one, other]) == "1"


@given(st.lists(st.sampled_from(["release", "revoke"]), max_size=8), st.data())
def test_the_champion_is_always_one_that_was_released_and_not_withdrawn(steps, data) -> None:
    chain: list[Decision] = []
    for at, step in enumerate(steps, start=1):
        round = data.draw(st.integers(1, 3))
        if step == "release":
            chain += release(100 * at, about(round), str(round))
        elif str(round) in released(chain):
            chain += revocation(100 * at, about(round), str(round))
    crowned = champion([chain])
    assert (crowned in released(chain)) if released(chain) else crowned == ""


def test_tags_name_the_day_of_the_first_approval_that_expires() -> None:
    chain = [said(0, about(1), "ada", for_ms=3 * 24 * 3600 * 1000), said(1, about(1), "bo")]
    (stands,) = released([*chain, became(2, about(1), "released", "1")]).values()
    assert stands.tags["wardround.approved_until"] == "1970-01-01"
    assert stands.tags["wardround.approved_by.clinician"] == "ada, until 1970-01-04"


def test_no_decision_without_content_is_about_a_model() -> None:
    assert link(1).terms is None
    with pytest.raises(ValueError, match="Input should be"):
        became(1, about(1), "crowned", "1")
