"""A ledger restored from a backup, with a real ledger, outbox and exchange."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from models import checkpoints
from models import params as P
from privacy.ledger import LedgerError
from privacy.release import ModelManifest, parse_statement
from privacy.signing import public_hex, sign
from sites.exchange import Exchange, model_place, statement_place
from sites.forgotten import forgotten, resolve
from sites.hospital import Hospital
from sites.rounds import Order, Phase, carry_out, refusal_of
from sites.study import Study

RUN = "small-1"


class Federation:
    """One hospital, an exchange, and a coordinator that gives orders."""

    def __init__(self, folder: Path, study: Study) -> None:
        self.folder, self.study = folder, study
        self.exchange = Exchange(str(folder.parent / "exchange"))
        self.key = Ed25519PrivateKey.generate()
        torch.manual_seed(0)
        model = checkpoints.to_bytes(P.of(study.network.build(3, 3)))
        self.exchange.put_object(model)
        for round in range(4):
            manifest = ModelManifest(
                kind="model", study=study.name, study_sha256=study.sha256, run=RUN, round=round,
                model_sha256=checkpoints.sha256_of(model),
            )  # fmt: skip
            signed = sign(manifest.model_dump(mode="json"), "coordinator", self.key)
            self.exchange.put_statement(model_place(RUN, round), signed)

    @property
    def hospital(self) -> Hospital:
        return Hospital.open(self.folder, test_noise=1)

    @property
    def spent(self) -> float:
        return self.hospital.ledger.spent(1e-3)

    def ask(self, phase: Phase, round: int, attempt: int = 1) -> str:
        """Return the kind of the answer, and the reason of a refusal."""
        order = Order(
            phase=phase, study=self.study, run=RUN, round=round, attempt=attempt,
            exchange=self.exchange.url, coordinator=public_hex(self.key),
        )  # fmt: skip
        carry_out(self.hospital, order, lambda *_: None)
        for act in (refusal_of(phase, attempt), phase):
            data = self.exchange.statement(statement_place(RUN, round, act, self.hospital.name))
            if data is not None:
                statement = parse_statement(json.loads(data)["statement"])
                return getattr(statement, "reason", statement.kind)
        raise AssertionError("the hospital said nothing")


@pytest.fixture
def federation(tmp_path: Path, small_wards, study_with) -> Federation:
    study = study_with(rounds=4, export="weights", distillation=None)
    return Federation(small_wards(tmp_path / "wards") / "east", study)


@pytest.fixture
def restored(federation: Federation) -> Callable[[str], None]:
    """A function that restores what was backed up after round 1: the ledger alone, or all of state/."""
    state, backup = federation.folder / "state", federation.folder.parent / "backup"
    federation.ask("contribute", 1)
    shutil.copytree(state, backup)

    def restore(what: str) -> None:
        if what == "the ledger":
            shutil.copy(backup / "ledger.sqlite", state / "ledger.sqlite")
        else:
            shutil.rmtree(state)
            if what == "all of state":
                shutil.copytree(backup, state)

    return restore


@pytest.mark.parametrize("what", ["the ledger", "all of state", "nothing at all"])
def test_a_ledger_behind_what_was_published_is_refused_until_the_difference_is_charged(
    what: str, federation: Federation, restored
) -> None:
    for round in (2, 3):
        assert federation.ask("contribute", round) == "release"
    spent = federation.spent
    restored(what)
    assert federation.spent < spent
    (federation.folder / "state" / "keys" / "coordinator.pub").unlink(missing_ok=True)
    assert "older than what the hospital has published" in federation.ask("contribute", 4)
    assert federation.spent < spent
    hospital = federation.hospital
    resolve(hospital, [federation.exchange])
    assert federation.spent == pytest.approx(spent)
    assert not list(forgotten(hospital, [federation.exchange]))
    assert hospital.ledger.patients() == hospital.everybody
    assert federation.ask("contribute", 4, attempt=2) == "release"


def test_the_outbox_alone_shows_that_the_ledger_is_behind(federation: Federation, restored) -> None:
    federation.ask("contribute", 2)
    spent = federation.spent
    restored("the ledger")
    elsewhere = Exchange(str(federation.folder.parent / "another-exchange"))
    (found,) = forgotten(federation.hospital, [elsewhere])
    assert (found.act.purpose, found.act.round) == ("contribute", 2)
    resolve(federation.hospital, [elsewhere])
    assert federation.spent == pytest.approx(spent)


def test_a_charge_that_was_never_released_is_charged_again_too(
    federation: Federation, restored, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr("sites.export.release", stop)
        federation.ask("contribute", 2)
    federation.ask("contribute", 3)
    spent = federation.spent
    restored("the ledger")
    resolve(federation.hospital, [federation.exchange])
    assert federation.spent == pytest.approx(spent)
    purposes = [charge.purpose for charge in federation.hospital.ledger.charges()]
    assert purposes == ["contribute", "contribute", "contribute-unreleased-1"]


def test_what_a_crash_left_in_the_outbox_is_no_sign_of_a_backup(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr("privacy.ledger.Ledger.settle", stop)
        federation.ask("contribute", 1)
    assert not list(forgotten(federation.hospital, [federation.exchange]))
    assert federation.ask("contribute", 1) == "release"
    assert len(federation.hospital.ledger.charges()) == 1


def test_two_statements_of_one_act_are_charged_once(
    federation: Federation, restored, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr("privacy.ledger.Ledger.settle", stop)
        federation.ask("contribute", 2)
    hospital = federation.hospital
    object.__setattr__(hospital, "test_noise", 2)  # a second training, as real noise would make it
    order = Order(
        phase="contribute", study=federation.study, run=RUN, round=2, attempt=1,
        exchange=federation.exchange.url, coordinator=public_hex(federation.key),
    )  # fmt: skip
    carry_out(hospital, order, lambda *_: None)
    spent = federation.spent
    restored("the ledger")
    assert len(list(forgotten(federation.hospital, [federation.exchange]))) >= 2
    resolve(federation.hospital, [federation.exchange])
    assert federation.spent == pytest.approx(spent)
    assert not list(forgotten(federation.hospital, [federation.exchange]))


def test_what_is_no_statement_of_this_hospital_does_not_stop_it(federation: Federation) -> None:
    for place, data in (("x.001.contribute", b"{}"), ("y", b"\xff"), ("z.001.join", b"[1]")):
        federation.exchange.put_statement(f"statements/east/{place}", data)
    assert federation.ask("contribute", 1) == "release"


def test_a_ledger_of_another_hospital_is_refused_and_nothing_is_lost(
    federation: Federation, restored
) -> None:
    north = federation.folder.parent / "north"
    Hospital.open(north, test_noise=1).ledger.resolve()
    before = (north / "state" / "ledger.sqlite").read_bytes()
    shutil.copy(north / "state" / "ledger.sqlite", federation.folder / "state" / "ledger.sqlite")
    with pytest.raises(LedgerError, match="belongs to another key for patients"):
        federation.ask("contribute", 2)
    assert (federation.folder / "state" / "ledger.sqlite").read_bytes() == before
