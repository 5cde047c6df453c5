"""The proof of a release: it holds for one model, one study and people that the reader knows."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from deciders import PEOPLE, say, with_people
from homes import moved

from flows.decisions import chain, release_proof
from flows.decisions.people import ROLES, People, Person
from flows.decisions.release_proof import NotProven, ReleaseProof, check_proof, proof_of
from flows.decisions.verdicts import ReleaseOutcome, signed_verdict, terms_of
from flows.runs.run import Run
from models.files import sha256_of
from privacy.signing import public_hex, sign


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Run:
    """A finished run whose last model two people have released."""
    run = with_people(moved(finished, tmp_path / "home"))
    record = run.records()[-1]
    for name in ("ada", "bo"):
        say(run, record, name)
    terms = terms_of(run, record)
    known = chain.decisions(run)
    given = chain.approvals(known, terms, known[-1].at_ms)
    chain.record_release(run, ReleaseOutcome(what="released", terms=terms, version="1"), given)
    return run


@pytest.fixture
def proof(run: Run) -> ReleaseProof:
    return release_proof.parsed(release_proof.to_bytes(proof_of(run, run.records()[-1])))


def check(proof: ReleaseProof, people: People = PEOPLE, **changes: object):
    due = {"weights_sha256": proof.record.model_sha256, "study": proof.study} | changes
    return check_proof(proof, people=people, **due)


def test_a_proof_holds_by_the_people_alone(proof: ReleaseProof) -> None:
    released = check(proof)
    assert set(released.given) == set(ROLES)
    assert released.version == "1"


def test_a_proof_holds_for_its_weights_and_its_study_alone(run: Run, proof: ReleaseProof) -> None:
    with pytest.raises(NotProven, match="another model"):
        check(proof, weights_sha256="0" * 64)
    other = proof.study.model_copy(update={"rounds": 99})
    with pytest.raises(NotProven, match="another model"):
        check(proof, study=other)
    with pytest.raises(NotProven, match="record is of another study"):
        check(proof.model_copy(update={"study": other}), study=other)
    earlier = run.records()[-2]
    with pytest.raises(NotProven, match="No decision releases it"):
        check(proof_of(run, earlier))
    renamed = proof.record.model_copy(update={"model_sha256": earlier.model_sha256})
    with pytest.raises(NotProven, match="No decision releases it"):
        check(proof.model_copy(update={"record": renamed}))


def test_approvals_count_of_people_that_the_reader_knows(proof: ReleaseProof) -> None:
    stranger = Person(role="officer", key=public_hex(Ed25519PrivateKey.generate()))
    without = People(people={"ada": PEOPLE.people["ada"], "bo": stranger})
    with pytest.raises(NotProven, match="No decision releases it"):
        check(proof, without)
    former = People(people=without.people, former={"bo": (PEOPLE.people["bo"],)})
    assert check(proof, former).version == "1"


def test_an_approval_ends(proof: ReleaseProof) -> None:
    until = check(proof).until_ms
    check(proof, at_ms=until - 1)
    with pytest.raises(NotProven, match="approvals ended"):
        check(proof, at_ms=until)


def test_an_objection_and_a_withdrawal_end_it(run: Run) -> None:
    record = run.records()[-1]
    say(run, record, "bo", "revoked")
    with pytest.raises(NotProven, match="bo has revoked it"):
        check(proof_of(run, record))
    for name in ("ada", "bo"):
        say(run, record, name)
    withdrawn = ReleaseOutcome(what="withdrawn", terms=terms_of(run, record), version="1")
    chain.record_withdrawal(run, withdrawn)
    with pytest.raises(NotProven, match="No decision releases it"):  # approved anew, not released anew
        check(proof_of(run, record))


def test_whoever_makes_a_coordinators_key_makes_no_release(run: Run, proof: ReleaseProof) -> None:
    own, keys = Ed25519PrivateKey.generate(), {}
    links, previous = [], json.loads(proof.decisions[0])["statement"]["previous"]
    terms = terms_of(run, run.records()[-2])
    for number, (name, role) in enumerate((("ada", "clinician"), ("bo", "officer")), start=1):
        keys[name] = Ed25519PrivateKey.generate()
        verdict = signed_verdict(terms, "approved", name, role, keys[name], 30)
        at_ms = json.loads(verdict)["statement"]["at_ms"]
        link = chain.Decision(
            run=run.name, number=number, previous=previous, at_ms=at_ms, signed=verdict,
            public_key=public_hex(keys[name]),
        )  # fmt: skip
        links.append(sign(link.model_dump(mode="json"), "coordinator", own))
        previous = sha256_of(links[-1])
    outcome = ReleaseOutcome(what="released", terms=terms, version="1")
    link = chain.Decision(run=run.name, number=3, previous=previous, at_ms=at_ms, outcome=outcome)
    links.append(sign(link.model_dump(mode="json"), "coordinator", own))
    made = ReleaseProof(
        study=run.study, record=run.records()[-2], coordinators=(public_hex(own),),
        decisions=tuple(link.decode() for link in links),
    )  # fmt: skip
    theirs = People(people={n: Person(role=r, key=public_hex(keys[n])) for n, r in
                            (("ada", "clinician"), ("bo", "officer"))})  # fmt: skip
    assert check(made, theirs).version == "1"  # well made, by people whom nobody knows
    with pytest.raises(NotProven, match="No decision releases it"):
        check(made)


@pytest.mark.parametrize("change", ["drop", "edit", "other key"])
def test_a_changed_chain_proves_nothing(change: str, proof: ReleaseProof) -> None:
    links = list(proof.decisions)
    if change == "drop":
        del links[0]
    elif change == "edit":
        links[0] = links[0].replace("approved", "refused")
    changed = proof.model_copy(
        update={"decisions": tuple(links)}
        | ({"coordinators": ("0" * 64,)} if change == "other key" else {})
    )
    with pytest.raises(NotProven, match="decisions are broken"):
        check(changed)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b'{"kind": "release proof"}'])
def test_bytes_that_are_no_proof_are_reported(data: bytes) -> None:
    with pytest.raises(NotProven, match="can't be read"):
        release_proof.parsed(data)
