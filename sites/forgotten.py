"""What a hospital has said and its ledger does not know: the sign of a ledger restored from a backup.

Every statement is recorded before it is laid down in the exchange, and names the ledger's head of that
moment. So a statement in the exchange that is not on record, or one in the outbox that names a head
which the ledger never had, was paid for by charges that are missing. Until they are charged again the
hospital takes no part; its owner does that with `wardround site resolve`.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from models.checkpoints import CorruptCheckpoint, sha256_of
from privacy.accounting import TOLERANCE, PrivacyEvent
from privacy.ledger import Charge
from privacy.release import EventRecord, RejectedRelease, ReleaseManifest, Statement, parse_statement
from sites.exchange import Exchange, statement_place
from sites.hospital import Hospital
from sites.policy import Refused

PAYLOAD_BYTES = 2**34


@dataclass(frozen=True)
class Forgotten:
    """A statement of this hospital that its ledger does not know, and the bytes in which it stood."""

    statement: Statement
    data: bytes

    @property
    def act(self) -> Charge:
        """The act in which it ended, with what it cost."""
        s = self.statement
        return Charge(s.study, s.run, s.round, s.purpose, _event(s.event))


def check_memory(hospital: Hospital, exchange: Exchange) -> None:
    """Raise `Refused` if outbox or exchange hold what the ledger has forgotten."""
    if any(forgotten(hospital, [exchange])):
        raise Refused(
            "the hospital's ledger is older than what the hospital has published, as after a restored "
            "backup; its owner runs `wardround site resolve`"
        )


def forgotten(hospital: Hospital, exchanges: Iterable[Exchange]) -> Iterator[Forgotten]:
    """Yield the statements of this hospital in its outbox and in `exchanges` that are not on record.

    What lies in an exchange under the hospital's name counts whoever signed it: where the whole of
    `state/` is lost, the key that signed it is lost too.
    """
    entries = hospital.ledger.entries()
    known = {
        statement_place(e.charge.run, e.charge.round, e.charge.purpose, hospital.name)
        for e in entries
        if e.file
    }
    for exchange in exchanges:
        for place in sorted(exchange.statements_of(hospital.name) - known):
            data = exchange.statement(place)
            found = _parsed(data) if data else None
            if found and found.statement.site == hospital.name:
                yield found
    recorded, heads = {e.file for e in entries}, {e.hash for e in entries}
    for sha256 in sorted(hospital.outbox.statements() - recorded):
        found = _parsed(hospital.outbox.statement(sha256))
        if found and found.statement.ledger_head not in {*heads, hospital.ledger.genesis}:
            yield found


def resolve(hospital: Hospital, exchanges: list[Exchange]) -> list[Forgotten]:
    """Charge everything that was forgotten to everybody the hospital knows; return what it was.

    Who was eligible then is forgotten too, so each patient pays. Where a release states a higher
    epsilon than its run has on record afterwards, unreleased charges are missing as well: the
    release's event is charged until the record is not lower.
    """
    found = {sha256_of(f.data): f for f in forgotten(hospital, exchanges)}
    for sha256, each in found.items():
        _into_outbox(hospital, each, exchanges)
        if hospital.ledger.file_of(each.act):
            # Written before a crash, and never laid down: the act ended in the other statement.
            unsent = replace(each.act, purpose=f"{each.act.purpose}-unsent-{sha256[:12]}", event=None)
            hospital.ledger.publish(unsent, sha256)
        elif each.act.event or isinstance(each.statement, ReleaseManifest):
            hospital.ledger.recover(each.act, hospital.everybody, sha256)
        else:
            hospital.ledger.publish(each.act, sha256)
    for each in found.values():
        if isinstance(each.statement, ReleaseManifest):
            _charge_unreleased(hospital, each.statement)
    hospital.ledger.resolve()
    return list(found.values())


def _charge_unreleased(hospital: Hospital, release: ReleaseManifest) -> None:
    if release.epsilon is None or release.delta is None or release.event is None:
        return
    number = 0
    while hospital.ledger.spent(release.delta, release.run) < release.epsilon * (1 - TOLERANCE):
        number += 1
        purpose = f"{release.purpose}-unreleased-{number}"
        lost = Charge(release.study, release.run, release.round, purpose, _event(release.event))
        hospital.ledger.recover(lost, hospital.everybody, "")


def _into_outbox(hospital: Hospital, each: Forgotten, exchanges: list[Exchange]) -> None:
    """Put a statement, and the tensors that it names where they can be had, back into the outbox."""
    hospital.outbox.put_statement(each.data)
    if not isinstance(each.statement, ReleaseManifest):
        return
    for exchange in exchanges:
        with suppress(FileNotFoundError, CorruptCheckpoint):
            hospital.outbox.put_tensors(exchange.object(each.statement.payload_sha256, PAYLOAD_BYTES))


def _parsed(data: bytes) -> Forgotten | None:
    """Return the statement in `data`, whoever signed it; None if it is none."""
    try:
        return Forgotten(parse_statement(json.loads(data)["statement"]), data)
    except (ValueError, KeyError, TypeError, RecursionError, RejectedRelease):
        return None


def _event(record: EventRecord | None) -> PrivacyEvent | None:
    return PrivacyEvent(**record.model_dump()) if record else None
