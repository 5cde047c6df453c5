"""Checks of global models: each is re-computed from the releases of its round."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from pydantic import ValidationError

from flows.rounds.aggregation import next_model
from flows.rounds.statements import Answers
from flows.runs.records import RoundRecord, Signed, head_before
from flows.runs.run import Run
from flows.starts.first_model import start_of
from flows.verification.signatures import coordinators_statement, recorded_statement
from models import checkpoints
from models import params as P
from models.checkpoints import StoredParams
from models.errors import CorruptCheckpoint
from models.params import Params
from privacy.signing import BadSignature
from privacy.statements import ModelManifest, Statement
from sites.exchange.places import Place
from sites.yaml_files import ConfigError


def model_faults(run: Run, records: Sequence[RoundRecord]) -> Iterator[str]:
    """Yield where a model is not what its round's releases make of the one before."""
    for record in records:
        manifest = _manifest(run, record)
        if isinstance(manifest, str):
            yield manifest
            return
        if not _is_about(manifest, run, records, record):
            yield f"The statement of round {record.round}'s model is about another one."
    yield from _start_faults(run, records[0])
    state: Params | None = None
    for before, record in pairwise(records):
        try:
            params, stored = next_model(
                run, record.round, run.model(before), state, _answers(run, record)
            )
        except (CorruptCheckpoint, ValueError, OSError, LookupError) as error:
            yield f"Round {record.round} can't be re-computed: {error}"
            return
        if checkpoints.digest(params) != record.model_sha256:
            yield f"The releases of round {record.round} make another model than the record's."
            return
        yield from _state_faults(run.state_path(record.round), stored, record)
        state = {name: stored[name] for name in stored} or state


def _start_faults(run: Run, record: RoundRecord) -> Iterator[str]:
    """Yield where the first model is not what the study's start makes, or its learning rate another."""
    try:
        start = start_of(run)
    except ConfigError as error:
        yield f"The first model can't be re-computed: {error}"
        return
    if checkpoints.digest(start.params) != record.model_sha256:
        yield "The first model is not the one that the study's seed and start make."
    elif record.start != start.record:
        yield "The record of the start, or its learning rate, is not what the study makes of it."


def _manifest(run: Run, record: RoundRecord) -> ModelManifest | str:
    """Return the coordinator's statement about a round's model, or the fault if that can't be read."""
    try:
        place = Place.model(run.name, record.round)
        manifest = ModelManifest.model_validate(coordinators_statement(run, place))
        _ = run.model(record)
    except (BadSignature, ValidationError, LookupError) as error:
        return f"The model of round {record.round}: its statement: {error}"
    except (CorruptCheckpoint, OSError) as error:
        return f"The model of round {record.round}: {error}"
    return manifest


def _is_about(
    manifest: ModelManifest, run: Run, records: Sequence[RoundRecord], record: RoundRecord
) -> bool:
    named = (manifest.run, manifest.round, manifest.study_sha256, manifest.model_sha256)
    due = (run.name, record.round, run.study.sha256, record.model_sha256)
    stated = (named, manifest.chain_head, manifest.rate)
    return stated == (due, head_before(records, record.round), records[0].start_rate)


def _state_faults(path: Path, due: Params, record: RoundRecord) -> Iterator[str]:
    if due and (not path.exists() or not _is_same(StoredParams(path), due)):
        yield f"The strategy's state after round {record.round} is not what its releases make."


def _is_same(a: Params, b: Params) -> bool:
    try:
        return a.keys() == b.keys() and P.norm(P.subtract(a, b)) == 0
    except ValueError:
        return False


def _answers(run: Run, record: RoundRecord) -> Answers:
    """Return the releases of a round as the exchange has them; their signatures are checked before."""
    taken: dict[str, Signed[Statement]] = {}
    for site, release in record.releases.items():
        statement = recorded_statement(
            run, release.statement.round, release.statement.purpose, site, release.public_key,
            release.statement_sha256,
        )  # fmt: skip
        taken[site] = Signed[Statement](
            statement=statement,
            statement_sha256=release.statement_sha256,
            public_key=release.public_key,
        )
    return Answers(taken, {})
