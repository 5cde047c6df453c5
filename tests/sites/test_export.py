"""The one door out of a hospital, with a real ledger, outbox and exchange."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from coordinator import first_model

from models.errors import CorruptCheckpoint
from models.files import sha256_of
from privacy.accounting import PrivacyEvent
from privacy.ledger import Charge, Ledger, LedgerError
from privacy.signing import BadSignature, verified
from privacy.statements import Refusal, ReleaseManifest
from sites import export
from sites.exchange.exchange import Exchange
from sites.exchange.places import Place
from sites.hospital import Hospital
from sites.local_models import GlobalModel
from sites.study import Study
from sites.update import Update

BASE = GlobalModel("b" * 64, {}, "c" * 64)
EVENT = PrivacyEvent(noise_multiplier=2.0, sampling_rate=1.0, steps=3)
CHARGE = Charge("small", "small-1", 1, "contribute", EVENT)
TENSORS = {"head.weight": torch.arange(6.0).reshape(2, 3), "body.bias": torch.ones(4)}


@pytest.fixture
def exchange(tmp_path: Path) -> Exchange:
    return Exchange(str(tmp_path / "exchange"))


def charged(hospital: Hospital) -> Charge:
    """Return the charge of a training that has started."""
    hospital.ledger.reserve(CHARGE, hospital.eligible.training)
    hospital.ledger.start(CHARGE)
    return CHARGE


def release(hospital: Hospital, study: Study) -> tuple[ReleaseManifest, str]:
    """Return the statement of a release that was charged and settled, and its sha256."""
    update = Update(TENSORS, "test")
    export.settle_with_release(hospital, study, charged(hospital), update, BASE)
    statement, sha256 = export.statement_of(hospital, CHARGE)
    assert isinstance(statement, ReleaseManifest)
    return statement, sha256


def files(exchange: Exchange) -> dict[str, bytes]:
    """Return the content of every file of an exchange."""
    root = Path(exchange.url)
    found = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def test_a_release_settles_the_charge_and_is_in_the_outbox_by_its_sha256_before_it_is_published(
    hospital: Hospital, exchange: Exchange, study_with
) -> None:
    manifest, sha256 = release(hospital, study_with())
    entries = hospital.ledger.entries()
    assert [e.action for e in entries] == ["resolve", "reserve", "start", "settle"]
    assert (entries[-1].file, entries[-1].charge) == (sha256, CHARGE)
    stored = {path.name: sha256_of(path.read_bytes()) for path in hospital.outbox.folder.iterdir()}
    assert stored == {
        f"{sha256}.json": sha256,
        f"{manifest.payload_sha256}.safetensors": manifest.payload_sha256,
    }
    assert not files(exchange)
    export.publish(hospital, exchange, CHARGE)
    published = {sha256_of(data) for data in files(exchange).values()}
    assert published == set(stored.values())


def test_the_files_of_a_release_are_stored_before_the_ledger_settles_the_charge(
    hospital: Hospital, study_with, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[str] = []
    settle = Ledger.settle

    def watched(ledger: Ledger, charge: Charge, file: str) -> None:
        stored.extend(path.suffix for path in hospital.outbox.folder.iterdir())
        assert sha256_of(hospital.outbox.statement(file)) == file
        settle(ledger, charge, file)

    monkeypatch.setattr(Ledger, "settle", watched)
    release(hospital, study_with())
    assert sorted(stored) == [".json", ".safetensors"]


def test_publishing_again_writes_the_same_bytes(
    hospital: Hospital, exchange: Exchange, study_with
) -> None:
    _, sha256 = release(hospital, study_with())
    export.publish(hospital, exchange, CHARGE)
    first, entries = files(exchange), hospital.ledger.entries()
    place = Place.statement("small-1", 1, "contribute", "east")
    assert first[f"{place}.json"] == hospital.outbox.statement(sha256)
    export.publish(Hospital.open(hospital.folder), exchange, CHARGE)
    assert files(exchange) == first
    assert hospital.ledger.entries() == entries


def test_the_tensors_are_published_before_the_statement_that_names_them(
    hospital: Hospital, exchange: Exchange, study_with, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise OSError("the connection was lost")

    manifest, _ = release(hospital, study_with())
    with monkeypatch.context() as patch, pytest.raises(OSError, match="connection was lost"):
        patch.setattr(Exchange, "put_statement", lost)
        export.publish(hospital, exchange, CHARGE)
    assert set(files(exchange)) == {f"objects/east/{manifest.payload_sha256}"}


def test_the_manifest_names_the_tensors_of_the_file_the_declared_number_and_the_charged_event(
    hospital: Hospital, study_with
) -> None:
    manifest, sha256 = release(hospital, study_with())
    file = hospital.outbox.tensors(manifest.payload_sha256)
    tensors = safetensors.torch.load_file(file)
    assert manifest.tensors == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert manifest.payload_bytes == file.stat().st_size
    assert manifest.declared_training == hospital.policy.declared_training == 15
    assert manifest.declared_training != len(hospital.eligible.training)
    assert manifest.event is not None
    assert manifest.event.model_dump() == vars(EVENT)
    assert (manifest.base_sha256, manifest.chain_head) == (BASE.sha256, BASE.chain_head)
    assert (manifest.noise, manifest.charges, manifest.plain_releases) == ("test", 1, 0)
    assert manifest.epsilon == pytest.approx(hospital.ledger.spent(1e-3))
    before_settling = hospital.ledger.entries()[-1].previous
    assert manifest.ledger_head == before_settling
    keys = {"east": hospital.public_key}
    assert verified(hospital.outbox.statement(sha256), "east", keys)["kind"] == "release"


def test_what_diverged_is_settled_without_a_release_and_no_other_file_can_settle_it(
    hospital: Hospital, exchange: Exchange, study_with
) -> None:
    study, reason = study_with(), "the training diverged"
    export.settle_without_release(hospital, study, charged(hospital), reason)
    statement, sha256 = export.statement_of(hospital, CHARGE)
    assert isinstance(statement, Refusal)
    assert (statement.reason, statement.purpose) == (reason, "contribute")
    with pytest.raises(LedgerError, match="settled with another file"):
        export.settle_with_release(hospital, study, CHARGE, Update(TENSORS, "test"), BASE)
    assert hospital.ledger.file_of(CHARGE) == sha256
    assert hospital.ledger.spent(1e-3) > 0
    export.publish(hospital, exchange, CHARGE)
    assert [json.loads(data)["statement"]["kind"] for data in files(exchange).values()] == ["refusal"]


def test_a_training_that_diverges_stays_charged_and_is_not_tried_again(
    hospital: Hospital, coordinator_of, study_with
) -> None:
    privacy = {**study_with().privacy.model_dump(), "clip": {"kind": "flat", "norm": 1e6}}
    training = {"steps": 2, "lr": 1e38, "lot": "all"}
    coordinator = coordinator_of(
        study_with(privacy=privacy, training=training, export="weights", distillation=None)
    )
    coordinator.publish(0, first_model(coordinator.study))
    for attempt in (1, 2):
        answer = coordinator.order(hospital, "contribute", 1, attempt)
        assert "diverged" in answer.reason
    assert [e.action for e in hospital.ledger.entries()] == ["resolve", "reserve", "start", "settle"]
    assert not list(hospital.outbox.folder.glob("*.safetensors"))


def test_an_act_without_a_file_cannot_be_published(
    hospital: Hospital, exchange: Exchange, study_with
) -> None:
    unknown = Charge("small", "small-1", 0, "join", None)
    for act in (unknown, charged(hospital)):
        with pytest.raises(LedgerError, match=f"Expected a recorded statement of {act.purpose}"):
            export.publish(hospital, exchange, act)
    assert not files(exchange)


def test_a_statement_that_was_changed_or_that_another_hospital_signed_is_not_published(
    hospital: Hospital, exchange: Exchange, study_with
) -> None:
    north = Hospital.open(hospital.folder.parent / "north", test_noise=1)
    act = Charge("small", "small-1", 0, "join", None)
    export.acceptance(north, study_with(), act)
    _, theirs = export.statement_of(north, act)
    hospital.ledger.publish(act, hospital.outbox.put_statement(north.outbox.statement(theirs)))
    with pytest.raises(BadSignature):
        export.publish(hospital, exchange, act)
    _, sha256 = release(hospital, study_with())
    (path,) = hospital.outbox.folder.glob(f"{sha256}.json")
    path.chmod(0o600)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(CorruptCheckpoint, match="was changed"):
        export.publish(hospital, exchange, CHARGE)
    assert not files(exchange)
