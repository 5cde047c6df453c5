"""Strategies: how hospitals' contributions become the next global model. A table of functions.

Adding one is one function that returns a `Strategy`, and one line in `STRATEGIES`; its arguments
are the keys that a study may set.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, model_validator, validate_call
from torch import Tensor

from models import params as P
from models.config import Config
from models.params import Params

State = Mapping[str, Tensor]
Contributions = Collection[tuple[float, Params]]
"""Each hospital's public weight and its change of the global model, read lazily, again and again."""


@dataclass(frozen=True)
class Strategy:
    """What hospitals do beside training, and what the coordinator does with their releases.

    Attributes:
        init: the coordinator's state for given first parameters, as named tensors.
        apply: `(params, state, contributions) -> (params, state)`, pure.
        local_loss: `(own, global) -> ()`, added to the loss of each local step. It never sees a
            patient, so its gradient is added after the noise and costs no privacy.
        is_local: whether the parameter of this name stays at its hospital.
    """

    apply: Callable[[Params, State, Contributions], tuple[dict[str, Tensor], State]]
    init: Callable[[Params], State] = lambda params: {}
    local_loss: Callable[[Params, Params], Tensor] | None = None
    is_local: Callable[[str], bool] = lambda name: False

    def shared(self, params: Params) -> dict[str, Tensor]:
        """Return the parameters that hospitals share."""
        return {name: params[name] for name in params if not self.is_local(name)}

    def next_params(
        self, params: Params, state: State, contributions: Contributions
    ) -> tuple[dict[str, Tensor], State]:
        """Return all parameters after a round: the shared ones moved, the local ones as they were."""
        moved, state = self.apply(self.shared(params), state, contributions)
        return {**params, **moved}, state


def _average(
    params: Params, state: State, contributions: Contributions
) -> tuple[dict[str, Tensor], State]:
    return P.add(params, P.weighted_mean(contributions)), state


def fed_avg() -> Strategy:
    """FedAvg: w <- w + sum_k (n_k / n) delta_k (McMahan et al. 2017, algorithm 1)."""
    return Strategy(apply=_average)


@validate_call
def fed_prox(mu: Annotated[float, Field(gt=0)] = 0.01) -> Strategy:
    """FedProx: FedAvg whose local loss gains mu/2 |w - w_global|^2 (Li et al. 2020, eq. 2)."""

    def proximal(own: Params, start: Params) -> Tensor:
        return mu / 2 * torch.stack([(own[n] - start[n]).square().sum() for n in own]).sum()

    return Strategy(apply=_average, local_loss=proximal)


@validate_call
def fed_avg_m(
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9, lr: Annotated[float, Field(gt=0)] = 1.0
) -> Strategy:
    """FedAvgM: v <- beta v + mean delta; w <- w + lr v (Hsu et al. 2019, section 4.3)."""

    def init(params: Params) -> State:
        return {name: torch.zeros_like(params[name]) for name in params}

    def apply(
        params: Params, state: State, contributions: Contributions
    ) -> tuple[dict[str, Tensor], State]:
        mean = P.weighted_mean(contributions)
        velocity = {name: momentum * state[name] + mean[name] for name in params}
        return {name: params[name] + lr * velocity[name] for name in params}, velocity

    return Strategy(apply=apply, init=init)


STRATEGIES: Mapping[str, Callable[..., Strategy]] = {
    "fed_avg": fed_avg,
    "fed_prox": fed_prox,
    "fed_avg_m": fed_avg_m,
}


class StrategyConfig(Config):
    """A strategy by name, with that strategy's own arguments beside it."""

    model_config = ConfigDict(extra="allow")

    name: str

    @model_validator(mode="after")
    def _buildable(self) -> "StrategyConfig":
        if self.name not in STRATEGIES:
            raise ValueError(f"expected a name among {sorted(STRATEGIES)}, got {self.name!r}")
        known = inspect.signature(STRATEGIES[self.name]).parameters
        if unknown := sorted(self._arguments.keys() - known.keys()):
            raise ValueError(f"unknown key {unknown[0]!r}; {self.name} takes {sorted(known) or 'none'}")
        self.build()
        return self

    @property
    def _arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    def build(self) -> Strategy:
        """Return the strategy."""
        return STRATEGIES[self.name](**self._arguments)
