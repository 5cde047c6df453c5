"""In a shared folder, files of others at a hospital's places cost it nothing and stop nothing."""

from pathlib import Path

import pytest
from coordinator import Coordinator, first_model
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.release import parse_statement
from privacy.signing import public_hex, sign, verified
from sites.exchange.exchange import Exchange
from sites.exchange.places import COPIES, Place
from sites.hospital import Hospital
from sites.orders import Order, is_answered
from sites.protocol.departure import change_key
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


def occupy(coordinator: Coordinator, hospital: Hospital, act: str, names: int) -> Place:
    """Leave files at names of a hospital's place: no statement, one of another signer, a long one."""
    place = Place.statement(coordinator.run, 1, act, hospital.name)
    forged = sign({"kind": "release"}, hospital.name, Ed25519PrivateKey.generate())
    for number, name in enumerate(place.names[:names]):
        coordinator.exchange.put_statement(name, (b"{}", forged, b" " * (2**20 + 1))[number % 3])
    return place


@pytest.mark.parametrize("names", [1, 3, COPIES - 1])
def test_a_release_is_published_under_the_next_name_and_charged_once(
    names: int, coordinator: Coordinator, hospital: Hospital, caplog: pytest.LogCaptureFixture
) -> None:
    place = occupy(coordinator, hospital, "contribute", names)
    asked = order(coordinator, hospital)
    assert not is_answered(coordinator.exchange, asked, hospital.public_key)
    for _ in range(2):
        carry_out(hospital, asked, lambda *_: None)
    assert is_answered(coordinator.exchange, asked, hospital.public_key)
    assert len(hospital.ledger.charges()) == 1
    *others, data = coordinator.exchange.answers(place)
    assert len(others) == names
    statement = parse_statement(verified(data, hospital.name, {hospital.name: hospital.public_key}))
    assert statement.kind == "release"
    assert "somebody else's file is at" in caplog.text


def test_where_no_name_is_free_the_hospital_says_so_and_pays_nothing(
    coordinator: Coordinator, hospital: Hospital
) -> None:
    occupy(coordinator, hospital, "contribute", COPIES)
    carry_out(hospital, order(coordinator, hospital), lambda *_: None)
    refused = Place.statement(coordinator.run, 1, "contribute-refused-1", hospital.name)
    (data,) = coordinator.exchange.answers(refused)
    statement = parse_statement(verified(data, hospital.name, {hospital.name: hospital.public_key}))
    assert "other files occupy" in statement.reason
    assert hospital.ledger.charges() == []


def test_a_key_is_revoked_although_others_wrote_at_the_place_of_its_revocation(
    coordinator: Coordinator, hospital: Hospital
) -> None:
    carry_out(hospital, order(coordinator, hospital), lambda *_: None)
    old = hospital.public_key
    place = Place.revocation(hospital.name, old)
    coordinator.exchange.put_statement(place, b"{}")
    _, unrevoked = change_key(hospital)
    assert unrevoked == []
    _, data = coordinator.exchange.answers(place)
    assert verified(data, hospital.name, {hospital.name: old})["public_key"] == old
