"""What the coordinator asks of a hospital, and the models that an answer begins with.

An order holds public values only; a global model is used if the coordinator signed it for this run.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from models import checkpoints
from models import params as P
from models.checkpoints import CorruptCheckpoint, StoredParams
from models.config import Config
from models.networks import NetworkConfig
from models.objectives import Name
from models.params import Params
from privacy.ledger import Charge
from privacy.release import ModelManifest
from privacy.signing import BadSignature, verified
from sites.exchange.exchange import COORDINATOR, Exchange, model_place, released_place, statement_place
from sites.hospital import Hospital
from sites.policy.policy import Refused
from sites.study import Study

Phase = Literal["check", "survey", "join", "contribute", "evaluate", "compare"]
RunName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,99}$")]
MODEL_BYTES = 2**34
PROTOCOL = 1
"""What orders and statements look like. Raised whenever a hospital and a coordinator of different code
could misunderstand each other; then neither does anything until the older one is upgraded."""
CPU = torch.device("cpu")


def refusal_of(phase: Phase, attempt: int) -> str:
    """Return the name under which a refusal of a phase is recorded and laid down.

    >>> refusal_of("contribute", 2)
    'contribute-refused-2'
    """
    return f"{phase}-refused-{attempt}"


class Order(Config):
    """What the coordinator asks of a hospital: public values only.

    Attributes:
        site: the hospital that is asked.
        attempt: counts the coordinator's starts of this run. A refusal holds for its attempt, so
            that a hospital which was put right can take part when the run goes on.
        exchange: where to read the global model and to lay down the answer.
        coordinator: the coordinator's public key, which the hospital's policy names or which it pins on
            first contact.
        protocol: in which the coordinator speaks.
        models: of which hospitals the released models are to be compared.
        expires_ms: when the answer is too late to count, in milliseconds since 1970; None where whoever
            asks waits for it.
    """

    phase: Phase
    study: Study
    site: Name
    run: RunName
    round: Annotated[int, Field(ge=0)]
    attempt: Annotated[int, Field(ge=1)]
    exchange: str
    coordinator: str
    protocol: int = PROTOCOL
    models: tuple[Name, ...] = ()
    expires_ms: int | None = None


class Expired(Exception):
    """The order's answer would be too late to count, so nothing is begun and nothing spent for it."""


def check_in_time(order: Order) -> None:
    """Raise `Expired` once an order's answer would be too late."""
    if order.expires_ms is not None and time.time() * 1000 >= order.expires_ms:
        raise Expired("the order has expired")


def is_answered(exchange: Exchange, order: Order) -> bool:
    """Return whether the answer to an order lies in the exchange, or its hospital's refusal."""
    acts = (order.phase, refusal_of(order.phase, order.attempt))
    places = (statement_place(order.run, order.round, act, order.site) for act in acts)
    return any(exchange.statement(place) is not None for place in places)


@dataclass(frozen=True)
class GlobalModel:
    """A global model as the coordinator signed it."""

    sha256: str
    params: Params
    chain_head: str


def global_model(hospital: Hospital, order: Order) -> GlobalModel:
    """Return the model to start from: the one after the round before, or the one to evaluate."""
    round = order.round - 1 if order.phase == "contribute" else order.round
    place, path = model_place(order.run, round), hospital.stored("global", order.run, round)
    return _model_at(place, path, order, round, "")


def released_model(hospital: Hospital, order: Order, site: str) -> GlobalModel:
    """Return the model that a hospital has released in a round, as the coordinator signed it."""
    place, path = released_place(order.run, order.round, site), hospital.state / "compared" / site
    return _model_at(place, path, order, order.round, site)


def _model_at(place: str, path: Path, order: Order, round: int, of: str) -> GlobalModel:
    exchange = Exchange(order.exchange)
    data = exchange.statement(place)
    if data is None:
        raise Refused(f"the exchange holds no global model of round {round}")
    try:
        fields = verified(data, "coordinator", {"coordinator": order.coordinator})
        manifest = ModelManifest.model_validate(fields)
        named = (manifest.study_sha256, manifest.run, manifest.round, manifest.of)
        if named != (order.study.sha256, order.run, round, of):
            raise Refused("the global model's statement is of another study, run or round")
        exchange.fetch_object(manifest.model_sha256, COORDINATOR, path, MODEL_BYTES)
        params = checkpoints.read(path, manifest.model_sha256)
        P.check_like(params, P.of(network_for(order.study.network, order.study, CPU, None)))
        if not P.all_finite(params):
            raise CorruptCheckpoint("a value is NaN or infinite")
        return GlobalModel(manifest.model_sha256, params, manifest.chain_head)
    except (BadSignature, ValueError, FileNotFoundError) as error:
        raise Refused(f"the global model of round {round} can't be trusted: {error}") from error


def left_by(
    hospital: Hospital, kind: str, order: Order, round: int, *, exactly: bool = False
) -> StoredParams | None:
    """Return what the newest round up to `round` left in the hospital; with `exactly`, that round alone.

    Only what an act has left counts that has ended here: a try that was interrupted has no output, so
    nothing may follow from it, and a file without a charge is one that a restored ledger has forgotten.
    """
    for number in range(round, round - 1 if exactly else 0, -1):
        path = hospital.stored(kind, order.run, number)
        act = Charge(order.study.name, order.run, number, "contribute", event=None)
        if path.exists() and hospital.ledger.file_of(act) is not None:
            return StoredParams(path)
    return None


def fits(params: Params, config: NetworkConfig, study: Study) -> bool:
    """Return whether parameters are those of a network, which a hospital may have changed since."""
    try:
        P.check_like(params, P.of(network_for(config, study, CPU, None)))
    except ValueError:
        return False
    return True


def network_for(
    config: NetworkConfig, study: Study, device: torch.device, params: Params | None
) -> nn.Module:
    """Return a network with these parameters, or with first ones drawn from the study's seed."""
    with torch.random.fork_rng():
        torch.manual_seed(study.seed_for(0, "", f"first {config.name}"))
        network = config.build(study.task.dims, study.task.out_channels)
    if params is not None:
        P.load_into(network, params)
    return network.to(device)


def with_local_layers(hospital: Hospital, order: Order, params: Params, round: int) -> Params:
    """Return `params` with the layers that this hospital keeps to itself, as a round left them."""
    return {**params, **(left_by(hospital, "local", order, round) or {})}
