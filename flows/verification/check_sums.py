"""Checks of secure sums: their members, their terms, and what every member signed in each phase."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from flows.rounds.releases import is_masked_as_due
from flows.rounds.secure_sum import statements_in
from flows.rounds.sum_progress import progress, terms_of
from flows.runs.records import RoundRecord, SumRecord
from flows.runs.run import Run
from privacy.release import SumKeys, SumOpening, SumShares, SumSurvivors
from sites.orders import SUM_PHASES


def sum_faults(run: Run, records: Sequence[RoundRecord]) -> Iterator[str]:
    """Yield faults in the secure sums of a run's rounds."""
    for record in records:
        due = progress(run, record.round) if run.study.is_summed and record.round else None
        where = f"The secure sum of round {record.round}"
        if record.sum != due:
            yield f"{where}: the record has another than the run's folder."
        elif record.sum:
            try:
                yield from (f"{where}: {fault}" for fault in _faults(run, record, record.sum))
            except (ValueError, LookupError) as error:
                yield f"{where}: {error}"


def _faults(run: Run, record: RoundRecord, found: SumRecord) -> Iterator[str]:
    members = [found.members(phase) for phase in SUM_PHASES]
    if found.failed or set(found.phases) != set(SUM_PHASES):
        yield "it did not come to its end."
        return
    if any(not later.keys() <= earlier.keys() for earlier, later in pairwise(members)):
        yield "a phase has a member that the phase before does not have."
    terms = terms_of(run, record.round, len(members[0]), found.attempt)
    if len(members[0]) < run.study.sites.min or min(map(len, members)) < terms.threshold:
        yield "a phase has fewer members than the study's terms."
    releases = {site: release.statement_sha256 for site, release in record.releases.items()}
    if found.members("contribute") != releases:
        yield "it is over other releases than the record's."
    yield from _statement_faults(run, record.round, found)
    for site, release in sorted(record.releases.items()):
        if not is_masked_as_due(run, found, record.round, release.statement):
            yield f"the release of {site} is masked on other terms."


def _statement_faults(run: Run, round: int, found: SumRecord) -> Iterator[str]:
    for site, keys in statements_in(run, round, found, "sum-keys", SumKeys).items():
        if keys.declared_training != run.description.member(site, round).statement.declared_training:
            yield f"{site} has another weight than it declared."
    for site, shares in statements_in(run, round, found, "sum-shares", SumShares).items():
        if dict(shares.members) != found.members("sum-keys"):
            yield f"{site} has sealed its shares for another roster."
    for site, survivors in statements_in(run, round, found, "sum-survivors", SumSurvivors).items():
        if dict(survivors.survivors) != found.members("contribute"):
            yield f"{site} has signed another list of survivors."
    _ = statements_in(run, round, found, "sum-opening", SumOpening)
