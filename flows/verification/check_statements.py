"""Checks of orders, acceptances and refusals."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from pydantic import ValidationError

from flows.rounds.statements import PHASES, check_addressed
from flows.rounds.sum_progress import progress
from flows.runs.records import Absence, RoundRecord
from flows.runs.run import Run
from flows.verification.signatures import (
    coordinators_statement,
    known_keys,
    recorded_keys,
    signed_by,
)
from models.files import sha256_of
from privacy.signing import BadSignature, Roster
from privacy.statements import Refusal, RejectedRelease
from sites.exchange.phases import SUMS, Phase, act_of, refusal_of
from sites.exchange.places import Place
from sites.orders import Order


def order_faults(run: Run) -> Iterator[str]:
    """Yield where an order in the exchange is not what its place names, or was not signed."""
    for site in sorted(run.description.roster):
        for place in sorted(run.exchange.orders_of(site)):
            if place.run == run.name:
                yield from _order_faults(run, site, place)


def _order_faults(run: Run, site: str, place: Place) -> Iterator[str]:
    name = str(place).rpartition("/")[2]
    try:
        order = Order.model_validate(coordinators_statement(run, place))
    except (BadSignature, ValidationError, LookupError) as error:
        yield f"The order {name} of {site} can't be trusted: {error}"
        return
    named = Place.order(order.run, order.round, order.act, order.attempt, order.site)
    if (named, order.study.sha256) != (place, run.study.sha256):
        yield f"The order {name} of {site} is another than its place says."


def acceptance_faults(run: Run, roster: Roster | None) -> Iterator[str]:
    """Yield where run.json holds another acceptance than the hospital has signed."""
    for site in sorted(run.description.everybody):
        joined = run.description.acceptances(site)
        places = (Place.statement(run.name, r, "join", site) for r in range(run.study.rounds + 1))
        found = [data for place in places for data in run.exchange.answers(place)]
        keys = {*(each.public_key for each in joined), *recorded_keys(run, site)}
        if roster is not None:
            keys &= {roster.get(site, "")}
        signed = {sha256_of(data): signed_by(data, site, keys) for data in found}
        if not any(statement and statement.kind == "acceptance" for statement in signed.values()):
            yield f"The exchange has no acceptance of {site} that {site} has signed."
        elif any(signed.get(each.statement_sha256) != each.statement for each in joined):
            yield f"run.json has another acceptance of {site} than {site} has signed."


def refusal_faults(run: Run, records: Sequence[RoundRecord], roster: Roster | None) -> Iterator[str]:
    """Yield where a record has a refusal that the hospital did not sign."""
    phases = PHASES[run.study.privacy.mode]
    recorded: list[tuple[int, Sequence[Phase], Mapping[str, Absence]]] = [
        (0, ("join",), run.description.refused),
        *((record.round, phases, record.absences("release")) for record in records),
        *((record.round, SUMS["metrics"], record.absences("scores")) for record in records),
        *((record.round, ("compare",), record.absences("comparison")) for record in records),
    ]
    for round, asked, absences in recorded:
        for site, why in sorted(absences.items()):
            if why.kind != "refused":
                continue
            keys = known_keys(run, site, roster)
            signed = {text for phase in asked for text in _refusals(run, round, phase, site, keys)}
            if why.text not in signed:
                yield f"{site} has not signed its refusal in round {round}: {why.text}"


def _refusals(run: Run, round: int, phase: Phase, site: str, keys: set[str]) -> Iterator[str]:
    """Yield a hospital's signed reasons for refusing a phase of a round, in any attempt."""
    acts = [act_of(phase, k) for k in range(1, progress(run, round).attempt + 1)]
    for act in (refusal_of(act, attempt) for act in acts for attempt in range(1, run.attempt + 1)):
        for data in run.exchange.answers(Place.statement(run.name, round, act, site)):
            statement = signed_by(data, site, keys)
            if isinstance(statement, Refusal):
                with suppress(RejectedRelease):
                    check_addressed(run, round, act, site, statement)
                    yield statement.reason
