"""A ledger restored from a backup, with a real ledger, outbox and exchange."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from models import checkpoints
from models import params as P
from models.files import sha256_of
from privacy.ledger import Charge, LedgerError
from privacy.signing import public_hex, sign
from privacy.statements import ModelManifest, RejectedRelease, parse_statement
from sites.admission.ledger_recovery import foreign_statements, missing_statements, recover_ledger
from sites.exchange.exchange import Exchange
from sites.exchange.phases import Phase, refusal_of
from sites.exchange.places import Place
from sites.exchange.storage import Filesystem, Source, StorageFailed
from sites.hospital import Hospital
from sites.local_models import stored_params
from sites.orders import Order
from sites.protocol.dispatch import carry_out
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
        self.exchange.put_object(model, "coordinator")
        for round in range(4):
            manifest = ModelManifest(
                kind="model", study=study.name, study_sha256=study.sha256, run=RUN, round=round,
                model_sha256=sha256_of(model), chain_head="0" * 64,
            )  # fmt: skip
            signed = sign(manifest.model_dump(mode="json"), "coordinator", self.key)
            self.exchange.put_statement(Place.model(RUN, round), signed)

    @property
    def hospital(self) -> Hospital:
        return Hospital.open(self.folder, test_noise=1)

    @property
    def spent(self) -> float:
        return self.hospital.ledger.spent(1e-3)

    def ask(self, phase: Phase, round: int, attempt: int = 1) -> str:
        """Return the kind of the answer, and the reason of a refusal."""
        order = Order(
            phase=phase, site="east", study=self.study, run=RUN, round=round, attempt=attempt,
            exchange=self.exchange.url, coordinator=public_hex(self.key),
        )  # fmt: skip
        carry_out(self.hospital, order, lambda *_: None)
        for act in (refusal_of(phase, attempt), phase):
            data = self.exchange.statement(Place.statement(RUN, round, act, self.hospital.name))
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


@contextmanager
def power_cut_at(function: str) -> Iterator[None]:
    """Let the hospital's process end where it would call a function."""

    def stop(*_: object) -> None:
        raise RuntimeError("power cut")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(function, stop)
        yield


@pytest.mark.parametrize("what", ["the ledger", "all of state", "nothing at all"])
def test_a_ledger_behind_what_was_published_is_refused_until_the_difference_is_charged(
    what: str, federation: Federation, restored
) -> None:
    for round in (2, 3):
        assert federation.ask("contribute", round) == "release"
    spent, key = federation.spent, federation.hospital.public_key
    restored(what)
    assert federation.spent < spent
    (federation.folder / "state" / "keys" / "coordinator.pub").unlink(missing_ok=True)
    reason = (
        "none of its keys signed" if what == "nothing at all" else "older than what the hospital has"
    )
    assert reason in federation.ask("contribute", 4)
    assert federation.spent < spent
    hospital = federation.hospital
    former = [key] if what == "nothing at all" else []
    recover_ledger(hospital, [federation.exchange], former)
    assert federation.spent == pytest.approx(spent)
    assert not list(missing_statements(hospital, [federation.exchange], former_keys=former))
    assert hospital.ledger.patients() == hospital.everybody
    assert federation.ask("contribute", 4, attempt=2) == "release"


def test_the_outbox_alone_shows_that_the_ledger_is_behind(federation: Federation, restored) -> None:
    federation.ask("contribute", 2)
    spent = federation.spent
    restored("the ledger")
    elsewhere = Exchange(str(federation.folder.parent / "another-exchange"))
    (found,) = missing_statements(federation.hospital, [elsewhere])
    assert (found.act.purpose, found.act.round) == ("contribute", 2)
    recover_ledger(federation.hospital, [elsewhere])
    assert federation.spent == pytest.approx(spent)


def test_a_charge_that_was_never_released_is_charged_again_too(federation: Federation, restored) -> None:
    with power_cut_at("sites.export.settle_with_release"):
        federation.ask("contribute", 2)
    federation.ask("contribute", 3)
    spent = federation.spent
    restored("the ledger")
    recover_ledger(federation.hospital, [federation.exchange])
    assert federation.spent == pytest.approx(spent)
    purposes = [charge.purpose for charge in federation.hospital.ledger.charges()]
    took_part = [purpose for purpose in purposes if not purpose.endswith("-others")]
    assert took_part[:2] == ["contribute", "contribute"]
    assert [purpose.rpartition("-")[0] for purpose in took_part[2:]] == ["contribute-unreleased"]


