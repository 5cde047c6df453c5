"""Recovery of a ledger that was restored from a backup and misses charges.

Every statement is recorded in the ledger before it is written to the exchange, and names the ledger's
head at that time. So charges are missing if a statement in the exchange is not recorded, or if one in
the outbox names a head that the ledger never had. Until they are charged again the hospital takes no
part; its owner charges them with `wardround site recover-ledger`.

Only a statement that a key of this hospital signed is ever charged. If the whole of `state/` is lost,
the key is lost too: then the owner names the former public key, and what it signed is charged. A new
ledger beside statements under the hospital's name that no known key signed stops the hospital until its
owner has looked (`recover-ledger`); they cost nothing.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from models.errors import CorruptCheckpoint
from models.files import sha256_of
from privacy.accounting import PrivacyEvent
from privacy.ledger import Charge, LedgerError
from privacy.ledger_book import is_kind
from privacy.signing import BadSignature, verified
from privacy.statements import RejectedRelease, ReleaseManifest, Statement, parse_statement
from sites.exchange.exchange import Exchange
from sites.exchange.places import Place
from sites.hospital import Hospital
from sites.policy.policy import Refused

log = logging.getLogger("wardround.site")

PAYLOAD_BYTES = 2**32
NEW_PHANTOMS = "; new made-up hospitals of an old name train in another working folder"


@dataclass(frozen=True)
class PublishedStatement:
    """A statement of this hospital in an exchange or in the outbox, its bytes, and who signed it.

    `signer` is empty for this hospital's own keys, else the former public key that the owner has named.
    """

    statement: Statement
    data: bytes
    signer: str = ""

    @property
    def act(self) -> Charge:
        """The act that the statement ends, with its cost."""
        s, event = self.statement, self.statement.event
        cost = PrivacyEvent(**event.model_dump()) if event else None
        return Charge(s.study, s.run, s.round, s.purpose, cost)

    @property
    def is_charged(self) -> bool:
        """True if the ledger was charged for it: for a release, and for any statement with an event."""
        return self.statement.event is not None or isinstance(self.statement, ReleaseManifest)


def check_complete(hospital: Hospital, exchange: Exchange) -> None:
    """Raise `Refused` if outbox or exchanges hold statements that the ledger misses or can't know."""
    others = [Exchange(url) for url in sorted(hospital.exchanges - {exchange.url})]
    if any(missing_statements(hospital, others, needed=exchange)):
        raise Refused(
            "the hospital's ledger is older than what the hospital has published, as after a restored "
            "backup; its owner runs `wardround site recover-ledger`"
        )
    is_new = not any(e.action in ("reserve", "resolve") for e in hospital.ledger.entries())
    if is_new and any(foreign_statements(hospital, [*others, exchange])):
        raise Refused(
            "the exchange has statements under this hospital's name that none of its keys signed; its "
            "owner looks at them with `wardround site recover-ledger`"
            + NEW_PHANTOMS
            * hospital.policy.phantom
        )


def missing_statements(
    hospital: Hospital,
    exchanges: Iterable[Exchange],
    needed: Exchange | None = None,
    former_keys: Sequence[str] = (),
) -> Iterator[PublishedStatement]:
    """Yield this hospital's statements in its outbox and in exchanges that the ledger misses.

    An exchange of `exchanges` that can't be listed any more is skipped; the `needed` one must be listed.

    Args:
        former_keys: public keys of this hospital whose state is lost, as its owner names them.
    """
    written = [(exchange, place) for exchange in exchanges for place in _places(hospital, exchange)]
    if needed:
        written += [(needed, place) for place in needed.statements_of(hospital.name)]
    entries = hospital.ledger.entries()  # read after the listing, so each listed statement is recorded
    recorded = {e.file for e in entries}
    heads = {hospital.ledger.genesis, *(e.hash for e in entries)}
    for published in unrecorded(hospital):
        if published.statement.ledger_head not in heads:
            yield published
    known = {
        Place.statement(e.charge.run, e.charge.round, e.charge.purpose, hospital.name)
        for e in entries
        if e.file
    }
    for exchange, place in written:
        found = None if place in known else _statement_at(hospital, exchange, place)
        signer = _signer(hospital, found.data, former_keys) if found else None
        if found and signer is not None and sha256_of(found.data) not in recorded:
            yield replace(found, signer=signer)


def foreign_statements(
    hospital: Hospital, exchanges: Iterable[Exchange], former_keys: Sequence[str] = ()
) -> Iterator[Place]:
    """Yield the places of statements under this hospital's name that no known key of it signed."""
    for exchange in exchanges:
        for place in sorted(_places(hospital, exchange)):
            found = _statement_at(hospital, exchange, place)
            if found and _signer(hospital, found.data, former_keys) is None:
                yield place


