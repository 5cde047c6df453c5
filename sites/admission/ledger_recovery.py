"""What a hospital has said and its ledger does not know: the sign of a ledger restored from a backup.

Every statement is recorded before it is laid down in the exchange, and names the ledger's head of that
moment. So a statement in the exchange that is not on record, or one in the outbox that names a head
which the ledger never had, was paid for by charges that are missing. Until they are charged again the
hospital takes no part; its owner does that with `wardround site resolve`.

A statement counts if the hospital signed it. While the ledger has no charge at all, any statement under
the hospital's name counts: where the whole of `state/` is lost, the key is lost too.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from models.checkpoints import CorruptCheckpoint
from models.files import sha256_of
from privacy.accounting import PrivacyEvent
from privacy.ledger import Charge, LedgerError
from privacy.release import RejectedRelease, ReleaseManifest, Statement, parse_statement
from privacy.signing import BadSignature
from sites.exchange.exchange import Exchange, statement_place
from sites.hospital import Hospital
from sites.policy.policy import Refused

log = logging.getLogger("wardround.site")

PAYLOAD_BYTES = 2**32


@dataclass(frozen=True)
class Said:
    """A statement of this hospital, and the bytes in which it stood."""

    statement: Statement
    data: bytes

    @property
    def act(self) -> Charge:
        """The act in which it ended, with what it cost."""
        s, event = self.statement, self.statement.event
        cost = PrivacyEvent(**event.model_dump()) if event else None
        return Charge(s.study, s.run, s.round, s.purpose, cost)

    @property
    def is_charged(self) -> bool:
        """Whether it was paid for: a release is, and whatever names an event."""
        return self.statement.event is not None or isinstance(self.statement, ReleaseManifest)


def check_memory(hospital: Hospital, exchange: Exchange) -> None:
    """Raise `Refused` if outbox or exchanges hold what the ledger has forgotten."""
    urls = hospital.exchanges - {exchange.url}
    if any(forgotten(hospital, map(Exchange, sorted(urls)), needed=exchange)):
        raise Refused(
            "the hospital's ledger is older than what the hospital has published, as after a restored "
            "backup; its owner runs `wardround site resolve`"
        )


def forgotten(
    hospital: Hospital, exchanges: Iterable[Exchange], needed: Exchange | None = None
) -> Iterator[Said]:
    """Yield the statements of this hospital in its outbox and in exchanges that are not on record.

    Of `exchanges` one that can't be listed any more is passed over; the `needed` one has to be.
    """
    lying = [(exchange, place) for exchange in exchanges for place in _places(hospital, exchange)]
    if needed:
        lying += [(needed, place) for place in needed.statements_of(hospital.name)]
    entries = hospital.ledger.entries()  # after the listing: whatever was laid down is recorded
    recorded = {e.file for e in entries}
    heads = {hospital.ledger.genesis, *(e.hash for e in entries)}
    for said in unrecorded(hospital):
        if said.statement.ledger_head not in heads:
            yield said
    known = {
        statement_place(e.charge.run, e.charge.round, e.charge.purpose, hospital.name)
        for e in entries
        if e.file
    }
    trusts_anyone = not any(e.action == "reserve" for e in entries)
    for exchange, place in lying:
        found = None if place in known else _lying_at(hospital, exchange, place, trusts_anyone)
        if found and sha256_of(found.data) not in recorded:
            yield found


def unrecorded(hospital: Hospital) -> Iterator[Said]:
    """Yield the outbox's statements that the ledger does not name: a crash or a backup left them."""
    recorded = {e.file for e in hospital.ledger.entries()}
    for sha256 in sorted(hospital.outbox.statements() - recorded):
        said = _parsed(hospital.outbox.statement(sha256))
        if said:
            yield said


def resolve(hospital: Hospital, exchanges: list[Exchange]) -> list[Said]:
    """Charge everything that was forgotten to everybody the hospital knows; return what it was.

    Who was eligible then is forgotten too, so each patient pays. Where a statement counts more charges
    of its run than are on record afterwards, unreleased ones are missing as well and are charged. Both
    are read off the outbox, so an interrupted call can be made again.
    """
    found = {sha256_of(said.data): said for said in forgotten(hospital, exchanges)}
    for sha256, said in found.items():
        _into_outbox(hospital, said, exchanges)
        _charge(hospital, said, sha256)
    for sha256 in sorted(hospital.outbox.statements()):
        if kept := _parsed(hospital.outbox.statement(sha256)):
            _charge_unreleased(hospital, kept)
    hospital.ledger.resolve()
    return list(found.values())


def _charge(hospital: Hospital, said: Said, sha256: str) -> None:
    """Charge one statement, or record it where it cost nothing; a second one of an act costs again."""
    ledger, act = hospital.ledger, said.act
    if ledger.file_of(act):
        act = replace(act, purpose=f"{act.purpose}-again-{sha256[:12]}")
    if not said.is_charged:
        ledger.publish(act, sha256)
        return
    try:
        ledger.recover(act, hospital.everybody, sha256)
    except LedgerError:
        again = replace(act, purpose=f"{act.purpose}-again-{sha256[:12]}")
        ledger.recover(again, hospital.everybody, sha256)


def _charge_unreleased(hospital: Hospital, said: Said) -> None:
    """Charge as many events, as one, as the statement counts more than the ledger of its run."""
    act, missing = said.act, said.statement.charges - hospital.ledger.count(said.act)
    if act.event is None or missing <= 0:
        return
    lost = replace(
        act,
        purpose=f"{act.purpose}-unreleased-{said.statement.ledger_head[:12]}",
        event=replace(act.event, steps=act.event.steps * missing),
    )
    hospital.ledger.recover(lost, hospital.everybody, "")


def _places(hospital: Hospital, exchange: Exchange) -> set[str]:
    try:
        return exchange.statements_of(hospital.name)
    except (OSError, ValueError) as error:
        log.warning("an exchange can't be listed: %s", type(error).__name__)
        return set()


def _lying_at(hospital: Hospital, exchange: Exchange, place: str, trusts_anyone: bool) -> Said | None:
    """Return the statement at a place of the exchange, if it is this hospital's and belongs there."""
    data = None
    with suppress(OSError, CorruptCheckpoint):
        data = exchange.statement(place)
    if not data:
        return None
    said = _parsed(data)
    if not said or said.statement.site != hospital.name:
        return None
    s = said.statement
    if statement_place(s.run, s.round, s.purpose, hospital.name) != place:
        return None
    try:
        hospital.verified(data)
    except BadSignature:
        return said if trusts_anyone else None
    return said


def _into_outbox(hospital: Hospital, said: Said, exchanges: list[Exchange]) -> None:
    """Put a statement, and the tensors that it names where they can be had, back into the outbox."""
    hospital.outbox.put_statement(said.data)
    statement = said.statement
    if not isinstance(statement, ReleaseManifest) or statement.payload_bytes > PAYLOAD_BYTES:
        return
    for exchange in exchanges:
        with suppress(OSError, CorruptCheckpoint):
            payload = exchange.object(statement.payload_sha256, statement.site, statement.payload_bytes)
            hospital.outbox.put_tensors(payload)


def _parsed(data: bytes) -> Said | None:
    """Return the statement in `data`, whoever signed it; None if it is none."""
    try:
        return Said(parse_statement(json.loads(data)["statement"]), data)
    except (ValueError, KeyError, TypeError, RecursionError, RejectedRelease):
        return None
