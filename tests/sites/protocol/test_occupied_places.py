"""In a shared folder, files of others at a hospital's places cost it nothing and stop nothing."""

from pathlib import Path

import pytest
from coordinator import Coordinator, first_model
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.signing import public_hex, sign, verified
from privacy.statements import parse_statement
from sites.exchange.answers import is_answered
from sites.exchange.exchange import AlreadyWritten, Exchange
from sites.exchange.places import Place
from sites.hospital import Hospital
from sites.orders import Order
from sites.protocol.departure import change_key, leave
from sites.protocol.dispatch import carry_out


@pytest.fixture
def coordinator(tmp_path: Path, study_with) -> Coordinator:
    exchange = Exchange(str(tmp_path / "exchange"))
    found = Coordinator(study_with(), exchange, Ed25519PrivateKey.generate())
    found.publish(0, first_model(found.study))
    return found


def order(coordinator: Coordinator, hospital: Hospital, attempt: int = 1) -> Order:
    return Order(
        phase="contribute", study=coordinator.study, site=hospital.name, run=coordinator.run, round=1,
        attempt=attempt, exchange=coordinator.exchange.url, coordinator=public_hex(coordinator.key),
    )  # fmt: skip


def others_files(coordinator: Coordinator, hospital: Hospital, place: Place) -> list[bytes]:
    """Return what somebody else may leave at a place: no statement, forged, long, or another place's."""
    forged = sign({"kind": "release"}, hospital.name, Ed25519PrivateKey.generate())
    coordinator.order(hospital, "check", 0)
    (replayed,) = coordinator.exchange.answers(
        Place.statement(coordinator.run, 0, "check", hospital.name)
    )
    assert place.act != "check"
    return [b"{}", forged, b" " * (2**20 + 1), replayed, b"[" * 10_000]


@pytest.mark.parametrize("kind", range(6))
def test_a_release_is_published_under_a_further_name_and_charged_once(
    kind: int, coordinator: Coordinator, hospital: Hospital, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place.statement(coordinator.run, 1, "contribute", hospital.name)
    left = [*others_files(coordinator, hospital, place), None][kind]
    path = Path(coordinator.exchange.url) / f"{place}.json"
    if left is None:
        path.symlink_to("nowhere")
    else:
        coordinator.exchange.put_statement(place, left)
    asked = order(coordinator, hospital)
    assert not is_answered(coordinator.exchange, asked, hospital.public_key)
    for _ in range(2):
        carry_out(hospital, asked, lambda *_: None)
    assert is_answered(coordinator.exchange, asked, hospital.public_key)
    assert len(hospital.ledger.charges()) == 1
    data = coordinator.exchange.signed_answer(place, [hospital.public_key])
    statement = parse_statement(verified(data, hospital.name, {hospital.name: hospital.public_key}))
    assert statement.kind == "release"
    assert "somebody else's file is at" in caplog.text
    path.unlink()  # whoever left a file may take it away again
    assert coordinator.exchange.signed_answer(place, [hospital.public_key]) == data


def test_two_statements_of_a_hospital_about_one_act_are_never_published(
    coordinator: Coordinator, hospital: Hospital
) -> None:
    carry_out(hospital, order(coordinator, hospital), lambda *_: None)
    place = Place.statement(coordinator.run, 1, "contribute", hospital.name)
    data = coordinator.exchange.signed_answer(place, [hospital.public_key])
    fields = verified(data, hospital.name, {hospital.name: hospital.public_key})
    other = sign({**fields, "charges": 7}, hospital.name, hospital.key)
    with pytest.raises(AlreadyWritten):
        coordinator.exchange.put_statement(place, other, lambda found: hospital.wrote(found, place))
    path = Path(coordinator.exchange.url) / f"{place}.json"
    path.rename(path.with_name(f"{place.marked('0' * 64)}.json".rpartition("/")[2]))
    coordinator.exchange.put_statement(place, b"{}")
    with pytest.raises(AlreadyWritten):
        coordinator.exchange.put_statement(place, other, lambda found: hospital.wrote(found, place))


@pytest.mark.parametrize("replay", [False, True])
def test_a_key_is_revoked_although_others_wrote_at_the_place_of_its_revocation(
    replay: bool, coordinator: Coordinator, hospital: Hospital
) -> None:
    carry_out(hospital, order(coordinator, hospital), lambda *_: None)
    old = hospital.public_key
    place = Place.revocation(hospital.name, old)
    files = others_files(coordinator, hospital, place)
    coordinator.exchange.put_statement(place, files[3] if replay else b"{}")
    _, unrevoked = change_key(hospital)
    assert unrevoked == []
    data = coordinator.exchange.signed_answer(place, [old])
    assert verified(data, hospital.name, {hospital.name: old})["public_key"] == old


def test_a_hospital_leaves_although_others_wrote_at_the_place(
    coordinator: Coordinator, hospital: Hospital
) -> None:
    carry_out(hospital, order(coordinator, hospital), lambda *_: None)
    place = Place.statement(coordinator.run, 0, "leave", hospital.name)
    coordinator.exchange.put_statement(place, others_files(coordinator, hospital, place)[3])
    runs, failed = leave(hospital, coordinator.study.name)
    assert (runs, failed) == ([coordinator.run], [])
    assert coordinator.exchange.signed_answer(place, [hospital.public_key]) is not None
