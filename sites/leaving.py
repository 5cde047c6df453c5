"""How a hospital leaves a study, and how it changes the key with which it signs.

What it has signed so far stays good: its ledger, its outbox, and what rounds took in. Charges stay.
"""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from models.checkpoints import write_atomically
from privacy.ledger import Charge
from privacy.release import Revocation
from privacy.signing import public_hex, sign
from sites import export
from sites.documents import ConfigError
from sites.exchange import AlreadyWritten, Exchange, revocation_place
from sites.hospital import Hospital
from sites.policy import Refused


def leave(hospital: Hospital, study: str) -> list[str]:
    """Leave a study for good; return the runs in which nothing of this hospital counts any more.

    Unsent work is given up. Asking again tells those who could not be reached before.

    Raises:
        ConfigError: this hospital has taken no part in such a study.
        StorageFailed: an exchange can't be reached; here the study is left all the same.
    """
    with hospital.alone():
        runs = _runs_of(hospital, study)
        if not runs:
            raise ConfigError(f"Expected a study in which {hospital.name} takes part, got {study!r}.")
        write_atomically(_mark(hospital, study), b"")
        for run, exchange, study_sha256 in runs:
            shutil.rmtree(hospital.state / "unfinished" / run, ignore_errors=True)
            act = Charge(study, run, 0, "leave", event=None)
            if hospital.ledger.file_of(act) is None:
                export.departure(hospital, study_sha256, act)
            export.publish(hospital, exchange, act)
    return [run for run, _, _ in runs]


def check_has_not_left(hospital: Hospital, study: str) -> None:
    """Raise `Refused` where the hospital has left a study."""
    if _mark(hospital, study).exists():
        raise Refused("the hospital has left the study")


def change_key(hospital: Hospital) -> str:
    """Give the hospital a new key; return its public half, for the coordinator's federation.yaml.

    The old key is revoked in every exchange that this hospital knows: nothing that
    anybody signs with it counts from then on. Its public half is kept, for what it has signed before.

    Raises:
        StorageFailed: an exchange can't be reached; the key is still the old one.
    """
    with hospital.alone():
        old = hospital.key
        said = Revocation(
            kind="revocation",
            site=hospital.name,
            public_key=public_hex(old),
            at_ms=int(time.time() * 1000),
        )
        signed = sign(said.model_dump(mode="json"), hospital.name, old)
        for exchange in _exchanges(hospital):
            with suppress(AlreadyWritten):
                exchange.put_statement(revocation_place(hospital.name, public_hex(old)), signed)
        return hospital.renew_key()


def _exchanges(hospital: Hospital) -> Iterator[Exchange]:
    """Yield every exchange that this hospital knows."""
    named = {hospital.policy.coordinator.exchange} if hospital.policy.coordinator else set()
    for url in sorted(hospital.exchanges | named):
        yield Exchange(url)


def _runs_of(hospital: Hospital, study: str) -> list[tuple[str, Exchange, str]]:
    """Return the runs of a study in which this hospital has done anything, with exchange and hash."""
    known = {e.charge.run for e in hospital.ledger.entries() if e.charge.study == study}
    found = []
    for path in sorted((hospital.state / "runs").glob("*.json")):
        if path.stem in known:
            terms = json.loads(path.read_bytes())
            found.append((path.stem, Exchange(terms["exchange"]), terms["study_sha256"]))
    return found


def _mark(hospital: Hospital, study: str) -> Path:
    return hospital.state / "left" / study
