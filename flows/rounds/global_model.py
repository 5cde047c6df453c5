"""Global models: made, signed, and published in the exchange; hospitals' released models beside them."""

from pathlib import Path

from flows.rounds.releases import change_of, decided
from flows.runs.records import RoundRecord
from flows.runs.run import Run
from models import checkpoints
from models import params as P
from models.params import Params
from privacy.signing import sign, verified
from privacy.statements import ModelManifest
from sites.exchange.exchange import COORDINATOR
from sites.exchange.places import Place


def publish_model(run: Run, round: int, params: Params, rate: float | None = None) -> str:
    """Store a global model and publish it with a signed statement; return its sha256.

    A model that was published before an interruption stays the round's model, whatever `params` are.

    Args:
        rate: the run's learning rate, where the study leaves it to the run.
    """
    if published := _published(run, round):
        return published
    path = run.model_path(round)
    checkpoints.write(path, params)
    return _publish(run, round, path, Place.model(run.name, round), rate=rate)


def _publish(
    run: Run, round: int, data: bytes | Path, place: Place, of: str = "", rate: float | None = None
) -> str:
    """Write a model to the exchange, then the signed statement that names it; return its sha256."""
    manifest = ModelManifest(
        kind="model",
        study=run.study.name,
        study_sha256=run.study.sha256,
        run=run.name,
        round=round,
        model_sha256=run.exchange.put_object(data, COORDINATOR),
        chain_head=run.head,
        of=of,
        rate=rate,
    )
    statement = sign(manifest.model_dump(mode="json"), "coordinator", run.key)
    run.exchange.put_statement(place, statement)
    return manifest.model_sha256


def _published(run: Run, round: int) -> str | None:
    data = run.exchange.statement(Place.model(run.name, round))
    if data is None:
        return None
    fields = verified(data, "coordinator", {"coordinator": run.public_key})
    manifest = ModelManifest.model_validate(fields)
    checkpoints.read(run.model_path(round), manifest.model_sha256)
    return manifest.model_sha256


def compared_hospitals(run: Run, round: int) -> list[str]:
    """Return the hospitals whose released models of a round are compared, at each of them."""
    members, accepted = run.description.participants, decided(run, round)
    taken = accepted.taken if accepted else {}
    in_time = {site for site, signed in taken.items() if signed.statement.round == round}
    return sorted(site for site in members.keys() & in_time if members[site].statement.cross_site)


def publish_released(run: Run, round: int, base: RoundRecord) -> None:
    """Publish, signed, the model that each hospital which allows it has released in a round."""
    for site in compared_hospitals(run, round):
        data = released_model(run, round, base, site)
        _publish(run, round, data, Place.released(run.name, round, site), of=site)


def released_model(run: Run, round: int, base: RoundRecord, site: str) -> bytes:
    """Return the model that a hospital has released: its round's base with its change alone."""
    params = run.model(base)
    change = change_of(run, round, site)
    shared = P.add(run.study.bound_strategy().shared(params), change)
    return checkpoints.to_bytes({**params, **shared})
