"""Statements as the exchange has them, with the keys that count for a reader."""

from contextlib import suppress

from flows.rounds.statements import keys_in, parse_signed
from flows.runs.run import Run
from privacy.signing import BadSignature, Roster, verified
from privacy.statements import RejectedRelease, Statement, parse_statement
from sites.exchange.places import Place


def coordinators_statement(run: Run, place: Place) -> dict[str, object]:
    """Return the coordinator's statement at a place.

    Raises:
        BadSignature: the coordinator did not sign it.
        LookupError: there is none.
    """
    data = run.exchange.statement(place)
    if data is None:
        raise LookupError("it is not in the exchange.")
    return run.coordinators(data)


def recorded_statement(
    run: Run, round: int, phase: str, site: str, public_key: str, statement_sha256: str
) -> Statement:
    """Return a hospital's statement from the exchange, by the key and the hash that a record names.

    Raises:
        BadSignature: the key did not sign it.
        RejectedRelease: it is about another act.
        LookupError: there is none, or another one than the record names.
    """
    place = Place.statement(run.name, round, phase, site)
    data = run.exchange.statement_with(place, statement_sha256)
    return parse_signed(run, round, phase, site, data, public_key)


def signed_by(data: bytes, site: str, keys: set[str]) -> Statement | None:
    """Return a hospital's statement, None where none of its keys signed one."""
    for key in sorted(keys):
        with suppress(BadSignature, RejectedRelease, ValueError):
            return parse_statement(verified(data, site, {site: key}))
    return None


def known_keys(run: Run, site: str, roster: Roster | None) -> set[str]:
    """Return the keys of a hospital that count for a reader: those of the reader's roster, if given."""
    if roster is not None:
        return {roster.get(site, "")}
    return keys_in(run, site) | recorded_keys(run, site)


def recorded_keys(run: Run, site: str) -> set[str]:
    """Return the keys that signed a hospital's recorded releases."""
    return {record.releases[site].public_key for record in run.records() if site in record.releases}


def has_stayed(run: Run, site: str) -> bool:
    """Return whether a hospital has taken part ever since it joined."""
    known = run.description
    return site in known.participants and len(known.acceptances(site)) == 1
