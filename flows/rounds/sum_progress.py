"""State of a round's secure sum: its attempt and the members of each phase, as a file of the run."""

from collections.abc import Iterable
from pathlib import Path

from flows.runs.records import SumRecord
from flows.runs.run import Run
from models.files import write_atomically
from privacy.mechanisms import MaskedPrivacy, SharedNoise
from privacy.secure_aggregation.terms import BadTerms, Terms
from sites.orders import SUM_PHASES, Phase, SumOrder, act_of


def order_part(run: Run, number: int, phase: Phase) -> SumOrder | None:
    """Return what an order of a phase says about the round's secure sum; None where it has none."""
    if not run.study.is_summed or phase not in SUM_PHASES:
        return None
    record = progress(run, number)
    return SumOrder(attempt=record.attempt, relay="" if phase == "sum-keys" else record.relay)


def progress(run: Run, number: int) -> SumRecord:
    """Return how far a round's secure sum has come."""
    path = _path(run, number)
    if not path.exists():
        return SumRecord(attempt=1)
    return SumRecord.model_validate_json(path.read_bytes())


def store(run: Run, number: int, record: SumRecord) -> None:
    """Store how far a round's secure sum has come."""
    write_atomically(_path(run, number), record.model_dump_json().encode())


def act_in(run: Run, number: int, phase: Phase) -> str:
    """Return the purpose of the answers to a phase of a round: that of the round's present attempt."""
    return (
        phase if order_part(run, number, phase) is None else act_of(phase, progress(run, number).attempt)
    )


def terms_of(run: Run, number: int, members: int, attempt: int | None = None) -> Terms:
    """Return the terms of a round's attempt with so many members, or raise `BadTerms`."""
    privacy = run.study.privacy
    if not isinstance(privacy, MaskedPrivacy | SharedNoise):
        raise BadTerms("The study has no secure sum.")
    attempt = attempt or progress(run, number).attempt
    name = f"{run.study.sha256} {run.name} {number} {attempt}"
    return Terms(name, members, privacy.sum.dropouts, privacy.sum.colluding)


def declared(run: Run, number: int, sites: Iterable[str]) -> int:
    """Return the declared training patients of some hospitals together."""
    return sum(run.description.member(site, number).statement.declared_training for site in sites)


def _path(run: Run, number: int) -> Path:
    return run.folder / "sums" / f"round-{number:03d}.json"
