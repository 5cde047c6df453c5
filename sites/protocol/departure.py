"""Departure of a hospital from a study, and change of its signing key.

Everything that it has signed so far stays valid: its ledger, its outbox, and the releases that rounds
accepted. Its charges stay too.
"""

import json
import shutil
import time
from pathlib import Path

from models.files import write_atomically
from privacy.ledger import Charge
from privacy.signing import public_hex, sign
from privacy.statements import Revocation
from sites import export
from sites.exchange.exchange import AlreadyWritten, Exchange
from sites.exchange.phases import SUM_KINDS
from sites.exchange.places import Place
from sites.hospital import Hospital
from sites.policy.policy import Refused
from sites.secure_sum.attempt import forget_secrets
from sites.yaml_files import ConfigError


def leave(hospital: Hospital, study: str) -> tuple[list[str], list[str]]:
    """Leave a study permanently, and delete its unfinished work.

    Returns:
        The runs that the hospital leaves, and the exchanges to which the statement could not be written.
        Calling this again writes it there.

    Raises:
        ConfigError: this hospital has taken no part in a study of this name.
    """
    check_takes_part(hospital, study)
    runs = _runs_of(hospital, study)
    write_atomically(_mark(hospital, study), b"")
    hospital.security_log.write("left_study", study=study)
    with hospital.lock():  # work in progress for the study ends at its next step
        failed: list[str] = []
        for run, exchange, study_sha256 in runs:
            shutil.rmtree(hospital.state / "unfinished" / run, ignore_errors=True)
            for kind in SUM_KINDS:
                forget_secrets(hospital, run, kind)
            act = Charge(study, run, 0, "leave", event=None)
            if hospital.ledger.file_of(act) is None:
                export.departure(hospital, study_sha256, act)
            try:
                export.publish(hospital, exchange, act)
            except (OSError, ValueError, AlreadyWritten):
                failed.append(exchange.url)
    return [run for run, _, _ in runs], sorted(set(failed))


def check_takes_part(hospital: Hospital, study: str) -> None:
    """Raise `ConfigError` if the hospital has taken no part in a study of this name."""
    if not _runs_of(hospital, study):
        raise ConfigError(f"Expected a study in which {hospital.name} takes part, got {study!r}.")


def has_left(hospital: Hospital, study: str) -> bool:
    """Tell whether the hospital has left a study."""
    return _mark(hospital, study).exists()


def check_has_not_left(hospital: Hospital, study: str) -> None:
    """Raise `Refused` if the hospital has left a study."""
    if has_left(hospital, study):
        raise Refused("the hospital has left the study")


def change_key(hospital: Hospital, *, force: bool = False) -> tuple[str, list[str]]:
    """Make a new key for the hospital and revoke the old one.

    A statement that is signed with the old key from then on does not count. The hospital can still
    verify its older statements, because it stores the old public key.

    Returns:
        The new public key, for the coordinator's federation.yaml, and the exchanges in which the old key
        could not be revoked. There the old key counts until federation.yaml names the new one.

    Raises:
        ConfigError: the old key could not be revoked in every exchange; it stays in use, unless `force`.
    """
    old = hospital.key
    statement = Revocation(
        kind="revocation",
        site=hospital.name,
        public_key=public_hex(old),
        at_ms=int(time.time() * 1000),
    )
    signed = sign(statement.model_dump(mode="json"), hospital.name, old)
    place = Place.revocation(hospital.name, public_hex(old))
    named = {hospital.policy.coordinator.exchange} if hospital.policy.coordinator else set()
    unrevoked = []
    for url in sorted(hospital.exchanges | named):
        try:
            Exchange(url).put_statement(place, signed, lambda other: hospital.wrote(other, place))
        except (OSError, ValueError, AlreadyWritten):
            unrevoked.append(url)
    if unrevoked and not force:
        raise ConfigError(
            f"The key could not be revoked at {', '.join(unrevoked)}, so it stays in use. Repeat the "
            f"command in the worker's environment, or with --force: the old key then counts there until "
            f"federation.yaml names the new one."
        )
    with hospital.lock():
        renewed = hospital.renew_key()
    hospital.security_log.write("key_changed", before=public_hex(old), now=renewed)
    return renewed, unrevoked


def _runs_of(hospital: Hospital, study: str) -> list[tuple[str, Exchange, str]]:
    """Return the runs of a study that the ledger names, each with its exchange and study's sha256."""
    known = {e.charge.run for e in hospital.ledger.entries() if e.charge.study == study}
    found = []
    for path in sorted((hospital.state / "runs").glob("*.json")):
        if path.stem in known:
            terms = json.loads(path.read_bytes())
            found.append((path.stem, Exchange(terms["exchange"]), terms["study_sha256"]))
    return found


def _mark(hospital: Hospital, study: str) -> Path:
    return hospital.state / "left" / study
