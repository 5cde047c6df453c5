"""Checks of releases: signatures, base, declared numbers, cost, tensors, and that none counts twice."""

import math
from collections.abc import Iterator, Sequence

from flows.rounds.releases import check_cost, release_path, weight_of
from flows.rounds.sum_progress import terms_of
from flows.runs.records import AcceptedRelease, RoundRecord, head_before
from flows.runs.run import Run
from flows.verification.signatures import recorded_statement
from models.files import sha256_of_file
from privacy.accounting import TOLERANCE
from privacy.ledger_book import kind_of
from privacy.signing import BadSignature
from privacy.statements import RejectedRelease, ReleaseManifest


def release_faults(
    run: Run, records: Sequence[RoundRecord], before: RoundRecord, record: RoundRecord
) -> Iterator[str]:
    """Yield faults in the releases that a round accepted."""
    if record.base_sha256 != before.model_sha256:
        yield f"Round {record.round} starts from another model than round {before.round} ended with."
    if len(record.releases) < _fewest(run, record):
        yield f"Round {record.round} took fewer releases than the study's minimum."
    for site, release in sorted(record.releases.items()):
        where = f"The release of {site} in round {record.round}"
        if release.statement.site != site:
            yield f"{where} is another hospital's."
            continue
        late = run.study.sites.staleness
        if not 0 <= record.round - release.statement.round <= (late.rounds if late else 0):
            yield f"{where} is later than the study accepts."
            continue
        yield from _release_faults(run, records, record, release, where)


def _fewest(run: Run, record: RoundRecord) -> int:
    """Return the least number of releases in a round; a secure sum may lose some of its members."""
    if record.sum is None:
        return run.study.sites.min
    return terms_of(run, record.round, len(record.sum.members("sum-keys"))).threshold


def _release_faults(
    run: Run,
    records: Sequence[RoundRecord],
    record: RoundRecord,
    release: AcceptedRelease,
    where: str,
) -> Iterator[str]:
    site, due = release.statement.site, release.statement.round
    try:
        manifest = recorded_statement(
            run, due, release.statement.purpose, site, release.public_key, release.statement_sha256
        )
    except (BadSignature, RejectedRelease, LookupError) as error:
        yield f"{where}: {error}"
        return
    if not isinstance(manifest, ReleaseManifest) or kind_of(manifest.purpose) != "contribute":
        yield f"{where} is a {manifest.kind}."
        return
    if other := _different_field(manifest, release.statement):
        yield f"{where}: the record has another {other} than the hospital signed."
    if manifest.declared_training != run.description.member(site, due).statement.declared_training:
        yield f"{where} is of another number of patients than {site} has declared."
    if manifest.base_sha256 != records[due - 1].model_sha256:
        yield f"{where} starts from another model than the round before it ended with."
    if manifest.chain_head != head_before(records, due - 1):
        yield f"{where} was signed upon another chain of records than this."
    if not math.isclose(release.weight, weight_of(run, record.round, manifest)):
        yield f"{where} has another weight than its declared patients."
    yield from _cost_faults(run, records, record, manifest, where)
    path = release_path(run, record.round, site)
    if not path.exists() or sha256_of_file(path) != manifest.payload_sha256:
        yield f"{where}: its stored tensors are not those that it names."


def _different_field(signed: ReleaseManifest, recorded: ReleaseManifest) -> str | None:
    """Return the first field in which two manifests differ, None where they are equal."""
    fields = ReleaseManifest.model_fields
    return next((n for n in fields if getattr(signed, n) != getattr(recorded, n)), None)


def _cost_faults(
    run: Run,
    records: Sequence[RoundRecord],
    record: RoundRecord,
    manifest: ReleaseManifest,
    where: str,
) -> Iterator[str]:
    """Yield where a release costs less than the study's mechanism does, or less than one before it."""
    earlier = records[: record.round]
    try:
        check_cost(run, manifest, earlier)
    except ValueError as error:
        yield f"{where}: {error}."
    stated = [
        r.releases[manifest.site].statement.epsilon for r in earlier if manifest.site in r.releases
    ]
    spent = [epsilon for epsilon in stated if epsilon is not None]
    if manifest.epsilon is not None and spent and manifest.epsilon < spent[-1] * (1 - TOLERANCE):
        yield f"{where} states a smaller epsilon than an earlier one."


def repeated_releases(records: Sequence[RoundRecord]) -> Iterator[str]:
    """Yield releases that were counted before."""
    seen: dict[str, int] = {}
    for record in records:
        for site, release in sorted(record.releases.items()):
            for mark in (release.statement_sha256, f"{site} {release.statement.ledger_head}"):
                if mark in seen:
                    yield (
                        f"The release of {site} in round {record.round} is that of round "
                        f"{seen[mark]} once more."
                    )
                    break
                seen[mark] = record.round