def test_what_a_crash_left_in_the_outbox_is_no_sign_of_a_backup(federation: Federation) -> None:
    with power_cut_at("privacy.ledger.Ledger.settle"):
        federation.ask("contribute", 1)
    assert not list(missing_statements(federation.hospital, [federation.exchange]))
    assert federation.ask("contribute", 1) == "release"
    assert len(federation.hospital.ledger.charges()) == 1


def test_two_statements_of_one_act_are_charged_once(federation: Federation, restored) -> None:
    with power_cut_at("privacy.ledger.Ledger.settle"):
        federation.ask("contribute", 2)
    hospital = federation.hospital
    object.__setattr__(hospital, "test_noise", 2)  # a second training, as real noise would make it
    order = Order(
        phase="contribute", site="east", study=federation.study, run=RUN, round=2, attempt=1,
        exchange=federation.exchange.url, coordinator=public_hex(federation.key),
    )  # fmt: skip
    carry_out(hospital, order, lambda *_: None)
    spent = federation.spent
    restored("the ledger")
    assert len(list(missing_statements(federation.hospital, [federation.exchange]))) >= 2
    recover_ledger(federation.hospital, [federation.exchange])
    assert federation.spent == pytest.approx(spent)
    assert not list(missing_statements(federation.hospital, [federation.exchange]))


def test_what_is_no_statement_of_this_hospital_does_not_stop_it(federation: Federation) -> None:
    for place, data in (("x.001.contribute", b"{}"), ("y", b"\xff"), ("z.001.join", b"[1]")):
        federation.exchange._storage.write_new(f"statements/east/{place}.json", Source(data))
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


def test_an_interrupted_recovery_can_be_repeated(federation: Federation, restored) -> None:
    with power_cut_at("sites.export.settle_with_release"):
        federation.ask("contribute", 2)
    federation.ask("contribute", 3)
    spent = federation.spent
    restored("the ledger")
    with power_cut_at("sites.admission.ledger_recovery._charge_unreleased"):
        recover_ledger(federation.hospital, [federation.exchange])
    assert federation.spent < spent
    recover_ledger(federation.hospital, [federation.exchange])
    assert federation.spent == pytest.approx(spent)


def test_every_exchange_that_the_hospital_remembers_is_looked_into(
    federation: Federation, restored, study_with
) -> None:
    federation.ask("contribute", 2)
    restored("all of state")
    elsewhere = Exchange(str(federation.folder.parent / "another-exchange"))
    order = Order(
        phase="join", site="east", study=study_with(name="other"), run="other-1", round=0, attempt=1,
        exchange=elsewhere.url, coordinator=public_hex(federation.key),
    )  # fmt: skip
    carry_out(federation.hospital, order, lambda *_: None)
    answer = elsewhere.statement(Place.statement("other-1", 0, refusal_of("join", 1), "east"))
    assert b"older than what the hospital has published" in (answer or b"")


def test_what_a_forgotten_round_left_in_the_hospital_is_not_used(
    tmp_path: Path, small_wards, study_with
) -> None:
    teacher = {"name": "SegResNet", "blocks_down": [1, 1]}
    distillation = {"transfer": "synthetic", "steps": 2, "images": 8, "teacher": teacher}
    study = study_with(rounds=4, distillation=distillation)
    federation = Federation(small_wards(tmp_path / "wards") / "east", study)
    federation.ask("contribute", 1)
    hospital = federation.hospital
    stored = hospital.stored("teacher", RUN, 2)
    stored.write_bytes(hospital.stored("teacher", RUN, 1).read_bytes())  # of a charge that is lost
    order = Order(
        phase="contribute", site="east", study=study, run=RUN, round=3, attempt=1,
        exchange=federation.exchange.url, coordinator=public_hex(federation.key),
    )  # fmt: skip
    found = stored_params(hospital, "teacher", order, 2)
    assert found is not None
    assert found.path == hospital.stored("teacher", RUN, 1)
    assert stored_params(hospital, "teacher", order, 2, exactly=True) is None


