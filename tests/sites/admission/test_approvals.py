"""What waits for a person of the hospital, and what his word does."""

from collections.abc import Callable
from pathlib import Path

import pytest
from coordinator import Coordinator, first_model
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.signing import sign
from sites.admission.approvals import ApprovalNeeded
from sites.admission.requests import decide, decide_by_code, waiting
from sites.exchange.exchange import Exchange
from sites.exchange.places import Place
from sites.hospital import Hospital
from sites.yaml_files import ConfigError


@pytest.fixture
def coordinator(tmp_path: Path, study_with) -> Coordinator:
    exchange = Exchange(str(tmp_path / "exchange"))
    return Coordinator(study_with(), exchange, Ed25519PrivateKey.generate())


@pytest.fixture
def opened(tmp_path: Path, small_wards, edit) -> Callable[..., Hospital]:
    """A function that opens the hospital north with `approve` as given."""
    ward = small_wards(tmp_path / "wards") / "north"

    def open_it(**approve: str) -> Hospital:
        edit(ward / "site.yaml", approve=approve)
        return Hospital.open(ward)

    return open_it


def said(coordinator: Coordinator, act: str, round: int) -> bytes | None:
    return coordinator.exchange.statement(Place.statement("small-1", round, act, "north"))


def test_joining_waits_for_a_word_and_then_happens(coordinator: Coordinator, opened) -> None:
    hospital = opened(join="manual")
    for _ in range(2):
        with pytest.raises(ApprovalNeeded, match="join waits"):
            coordinator.order(hospital, "join", 0)
    (asked,) = waiting(hospital)
    assert asked.request.terms["study_sha256"] == coordinator.study.sha256
    assert said(coordinator, "join", 0) is None
    decide(hospital, asked.terms[:6], "approved", "IT")
    assert coordinator.order(hospital, "join", 0).kind == "acceptance"
    assert not waiting(hospital)


def test_nothing_is_learned_or_told_of_patients_before_a_study_was_let_in(
    coordinator: Coordinator, opened
) -> None:
    hospital = opened(join="manual")
    coordinator.publish(0, first_model(coordinator.study))
    for phase, round in (("contribute", 1), ("evaluate", 0)):
        with pytest.raises(ApprovalNeeded, match="join waits"):
            coordinator.order(hospital, phase, round)
    assert not hospital.ledger.entries()
    decide(hospital, waiting(hospital)[0].terms, "approved", "IT")
    assert coordinator.order(hospital, "evaluate", 0).kind == "scores"


def test_a_release_waits_as_the_bytes_that_leave_and_is_paid_for_once(
    coordinator: Coordinator, opened
) -> None:
    hospital = opened(export="manual")
    coordinator.publish(0, first_model(coordinator.study))
    coordinator.order(hospital, "join", 0)
    with pytest.raises(ApprovalNeeded, match="export waits"):
        coordinator.order(hospital, "contribute", 1)
    (asked,) = waiting(hospital)
    payload = asked.request.terms["release"]["payload_sha256"]
    assert said(coordinator, "contribute", 1) is None
    with pytest.raises(FileNotFoundError):
        coordinator.exchange.object(payload, "north", 2**20)
    decide(hospital, asked.terms, "approved", "IT")
    assert coordinator.order(hospital, "contribute", 1).payload_sha256 == payload
    assert len(hospital.ledger.charges("small-1")) == 1


@pytest.mark.parametrize(("act", "phase", "round"), [("join", "join", 0), ("export", "contribute", 1)])
def test_a_refusal_tells_nobody_why_and_lets_nothing_out(
    coordinator: Coordinator, opened, act: str, phase: str, round: int
) -> None:
    hospital = opened(**{act: "manual"})
    coordinator.publish(0, first_model(coordinator.study))
    with pytest.raises(ApprovalNeeded):
        coordinator.order(hospital, phase, round)
    (asked,) = waiting(hospital)
    decide(hospital, asked.terms, "refused", "the head of IT, who does not like the study")
    refusal = coordinator.order(hospital, phase, round)
    assert (refusal.kind, refusal.reason) == ("refusal", "the hospital does not take part")
    assert said(coordinator, phase, round) is None
    lying = [path.read_bytes() for path in Path(coordinator.exchange.url).rglob("*") if path.is_file()]
    assert not any(b"does not like" in data for data in lying)


