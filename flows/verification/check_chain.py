"""Checks of the chain of records, of the members in `run.json`, and of the keys that signed."""

from collections.abc import Iterator, Sequence

from pydantic import ValidationError

from flows.runs.records import RoundRecord, Signed
from flows.runs.run import Run
from flows.verification.signatures import coordinators_statement, has_stayed
from privacy.signing import BadSignature, Roster
from privacy.statements import HeadManifest
from sites.exchange.places import Place


def chain_faults(run: Run, records: Sequence[RoundRecord]) -> Iterator[str]:
    """Yield faults in the chain of records, and in its heads as the coordinator signed them."""
    for record in records:
        named = (record.study, record.study_sha256, record.run)
        if named != (run.study.name, run.study.sha256, run.name):
            yield f"The record of round {record.round} is of another study or run."
    numbers = sorted(int(p.stem.removeprefix("round-")) for p in (run.folder / "rounds").glob("*.json"))
    if numbers != [record.round for record in records]:
        yield f"The records are of rounds {numbers}, one of which is missing."
    if run.is_finished and records[-1].round != run.study.rounds:
        yield f"{run.name} is finished, and its newest record is of round {records[-1].round}."
    for record in records:
        yield from _head_faults(run, record)
    last = records[-1].round
    newest = last if run.is_finished else last + 1  # a round that is under way
    published = {(p.round, p.kind) for p in run.exchange.models_of(run.name) if p.kind != "decision"}
    for number, kind in sorted(published):
        if number > newest or (number > last and kind == "head"):
            yield f"The exchange has a {kind} of round {number}, whose record is missing here."


def _head_faults(run: Run, record: RoundRecord) -> Iterator[str]:
    try:
        head = HeadManifest.model_validate(
            coordinators_statement(run, Place.head(run.name, record.round))
        )
    except (BadSignature, ValidationError, LookupError) as error:
        yield f"The signed head of round {record.round}: {error}"
        return
    if (head.run, head.round, head.record_sha256) != (run.name, record.round, record.sha256):
        yield f"The signed head of round {record.round} is another than the record's."


def member_faults(run: Run, records: Sequence[RoundRecord]) -> Iterator[str]:
    """Yield where run.json names other members than the records do."""
    known = run.description
    if known.kind != "training":
        yield f"run.json calls {run.name} a {known.kind}, and it has records of a training."
    for site, member in sorted(known.participants.items()):
        if known.roster.get(site) != member.key:
            yield f"run.json has two keys of {site}."
    for record in records[1:]:
        for site in sorted(record.hospitals.keys() - known.everybody.keys() - known.roster.keys()):
            yield f"The record of round {record.round} has {site}, which run.json does not know."
        for site in sorted(known.everybody):
            first = known.acceptances(site)[0].since
            release = record.releases.get(site)
            if release and release.statement.round < first:
                yield f"{site} contributed to round {record.round} before run.json has it join."
            # a round that was interrupted goes on without hospitals that join meanwhile
            due = has_stayed(run, site) and first < record.round
            if due and not (site in record.hospitals and record.hospitals[site].release):
                yield f"The record of round {record.round} does not say why {site} is missing."


def key_faults(run: Run, records: Sequence[RoundRecord], roster: Roster) -> Iterator[str]:
    """Yield where a hospital signed with another key than the reader's roster has."""
    for record in records:
        for site, hospital in sorted(record.hospitals.items()):
            parts = (hospital.release, hospital.scores, hospital.comparison)
            keys = {each.public_key for each in parts if isinstance(each, Signed)}
            if keys - {roster.get(site)}:
                yield f"{site} signed in round {record.round} with another key than the one you gave."
    for site in sorted(run.description.everybody):
        if roster.get(site) != run.description.acceptances(site)[-1].key:
            yield f"{site} has another key in run.json than the one you gave."
