"""A hospital leaves a study or changes its key, with a real ledger, outbox and exchange."""

from pathlib import Path

import pytest
from coordinator import Coordinator, first_model
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.ledger import Charge
from privacy.signing import verified
from privacy.statements import Revocation, parse_statement
from sites import export
from sites.exchange.exchange import Exchange
from sites.exchange.places import Place
from sites.hospital import Hospital
from sites.protocol.departure import change_key, leave
from sites.yaml_files import ConfigError


@pytest.fixture
def hospital(tmp_path: Path, small_wards) -> Hospital:
    return Hospital.open(small_wards(tmp_path / "wards") / "east", test_noise=1)


@pytest.fixture
def coordinator(tmp_path: Path, study_with) -> Coordinator:
    made = Coordinator(study_with(), Exchange(str(tmp_path / "exchange")), Ed25519PrivateKey.generate())
    for round in (0, 1):
        made.publish(round, first_model(made.study))
    return made


def test_a_hospital_that_left_says_so_refuses_all_that_follows_and_keeps_ledger_and_outbox(
    hospital: Hospital, coordinator: Coordinator
) -> None:
    coordinator.order(hospital, "contribute", 1)
    unfinished = hospital.state / "unfinished" / coordinator.run / "001-x.safetensors"
    unfinished.parent.mkdir(parents=True)
    unfinished.touch()
    charged, kept = hospital.ledger.charges(), hospital.outbox.statements()
    assert leave(hospital, "small") == (["small-1"], [])
    place = Place.statement(coordinator.run, 0, "leave", "east")
    said = coordinator.exchange.statement(place) or b""
    departure = parse_statement(verified(said, "east", {"east": hospital.public_key}))
    assert departure.kind == "departure"
    assert hospital.ledger.charges() == charged
    assert hospital.outbox.statements() > kept
    assert not unfinished.exists()
    for phase, round in (("contribute", 2), ("evaluate", 1), ("join", 2)):
        assert coordinator.order(hospital, phase, round).reason == "the hospital has left the study"
    assert hospital.ledger.charges() == charged


def test_leaving_again_changes_nothing_and_a_study_that_is_unknown_is_an_error(
    hospital: Hospital, coordinator: Coordinator
) -> None:
    with pytest.raises(ConfigError, match="takes part, got 'small'"):
        leave(hospital, "small")
    coordinator.order(hospital, "join", 0)
    leave(hospital, "small")
    entries = hospital.ledger.entries()
    leave(hospital, "small")
    assert hospital.ledger.entries() == entries


def test_unsent_work_is_given_up_and_its_charge_stays(
    hospital: Hospital, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(export, "publish", lambda *_: 1 / 0)
        coordinator.order(hospital, "contribute", 1)
    leave(hospital, "small")
    coordinator.order(hospital, "contribute", 1)
    assert coordinator.exchange.statement(Place.statement("small-1", 1, "contribute", "east")) is None
    assert len(hospital.ledger.charges()) == 1


def test_a_new_key_signs_from_now_on_the_old_one_is_revoked_and_what_it_signed_stays_ones_own(
    hospital: Hospital, coordinator: Coordinator
) -> None:
    coordinator.order(hospital, "contribute", 1)
    old = hospital.public_key
    new, unrevoked = change_key(hospital)
    assert not unrevoked
    again = Hospital.open(hospital.folder, test_noise=1)
    assert again.public_key == new != old
    data = coordinator.exchange.statement(Place.revocation("east", old)) or b""
    revoked = Revocation.model_validate(verified(data, "east", {"east": old}))
    assert revoked.public_key == old
    for sha256 in again.outbox.statements():
        assert again.verified(again.outbox.statement(sha256))["site"] == "east"
    assert coordinator.order(again, "contribute", 2).kind == "release"
    assert len(again.ledger.charges()) == 2


def test_an_exchange_that_cannot_be_told_or_is_taken_is_named_and_stops_neither_leaving_nor_the_new_key(
    hospital: Hospital, coordinator: Coordinator
) -> None:
    coordinator.order(hospital, "join", 0)
    dead = "https://127.0.0.1:9/exchange/"
    hospital.bind("small-0", "0" * 64, dead)
    hospital.ledger.publish(Charge("small", "small-0", 0, "join", event=None), "0" * 64)
    old = hospital.public_key
    coordinator.exchange.put_statement(Place.revocation("east", old), b"somebody was here before")
    runs, untold = leave(hospital, "small")
    assert (runs, untold) == (["small-0", "small-1"], [dead])
    assert coordinator.exchange.statement(Place.statement("small-1", 0, "leave", "east"))
    with pytest.raises(ConfigError, match="could not be revoked at"):
        change_key(hospital)
    assert Hospital.open(hospital.folder).public_key == old
    new, unrevoked = change_key(hospital, force=True)
    assert unrevoked == sorted([coordinator.exchange.url, dead])
    assert Hospital.open(hospital.folder).public_key == new != old