def test_a_release_that_a_crash_left_in_the_outbox_is_the_one_that_leaves(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with power_cut_at("privacy.ledger.Ledger.settle"):
        federation.ask("contribute", 1)
    (left,) = federation.hospital.outbox.statements()
    with monkeypatch.context() as patch:
        patch.delattr("sites.training.dp_sgd.train_privately")  # it would be another output
        assert federation.ask("contribute", 1) == "release"
    assert federation.hospital.ledger.file_of(Charge("small", RUN, 1, "contribute", None)) == left


def forged(act: str, round: int, **fields: object) -> bytes:
    statement = {
        "kind": "refusal", "reason": "x", "study": "small", "study_sha256": "0" * 64, "run": RUN,
        "round": round, "purpose": act, "site": "east", "ledger_head": "1" * 64, "event": None,
        "charges": 0,
    } | fields  # fmt: skip
    return sign(statement, "east", Ed25519PrivateKey.generate())


def test_an_exchange_that_forges_statements_changes_nothing(federation: Federation) -> None:
    federation.ask("contribute", 1)
    event = {"noise_multiplier": 1.0, "sampling_rate": 1.0, "steps": 10**6}
    for act, round, fields in (
        ("contribute", 2, {}),
        ("contribute", 3, {"event": event, "charges": 5000}),
        ("evaluate", 1, {"event": None}),
    ):
        place = Place.statement(RUN, round, act, "east")
        federation.exchange.put_statement(place, forged(act, round, **fields))
    spent = federation.spent
    assert not list(missing_statements(federation.hospital, [federation.exchange]))
    recover_ledger(federation.hospital, [federation.exchange])
    assert federation.spent == spent


def test_a_new_hospital_is_never_charged_for_what_no_key_of_it_signed(federation: Federation) -> None:
    event = {"noise_multiplier": 1.0, "sampling_rate": 1.0, "steps": 10**6}
    place = Place.statement(RUN, 1, "contribute", "east")
    federation.exchange.put_statement(place, forged("contribute", 1, event=event, charges=5000))
    assert "none of its keys signed" in federation.ask("join", 0)
    hospital = federation.hospital
    assert list(foreign_statements(hospital, [federation.exchange])) == [place]
    another = public_hex(Ed25519PrivateKey.generate())
    for former in ([], [another]):
        assert not recover_ledger(hospital, [federation.exchange], former)
    assert federation.spent == 0.0
    assert not hospital.ledger.charges()
    assert federation.ask("contribute", 2) == "release"


@pytest.mark.parametrize(
    "fields",
    [
        {"event": {"noise_multiplier": 1e-200, "sampling_rate": 1.0, "steps": 1}},
        {"run": ""}, {"purpose": "Resolve me"}, {"charges": 10**9}, {"site": 3},
    ],
)  # fmt: skip
def test_a_statement_with_absurd_figures_is_none(fields: dict[str, object]) -> None:
    with pytest.raises(RejectedRelease):
        parse_statement(json.loads(forged("contribute", 1, **fields))["statement"])


def test_an_exchange_full_of_odd_files_stops_neither_orders_nor_the_owner(
    federation: Federation,
) -> None:
    folder = Path(federation.exchange.url) / "statements" / "east"
    folder.mkdir(parents=True)
    (folder / "a.json").mkdir()
    (folder / "b.json").symlink_to("b.json")
    (folder / "c.json").symlink_to("/dev/zero")
    (folder / "d.json").write_bytes(b" " * (2**20 + 1))
    os.mkfifo(folder / "e.json")
    assert federation.ask("contribute", 1) == "release"
    assert not recover_ledger(federation.hospital, [federation.exchange])


def test_an_address_that_is_no_exchange_is_refused_before_it_is_kept(federation: Federation) -> None:
    order = Order(
        phase="join", site="east", study=federation.study, run=RUN, round=0, attempt=1,
        exchange="nosuch://x", coordinator=public_hex(federation.key),
    )  # fmt: skip
    with pytest.raises(ValueError, match="nosuch"):
        carry_out(federation.hospital, order, lambda *_: None)
    assert not federation.hospital.exchanges


def test_two_processes_of_a_hospital_do_not_work_at_once(federation: Federation) -> None:
    with federation.hospital.lock():
        waiting = Thread(target=federation.ask, args=("contribute", 1))
        waiting.start()
        waiting.join(2)
        assert waiting.is_alive()
        assert not federation.hospital.ledger.charges()
    waiting.join(60)
    assert len(federation.hospital.ledger.charges()) == 1


def test_an_exchange_that_can_not_be_listed_is_not_taken_for_an_empty_one(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlistable(self: Filesystem, folder: str) -> set[str]:
        raise StorageFailed("the exchange answered 405")

    monkeypatch.setattr(Filesystem, "names", unlistable)
    before = federation.hospital.ledger.head
    with pytest.raises(StorageFailed):
        federation.ask("contribute", 1)
    assert federation.hospital.ledger.head == before
