"""Checks of secure sums: their members, their terms, and what every member signed in each phase."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from flows.rounds.figures import is_fitting_score
from flows.rounds.recording import has_metrics_sum
from flows.rounds.releases import is_masked_as_due
from flows.rounds.secure_sum import statements_in
from flows.rounds.sum_progress import progress, terms_of
from flows.rounds.sum_statements import due_weight
from flows.runs.records import RoundRecord, SumRecord
from flows.runs.run import Run
from privacy.statements import SumKeys, SumOpening, SumShares, SumSurvivors
from sites.exchange.phases import SUMS, SumKind


def sum_faults(run: Run, records: Sequence[RoundRecord]) -> Iterator[str]:
    """Yield faults in the secure sums of a run's rounds."""
    for record in records:
        where = f"The secure sum of round {record.round}"
        due = progress(run, record.round) if run.study.is_summed and record.round else None
        yield from _sum_faults(run, record, "update", record.sum, due, where)
        where = f"The secure sum of the metrics of round {record.round}"
        has_sum = has_metrics_sum(run, record.round)
        due = progress(run, record.round, "metrics") if has_sum else None
        yield from _sum_faults(run, record, "metrics", record.metrics_sum, due, where)


def _sum_faults(
    run: Run, record: RoundRecord, kind: SumKind, found: SumRecord | None, due: SumRecord | None,
    where: str,
) -> Iterator[str]:  # fmt: skip
    if found != due:
        yield f"{where}: the record has another than the run's folder."
    elif found and kind == "metrics" and found.failed:
        if record.quality or record.scores:
            yield f"{where}: it did not come to its end, and the record has metrics."
    elif found:
        try:
            yield from (f"{where}: {fault}" for fault in _faults(run, record, found, kind))
        except (ValueError, LookupError) as error:
            yield f"{where}: {error}"


def _faults(run: Run, record: RoundRecord, found: SumRecord, kind: SumKind) -> Iterator[str]:
    phases = SUMS[kind]
    members = [found.members(phase) for phase in phases]
    if found.failed or set(found.phases) != set(phases):
        yield "it did not come to its end."
        return
    if kind != "update" and found.attempt != 1:
        yield "it is another attempt than the one that figures have."
    if any(not later.keys() <= earlier.keys() for earlier, later in pairwise(members)):
        yield "a phase has a member that the phase before does not have."
    terms = terms_of(run, record.round, len(members[0]), found.attempt, kind)
    if len(members[0]) < run.study.sites.min or min(map(len, members)) < terms.threshold:
        yield "a phase has fewer members than the study's terms."
    signed = record.releases if kind == "update" else record.scores
    if found.members(phases.vector) != {site: each.statement_sha256 for site, each in signed.items()}:
        yield f"it is over other {'releases' if kind == 'update' else 'scores'} than the record's."
    yield from _statement_faults(run, record.round, found, kind)
    if kind == "metrics":
        for site, each in sorted(record.scores.items()):
            if not is_fitting_score(run, record.round, each.statement):
                yield f"the scores of {site} are masked on other terms, or at another cost."
        return
    for site, release in sorted(record.releases.items()):
        if not is_masked_as_due(run, found, record.round, release.statement):
            yield f"the release of {site} is masked on other terms."


def _statement_faults(run: Run, round: int, found: SumRecord, kind: SumKind) -> Iterator[str]:
    phases = SUMS[kind]
    for site, keys in statements_in(run, round, found, phases.keys, SumKeys).items():
        if keys.weight != due_weight(run, round, site, kind):
            yield f"{site} has another weight than it declared."
    for site, shares in statements_in(run, round, found, phases.shares, SumShares).items():
        if dict(shares.members) != found.members(phases.keys):
            yield f"{site} has sealed its shares for another roster."
    for site, survivors in statements_in(run, round, found, phases.survivors, SumSurvivors).items():
        if dict(survivors.survivors) != found.members(phases.vector):
            yield f"{site} has signed another list of survivors."
    _ = statements_in(run, round, found, phases.opening, SumOpening)
