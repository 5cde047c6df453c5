"""How a hospital leaves a study, and how it changes the key with which it signs.

What it has signed so far stays good: its ledger, its outbox, and what rounds took in. Charges stay.
"""

import json
import shutil
import time
from pathlib import Path

from models.files import write_atomically
from privacy.ledger import Charge
from privacy.release import Revocation
from privacy.signing import public_hex, sign
from sites import export
from sites.exchange.exchange import AlreadyWritten, Exchange
from sites.exchange.places import Place
from sites.hospital import Hospital
from sites.policy.policy import Refused
from sites.yaml_files import ConfigError


def leave(hospital: Hospital, study: str) -> tuple[list[str], list[str]]:
    """Leave a study for good, and give up what is unsent.

    Returns:
        The runs in which nothing of this hospital counts any more, and the exchanges that could not be
        told; leaving again tells them.

    Raises:
        ConfigError: this hospital has taken no part in such a study.
    """
    runs = _runs_of(hospital, study)
    if not runs:
        raise ConfigError(f"Expected a study in which {hospital.name} takes part, got {study!r}.")
    write_atomically(_mark(hospital, study), b"")
    with hospital.lock():  # whatever is at work for the study ends at its next step
        untold: list[str] = []
        for run, exchange, study_sha256 in runs:
            shutil.rmtree(hospital.state / "unfinished" / run, ignore_errors=True)
            act = Charge(study, run, 0, "leave", event=None)
            if hospital.ledger.file_of(act) is None:
                export.departure(hospital, study_sha256, act)
            try:
                export.publish(hospital, exchange, act)
            except (OSError, ValueError, AlreadyWritten):
                untold.append(exchange.url)
    return [run for run, _, _ in runs], sorted(set(untold))


def check_has_not_left(hospital: Hospital, study: str) -> None:
    """Raise `Refused` where the hospital has left a study."""
    if _mark(hospital, study).exists():
        raise Refused("the hospital has left the study")


def change_key(hospital: Hospital, *, force: bool = False) -> tuple[str, list[str]]:
    """Give the hospital a new key, and revoke the old one: nothing that anybody signs with it counts.

    What it has signed before stays this hospital's own, by its public half.

    Returns:
        The new public key, for the coordinator's federation.yaml, and the exchanges in which the old one
        could not be revoked. There it counts until that file names the new one.

    Raises:
        ConfigError: the old key could not be revoked everywhere, and stays, unless `force`.
    """
    old = hospital.key
    said = Revocation(
        kind="revocation",
        site=hospital.name,
        public_key=public_hex(old),
        at_ms=int(time.time() * 1000),
    )
    signed = sign(said.model_dump(mode="json"), hospital.name, old)
    place = Place.revocation(hospital.name, public_hex(old))
    named = {hospital.policy.coordinator.exchange} if hospital.policy.coordinator else set()
    unrevoked = []
    for url in sorted(hospital.exchanges | named):
        try:
            Exchange(url).put_statement(place, signed)
        except (OSError, ValueError, AlreadyWritten):
            unrevoked.append(url)
    if unrevoked and not force:
        raise ConfigError(
            f"The key could not be revoked at {', '.join(unrevoked)}, and stays. Ask again in the "
            f"worker's environment, or with --force: it then counts there until federation.yaml names "
            f"the new one."
        )
    with hospital.lock():
        return hospital.renew_key(), unrevoked


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