def unrecorded(hospital: Hospital) -> Iterator[PublishedStatement]:
    """Yield the outbox's statements that the ledger does not record, as after a crash or a restore."""
    recorded = {e.file for e in hospital.ledger.entries()}
    for sha256 in sorted(hospital.outbox.statements() - recorded):
        published = _parsed(hospital.outbox.statement(sha256))
        if published:
            yield published


def recover_ledger(
    hospital: Hospital, exchanges: list[Exchange], former_keys: Sequence[str] = ()
) -> list[PublishedStatement]:
    """Charge every missing statement to each patient that the hospital knows; return the statements.

    The cohorts of the lost charges are lost too, so each patient is charged. If a statement counts more
    charges of its run than are recorded afterwards, charges without a release are missing too and are
    charged. Both are read from the outbox, so an interrupted call can be repeated.
    """
    missing = missing_statements(hospital, exchanges, former_keys=former_keys)
    found = {sha256_of(each.data): each for each in missing}
    for sha256, published in found.items():
        _into_outbox(hospital, published, exchanges)
        _charge(hospital, published, sha256)
    for sha256 in sorted(hospital.outbox.statements()):
        if kept := _parsed(hospital.outbox.statement(sha256)):
            _charge_unreleased(hospital, kept)
    hospital.ledger.resolve()
    return list(found.values())


def _charge(hospital: Hospital, published: PublishedStatement, sha256: str) -> None:
    """Charge a statement, or record it if it cost nothing; a second one of an act is charged too."""
    ledger, act = hospital.ledger, published.act
    if ledger.file_of(act):
        act = replace(act, purpose=f"{act.purpose}-again-{sha256[:12]}")
    if not published.is_charged:
        ledger.publish(act, sha256)
        return
    try:
        _recover(hospital, act, sha256)
    except LedgerError:
        again = replace(act, purpose=f"{act.purpose}-again-{sha256[:12]}")
        _recover(hospital, again, sha256)


def _recover(hospital: Hospital, act: Charge, file: str) -> None:
    """Charge everybody for an act; those who train by the policy are recorded as who took part."""
    training = hospital.eligible.training if is_kind(act.purpose, "contribute") else frozenset[str]()
    hospital.ledger.recover(act, training or hospital.everybody, file, hospital.everybody)


def _charge_unreleased(hospital: Hospital, published: PublishedStatement) -> None:
    """Charge, as one event, those charges that the statement counts and the ledger does not have."""
    act, missing = published.act, published.statement.charges - hospital.ledger.count(published.act)
    if act.event is None or missing <= 0:
        return
    lost = replace(
        act,
        purpose=f"{act.purpose}-unreleased-{published.statement.ledger_head[:12]}",
        event=replace(act.event, steps=act.event.steps * missing),
    )
    _recover(hospital, lost, "")


def _places(hospital: Hospital, exchange: Exchange) -> set[Place]:
    try:
        return exchange.statements_of(hospital.name)
    except (OSError, ValueError) as error:
        log.warning("an exchange can't be listed: %s", type(error).__name__)
        return set()


def _statement_at(hospital: Hospital, exchange: Exchange, place: Place) -> PublishedStatement | None:
    """Return the statement at a place of the exchange if it names this hospital and this place."""
    data = None
    with suppress(OSError, CorruptCheckpoint):
        data = exchange.statement(place)
    if not data:
        return None
    published = _parsed(data)
    if not published or published.statement.site != hospital.name:
        return None
    s = published.statement
    is_here = replace(place, mark="") == Place.statement(s.run, s.round, s.purpose, hospital.name)
    return published if is_here else None


def _signer(hospital: Hospital, data: bytes, former_keys: Sequence[str]) -> str | None:
    """Return the named key that signed a statement, "" for this hospital's own, None for neither."""
    with suppress(BadSignature):
        hospital.verified(data)
        return ""
    for key in former_keys:
        with suppress(BadSignature):
            verified(data, hospital.name, {hospital.name: key})
            return key
    return None


def _into_outbox(hospital: Hospital, published: PublishedStatement, exchanges: list[Exchange]) -> None:
    """Write a statement back to the outbox, and the tensors that it names if an exchange has them."""
    hospital.outbox.put_statement(published.data)
    statement = published.statement
    if not isinstance(statement, ReleaseManifest) or statement.payload_bytes > PAYLOAD_BYTES:
        return
    for exchange in exchanges:
        with suppress(OSError, CorruptCheckpoint):
            named = (statement.payload_sha256, statement.site)
            hospital.outbox.put_tensors(partial(_fetched, exchange, named, statement.payload_bytes))


def _fetched(exchange: Exchange, named: tuple[str, str], max_bytes: int, into: Path) -> None:
    exchange.fetch_object(*named, into, max_bytes)


def _parsed(data: bytes) -> PublishedStatement | None:
    """Return the statement in `data` without checking its signature; None if it is none."""
    try:
        return PublishedStatement(parse_statement(json.loads(data)["statement"]), data)
    except (ValueError, KeyError, TypeError, RecursionError, RejectedRelease):
        return None
