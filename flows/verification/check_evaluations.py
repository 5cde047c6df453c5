"""Checks of scores and comparisons: signatures, numbers, means, and that none was left out."""

import math
from collections.abc import Iterator, Mapping, Sequence

from pydantic import ValidationError

from flows.rounds.global_model import released_model
from flows.rounds.recording import has_metrics_sum, quality_in
from flows.runs.records import RoundRecord, Signed, head_before
from flows.runs.run import Run
from flows.verification.signatures import (
    coordinators_statement,
    has_stayed,
    known_keys,
    recorded_statement,
    signed_by,
)
from models.files import sha256_of
from privacy.signing import BadSignature
from privacy.statements import Comparison, ModelManifest, RejectedRelease, Scores
from sites.exchange.places import Place


def score_faults(run: Run, records: Sequence[RoundRecord], record: RoundRecord) -> Iterator[str]:
    """Yield faults in a round's scores and in their means."""
    for site, signed in sorted(record.scores.items()):
        yield from _score_faults(run, records, record, site, signed)
    try:
        due = quality_in(run, record.round, record.metrics)
    except (ValueError, LookupError) as error:
        yield f"The sum of the metrics of round {record.round}: {error}"
        return
    if not _is_close(due, record.quality):
        of = "the sum" if has_metrics_sum(run, record.round) else "the mean"
        yield f"The quality of round {record.round} is not {of} of its scores."
    recorded = {site for site, hospital in record.hospitals.items() if hospital.scores}
    for site in sorted(run.description.everybody.keys() - recorded):
        place = Place.statement(run.name, record.round, "evaluate", site)
        if run.exchange.signed_answer(place, known_keys(run, site, None)) is not None:
            yield f"The scores of {site} in round {record.round} are not recorded, nor is why."


def _score_faults(
    run: Run, records: Sequence[RoundRecord], record: RoundRecord, site: str, signed: Signed[Scores]
) -> Iterator[str]:
    where = f"The scores of {site} in round {record.round}"
    try:
        scores = recorded_statement(
            run, record.round, "evaluate", site, signed.public_key, signed.statement_sha256
        )
    except (BadSignature, RejectedRelease, LookupError) as error:
        yield f"{where}: {error}"
        return
    if not isinstance(scores, Scores) or scores.model_sha256 != record.model_sha256:
        yield f"{where} are of another model."
    elif scores != signed.statement:
        yield f"{where}: the record has other numbers than the hospital signed."
    elif scores.chain_head != head_before(records, record.round):
        yield f"{where} were signed upon another chain of records than this."


def comparison_faults(run: Run, before: RoundRecord, record: RoundRecord) -> Iterator[str]:
    """Yield faults in a round's comparison of released models."""
    if not run.study.is_compared(record.round):
        if record.comparisons:
            yield f"The record of round {record.round} has a comparison that the study does not make."
        return
    released = dict(_released(run, before, record))
    for site, sha256 in sorted(released.items()):
        yield from _released_faults(run, before, record, site, sha256)
    for site, signed in sorted(record.comparisons.items()):
        yield from _comparison_faults(run, record, site, signed, released)
    recorded = {site for site, hospital in record.hospitals.items() if hospital.comparison}
    for site in sorted(run.description.everybody.keys() - recorded):
        keys, place = (
            known_keys(run, site, None),
            Place.statement(run.name, record.round, "compare", site),
        )
        data = run.exchange.signed_answer(place, keys)
        statement = None if data is None else signed_by(data, site, keys)
        if isinstance(statement, Comparison) and statement.metrics:
            yield f"The comparison of {site} in round {record.round} is not recorded, nor is why."


def _released(run: Run, before: RoundRecord, record: RoundRecord) -> Iterator[tuple[str, str]]:
    """Yield the hospitals that let their released models be compared, each with its model's sha256."""
    for site, release in sorted(record.releases.items()):
        member = run.description.member(site, record.round)
        if release.statement.round == record.round and member.statement.cross_site:
            yield site, sha256_of(released_model(run, record.round, before, site))


def _released_faults(
    run: Run, before: RoundRecord, record: RoundRecord, site: str, sha256: str
) -> Iterator[str]:
    try:
        place = Place.released(run.name, record.round, site)
        manifest = ModelManifest.model_validate(coordinators_statement(run, place))
    except (BadSignature, ValidationError, LookupError) as error:
        if has_stayed(run, site):  # it may have left before models were compared
            yield f"The model that {site} has released in round {record.round}: {error}"
        return
    named = (manifest.run, manifest.round, manifest.study_sha256, manifest.of)
    facts = (*named, manifest.model_sha256, manifest.chain_head)
    if facts != (run.name, record.round, run.study.sha256, site, sha256, before.sha256):
        yield f"The statement on what {site} has released in round {record.round} is about another."


def _comparison_faults(
    run: Run,
    record: RoundRecord,
    site: str,
    signed: Signed[Comparison],
    released: Mapping[str, str],
) -> Iterator[str]:
    where = f"The comparison of {site} in round {record.round}"
    try:
        comparison = recorded_statement(
            run, record.round, "compare", site, signed.public_key, signed.statement_sha256
        )
    except (BadSignature, RejectedRelease, LookupError) as error:
        yield f"{where}: {error}"
        return
    if comparison != signed.statement:
        yield f"{where}: the record has other numbers than the hospital signed."
    elif any(released.get(of) != sha256 for of, sha256 in signed.statement.models.items()):
        yield f"{where} is of other models than the hospitals have released."


def _is_close(a: Mapping[str, float], b: Mapping[str, float]) -> bool:
    return a.keys() == b.keys() and all(math.isclose(a[name], b[name], abs_tol=1e-12) for name in a)
