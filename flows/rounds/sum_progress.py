"""State of a round's secure sum: its attempt and the members of each phase, as a file of the run."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from flows.runs.records import SumRecord
from flows.runs.run import Run
from models.files import write_atomically
from privacy.secure_aggregation.terms import Terms
from sites.exchange.exchange import COORDINATOR
from sites.exchange.phases import SUMS, Phase, SumKind, act_of
from sites.exchange.places import Place
from sites.orders import SumOrder, sum_of
from sites.secure_sum.attempt import sum_terms
from sites.secure_sum.relay import bundle, unbundled


def order_part(run: Run, number: int, phase: Phase) -> SumOrder | None:
    """Return what an order of a phase says about the round's secure sum; None where it has none."""
    kind = sum_of(run.study, phase)
    if kind is None:
        return None
    record = progress(run, number, kind)
    return SumOrder(attempt=record.attempt, relay="" if phase == SUMS[kind].keys else record.relay)


def progress(run: Run, number: int, kind: SumKind = "update") -> SumRecord:
    """Return how far a secure sum of a round has come."""
    path = _path(run, number, kind)
    if not path.exists():
        return SumRecord(attempt=1)
    return SumRecord.model_validate_json(path.read_bytes())


def store(run: Run, number: int, record: SumRecord, kind: SumKind = "update") -> None:
    """Store how far a secure sum of a round has come."""
    write_atomically(_path(run, number, kind), record.model_dump_json().encode())


def act_in(run: Run, number: int, phase: Phase) -> str:
    """Return the purpose of the answers to a phase of a round: that of the round's present attempt."""
    part = order_part(run, number, phase)
    return phase if part is None else act_of(phase, part.attempt)


def decide(run: Run, number: int, phase: Phase, members: Mapping[str, str]) -> None:
    """Store a phase's members with their signed statements, which the next phase passes on to hospitals.

    Later nothing is read from hospitals' places again: whatever they write there, or remove.

    Args:
        members: by hospital, the sha256 of its statement.
    """
    kind = sum_of(run.study, phase) or "update"
    record = progress(run, number, kind)
    if record.members(phase):
        return
    act = act_of(phase, record.attempt)
    written = {
        site: run.exchange.statement_with(Place.statement(run.name, number, act, site), sha256)
        for site, sha256 in members.items()
    }
    data = bundle(written)
    write_atomically(_bundle_path(run, number, record.attempt, phase), data)
    decided = {**record.phases, phase: dict(sorted(members.items()))}
    relay = run.exchange.put_object(data, COORDINATOR)
    store(run, number, record.model_copy(update={"phases": decided, "relay": relay}), kind)


def passed_on(run: Run, number: int, attempt: int, phase: Phase) -> dict[str, bytes]:
    """Return the members' signed statements of a decided phase, or raise LookupError."""
    path = _bundle_path(run, number, attempt, phase)
    if not path.exists():
        raise LookupError(f"the run's folder has no statements of {phase}.")
    return unbundled(path.read_bytes())


def _bundle_path(run: Run, number: int, attempt: int, phase: Phase) -> Path:
    return run.folder / "sums" / f"round-{number:03d}" / f"{attempt}-{phase}.json"


def terms_of(
    run: Run, number: int, members: int, attempt: int | None = None, kind: SumKind = "update"
) -> Terms:
    """Return the terms of a round's attempt with so many members, or raise `BadTerms`."""
    attempt = attempt or progress(run, number, kind).attempt
    return sum_terms(run.study, run.name, number, attempt, members, kind)


def declared(run: Run, number: int, sites: Iterable[str]) -> int:
    """Return the declared training patients of some hospitals together."""
    return sum(run.description.member(site, number).statement.declared_training for site in sites)


def _path(run: Run, number: int, kind: SumKind) -> Path:
    of = "" if kind == "update" else f"-{kind}"
    return run.folder / "sums" / f"round-{number:03d}{of}.json"