def test_an_approval_is_for_these_terms_alone(
    coordinator: Coordinator, opened, edit, study_with
) -> None:
    hospital = opened(join="manual")
    with pytest.raises(ApprovalNeeded):
        coordinator.order(hospital, "join", 0)
    decide(hospital, waiting(hospital)[0].terms, "approved", "IT")
    other = Coordinator(study_with(rounds=3), coordinator.exchange, coordinator.key, run="small-2")
    with pytest.raises(ApprovalNeeded):
        other.order(hospital, "join", 0)
    assert coordinator.order(hospital, "join", 0).kind == "acceptance"
    coordinator.publish(0, first_model(coordinator.study))
    assert coordinator.order(hospital, "evaluate", 0).kind == "scores"
    images = sorted((hospital.data / "imagesTr").iterdir())
    images[0].write_bytes(images[1].read_bytes() + b" ")
    with pytest.raises(ApprovalNeeded):
        coordinator.order(Hospital.open(hospital.folder), "contribute", 1)


def test_a_refusal_stands_whatever_the_policy_says_later(coordinator: Coordinator, opened) -> None:
    hospital = opened(export="manual")
    coordinator.publish(0, first_model(coordinator.study))
    with pytest.raises(ApprovalNeeded):
        coordinator.order(hospital, "contribute", 1)
    (asked,) = waiting(hospital)
    decide_by_code(hospital, asked.codes["refused"], "IT")
    with pytest.raises(
        ConfigError, match=r"was refused by IT \(from afar\); an answer can't be changed"
    ):
        decide(hospital, asked.terms, "approved", "somebody else")
    later = opened(export="auto")
    assert coordinator.order(later, "contribute", 1).kind == "refusal"
    assert said(coordinator, "contribute", 1) is None


def test_a_row_that_the_hospital_did_not_sign_counts_for_nothing(
    coordinator: Coordinator, opened
) -> None:
    hospital = opened(join="manual")
    with pytest.raises(ApprovalNeeded):
        coordinator.order(hospital, "join", 0)
    (asked,) = waiting(hospital)
    row = hospital.state / "approvals" / f"{asked.terms}.json"
    word = {"terms": asked.terms, "answer": "approved", "by": "x", "at_ms": 1}
    row.write_bytes(sign(word, "north", Ed25519PrivateKey.generate()))
    with pytest.raises(ConfigError, match="expected a row that this hospital signed"):
        coordinator.order(hospital, "join", 0)
    row.write_bytes(sign({**word, "terms": "0" * 64}, "north", hospital.key))
    with pytest.raises(ConfigError, match="on other terms"):
        coordinator.order(hospital, "join", 0)
    assert said(coordinator, "join", 0) is None


def test_only_the_code_of_what_waits_names_it_from_afar(coordinator: Coordinator, opened) -> None:
    hospital = opened(join="manual")
    with pytest.raises(ApprovalNeeded):
        coordinator.order(hospital, "join", 0)
    (asked,) = waiting(hospital)
    for wrong in ("", asked.terms, asked.codes["approved"][:-1], "0" * 16):
        with pytest.raises(ConfigError, match="Expected a code"):
            decide_by_code(hospital, wrong, "somebody")
    assert waiting(hospital)
    decide_by_code(hospital, f" {asked.codes['approved']}\n", "IT")
    assert coordinator.order(hospital, "join", 0).kind == "acceptance"


def test_what_does_not_wait_can_not_be_decided(coordinator: Coordinator, opened) -> None:
    hospital = opened(join="manual")
    with pytest.raises(ConfigError, match=r"\(nothing\)"):
        decide(hospital, "abc", "approved", "IT")
    with pytest.raises(ApprovalNeeded):
        coordinator.order(hospital, "join", 0)
    for named in ("", "zz"):
        with pytest.raises(ConfigError, match="beginning of a waiting request"):
            decide(hospital, named, "approved", "IT")
