"""Models at a hospital: global models that the coordinator signed, and parameters that never leave.

A global model is used only if the coordinator signed it for this run and round.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from models import checkpoints
from models import params as P
from models.checkpoints import StoredParams
from models.errors import CorruptCheckpoint
from models.networks.choice import NetworkConfig
from models.params import Params
from privacy.signing import BadSignature, verified
from privacy.statements import ModelManifest
from sites.exchange.exchange import COORDINATOR, Exchange
from sites.exchange.places import Place
from sites.hospital import Hospital
from sites.orders import Order
from sites.policy.policy import Refused
from sites.study import Study

MODEL_BYTES = 2**34
"""Size of the largest global model that a hospital fetches."""

CPU = torch.device("cpu")


@dataclass(frozen=True)
class GlobalModel:
    """A global model as the coordinator signed it."""

    sha256: str
    params: Params
    chain_head: str
    rate: float | None = None


def global_model(hospital: Hospital, order: Order) -> GlobalModel:
    """Return the global model for an order.

    For `contribute` it is the model after the previous round, otherwise the model of the order's round.

    Raises:
        Refused: the exchange holds no such model, or it is not signed, or not finite, or does not fit.
    """
    round = order.round - 1 if order.phase == "contribute" else order.round
    place, path = Place.model(order.run, round), hospital.stored("global", order.run, round)
    return _model_at(place, path, order, round, "")


def released_model(hospital: Hospital, order: Order, site: str) -> GlobalModel:
    """Return the model that a hospital released in the order's round; raises as `global_model` does."""
    place, path = Place.released(order.run, order.round, site), hospital.state / "compared" / site
    return _model_at(place, path, order, order.round, site)


def _model_at(place: Place, path: Path, order: Order, round: int, of: str) -> GlobalModel:
    """Fetch the model that the statement at `place` names into `path`, check it and return it."""
    exchange = Exchange(order.exchange)
    data = exchange.statement(place)
    if data is None:
        raise Refused(f"the exchange holds no global model of round {round}")
    try:
        fields = verified(data, "coordinator", {"coordinator": order.coordinator})
        manifest = ModelManifest.model_validate(fields)
        named = (manifest.study_sha256, manifest.run, manifest.round, manifest.of)
        if named != (order.study.sha256, order.run, round, of):
            raise Refused("the global model's statement names another study, run, round or hospital")
        if (manifest.rate is None) == (order.study.training.lr == "auto") and not of:
            raise Refused(
                "expected a learning rate with the global model exactly where the study has auto"
            )
        exchange.fetch_object(manifest.model_sha256, COORDINATOR, path, MODEL_BYTES)
        params = checkpoints.read(path, manifest.model_sha256)
        P.check_like(params, P.of(network_for(order.study.network, order.study, CPU, None)))
        if not P.all_finite(params):
            raise CorruptCheckpoint("a value is NaN or infinite")
        return GlobalModel(manifest.model_sha256, params, manifest.chain_head, manifest.rate)
    except (BadSignature, ValueError, FileNotFoundError) as error:
        raise Refused(f"the global model of round {round} can't be trusted: {error}") from error


def stored_params(
    hospital: Hospital, kind: str, order: Order, round: int, *, exactly: bool = False
) -> StoredParams | None:
    """Return the newest stored parameters of a kind up to `round`; with `exactly`, only of that round.

    Parameters count only if the ledger has settled their round: files of interrupted attempts, and files
    whose charge a restored ledger has lost, are ignored.
    """
    for number in range(round, round - 1 if exactly else 0, -1):
        path = hospital.stored(kind, order.run, number)
        if path.exists() and hospital.ledger.has_ended(order.run, number, "contribute"):
            return StoredParams(path)
    return None


def fits(params: Params, config: NetworkConfig, study: Study) -> bool:
    """Return whether parameters fit a network; a hospital may have changed its own network."""
    try:
        P.check_like(params, P.of(network_for(config, study, CPU, None)))
    except ValueError:
        return False
    return True


def network_for(
    config: NetworkConfig, study: Study, device: torch.device, params: Params | None
) -> nn.Module:
    """Return a network with these parameters; with None, initialised from the study's seed."""
    with torch.random.fork_rng():
        torch.manual_seed(study.seed_for(0, "", f"first {config.name}"))
        network = study.built(config)
    if params is not None:
        P.load_into(network, params)
    return network.to(device)


def numel_of(study: Study) -> int:
    """Return the number of parameters of a study's network."""
    return P.numel(P.of(study.built()))


def with_local_layers(hospital: Hospital, order: Order, params: Params, round: int) -> Params:
    """Return `params` with this hospital's local layers from the newest round up to `round`."""
    return {**params, **(stored_params(hospital, "local", order, round) or {})}
