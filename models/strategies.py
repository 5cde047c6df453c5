"""Strategies, which make the next global model from the hospitals' contributions: a table of functions.

A new strategy is one function that returns a `Strategy`, and one line in `STRATEGIES`; its arguments
are the keys that a study may set.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import Field, validate_call

from models.lazy import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from models import params as P
    from models import robust
    from models.params import Params
else:
    torch, P, robust = lazy("torch"), lazy("models.params"), lazy("models.robust")

State = Mapping[str, "Tensor"]


class Contribution(NamedTuple):
    """The contribution of one hospital to a round.

    Attributes:
        weight: its public weight, the declared number of patients.
        change: the change to the global model.
        length: the distance that its steps would have moved a parameter along a constant gradient; only
            the ratios between hospitals matter.
    """

    weight: float
    change: Params
    length: float = 1.0


Contributions = Collection[Contribution]
"""All contributions of a round; a change is read lazily, and more than once."""
LocalLoss = Callable[["Params", "Params"], "Tensor"]


@dataclass(frozen=True)
class Strategy:
    """The hospitals' part beside training, and the coordinator's rule for their releases.

    Attributes:
        init: the coordinator's state for given first parameters, as named tensors.
        apply: `(params, state, contributions) -> (params, state)`, pure.
        local_loss: `(own, global) -> ()`, added to the loss of each local step. It never sees a
            patient, so its gradient is added after the noise and costs no privacy.
        personal_loss: the same for a personal model that each hospital trains beside the shared one
            and never sends; None if there is none.
        pull: the curvature of either loss.
        is_local: `(name) -> bool`, True for a parameter that stays at its hospital.
        local_of: `(network) -> names` of the parameters that stay, if they depend on the network.
        corrects: True if hospitals correct their steps by control variates (`variate_after`).
        counts_steps: True if a change is expected to grow with its hospital's steps.
        fewest: the least number of hospitals with which a round has a result.
        momentum: momentum of the mean change from round to round.
        needs_each: True if the rule looks at each hospital's change, and not only at their mean.
        weighs: True if hospitals count by their declared patients; else each has one vote.
    """

    apply: Callable[[Params, State, Contributions], tuple[dict[str, Tensor], State]]
    init: Callable[[Params], State] = lambda params: {}
    local_loss: LocalLoss | None = None
    personal_loss: LocalLoss | None = None
    pull: float = 0.0
    is_local: Callable[[str], bool] = lambda name: False
    local_of: Callable[[nn.Module], frozenset[str]] | None = None
    weighs: bool = True
    fewest: int = 1
    corrects: bool = False
    momentum: float = 0.0
    needs_each: bool = False
    counts_steps: bool = False

    def bound_to(self, network: nn.Module) -> Strategy:
        """Return the strategy for this network: `is_local` knows its parameters.

        Raises:
            ValueError: no parameter of this network would be local, or all of them.
        """
        if self.local_of is None:
            return self
        local = self.local_of(network)
        if not local or local == {name for name, _ in network.named_parameters()}:
            raise ValueError("expected a network of which some layers stay local and others do not")
        return replace(self, is_local=local.__contains__, local_of=None)

    def shared(self, params: Params) -> dict[str, Tensor]:
        """Return the parameters that hospitals share."""
        return {name: params[name] for name in params if not self.is_local(name)}

    def next_params(
        self, params: Params, state: State, contributions: Contributions
    ) -> tuple[dict[str, Tensor], State]:
        """Return all parameters after a round: the shared ones changed, the local ones unchanged."""
        moved, state = self.apply(self.shared(params), state, contributions)
        return {**params, **moved}, state


def _average(
    params: Params, state: State, contributions: Contributions
) -> tuple[dict[str, Tensor], State]:
    return P.add(params, _mean(contributions)), state


def _mean(contributions: Contributions) -> dict[str, Tensor]:
    return P.weighted_mean((each.weight, each.change) for each in contributions)


def fed_avg() -> Strategy:
    """FedAvg: w <- w + sum_k (n_k / n) delta_k.

    (McMahan et al. 2017, algorithm 1, https://arxiv.org/abs/1602.05629.)
    """
    return Strategy(apply=_average)


@validate_call
def fed_prox(mu: Annotated[float, Field(gt=0)] = 0.01) -> Strategy:
    """FedProx: FedAvg whose local loss gains mu/2 |w - w_global|^2.

    (Li et al. 2020, equation 2, https://arxiv.org/abs/1812.06127.)
    """
    return Strategy(apply=_average, local_loss=_proximal(mu), pull=mu)


@validate_call
def ditto(strength: Annotated[float, Field(gt=0)] = 0.1) -> Strategy:
    """Ditto: FedAvg, and beside it personal models near the global one.

    A personal model minimises its hospital's loss plus strength/2 |v - w_global|^2. The shared model
    does not depend on it, and it never leaves its hospital.
    (Li et al. 2021, algorithm 1, https://arxiv.org/abs/2012.04221.)
    """
    return Strategy(apply=_average, personal_loss=_proximal(strength), pull=strength)


def _proximal(mu: float) -> LocalLoss:
    def loss(own: Params, start: Params) -> Tensor:
        return mu / 2 * torch.stack([(own[n] - start[n]).square().sum() for n in own]).sum()

    return loss


def fed_nova() -> Strategy:
    """FedNova: w <- w + (sum_k p_k l_k) sum_k p_k delta_k / l_k, where p_k = n_k / n.

    (Wang et al. 2020, equation 8, https://arxiv.org/abs/2007.07481; l_k is its |a_k|_1.) A hospital that
    takes fewer steps has as much influence as the others.
    """

    def apply(
        params: Params, state: State, contributions: Contributions
    ) -> tuple[dict[str, Tensor], State]:
        whole = sum(each.weight for each in contributions)
        effective = sum(each.weight * each.length for each in contributions) / whole
        # n_k / l_k as weights give the mean times sum n_k / l_k
        direction = P.weighted_mean((each.weight / each.length, each.change) for each in contributions)
        factor = effective * sum(each.weight / each.length for each in contributions) / whole
        return {name: params[name] + factor * direction[name] for name in params}, state

    return Strategy(apply=apply, counts_steps=True, needs_each=True)


@validate_call
def fed_avg_m(
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9, lr: Annotated[float, Field(gt=0)] = 1.0
) -> Strategy:
    """FedAvgM: v <- beta v + mean delta; w <- w + lr v.

    (Hsu et al. 2019, section 4.3, https://arxiv.org/abs/1909.06335.)
    """

    def init(params: Params) -> State:
        return {name: torch.zeros_like(params[name]) for name in params}

    def apply(
        params: Params, state: State, contributions: Contributions
    ) -> tuple[dict[str, Tensor], State]:
        mean = _mean(contributions)
        velocity = {name: momentum * state[name] + mean[name] for name in params}
        return {name: params[name] + lr * velocity[name] for name in params}, velocity

    return Strategy(apply=apply, init=init, momentum=momentum)


def _norm_parameters(network: nn.Module) -> frozenset[str]:
    kinds = P.NORMS
    return frozenset(
        f"{place}.{name}"
        for place, module in network.named_modules()
        if isinstance(module, kinds)
        for name, _ in module.named_parameters(recurse=False)
    )


def fed_bn() -> Strategy:
    """FedBN: FedAvg of all but the norm layers, which stay at their hospital.

    Under privacy they train in the same step, under the same clip norm and noise as the shared layers
    (Li et al. 2021, algorithm 1, https://arxiv.org/abs/2102.07623).
    """
    return Strategy(apply=_average, local_of=_norm_parameters)


@validate_call
def fed_per(layers: Annotated[int, Field(ge=1, le=20)] = 1) -> Strategy:
    """FedPer: FedAvg of all but the last layers, which stay at their hospital.

    A norm or an activation counts as a layer too if it has parameters.
    Under privacy the last layers train in the same step, under the same clip norm and noise as the rest.
    (Arivazhagan et al. 2019, section 3, https://arxiv.org/abs/1912.00818.)
    """
    return Strategy(apply=_average, local_of=lambda network: P.last_layers(network, layers))


def scaffold() -> Strategy:
    """SCAFFOLD with option II: each local step gains c - c_k.

    A hospital's variate c_k follows from its releases, the common one c from two global models, so
    neither costs privacy or has to be sent. c equals the algorithm's in rounds to which all hospitals
    contribute with the same weight; else it weighs hospitals as the average does.
    (Karimireddy et al. 2020, algorithm 1, https://arxiv.org/abs/1910.06378.)
    """
    return Strategy(apply=_average, corrects=True, needs_each=True)


def variate_after(change: Params, length: float, before: Params | None = None) -> dict[str, Tensor]:
    """Return a control variate: the mean gradient that a change over a round stands for.

    c+ = before - change / length (Karimireddy et al. 2020, SCAFFOLD, algorithm 1, option II,
    https://arxiv.org/abs/1910.06378), where `before` is c_k - c for a hospital, None for the common one.

    Args:
        length: local steps times their rate, K eta; with momentum, see `TrainingConfig.length`.

    >>> import torch
    >>> variate_after({"w": torch.tensor([-2.0])}, length=0.5)
    {'w': tensor([4.])}
    """
    own = {name: -change[name] / length for name in change}
    return P.add(own, before) if before else own


Positive = Annotated[float, Field(gt=0)]
Below1 = Annotated[float, Field(ge=0, lt=1)]
SecondMoment = Callable[["Tensor", "Tensor"], "Tensor"]
"""`(second moment, squared mean change of a round) -> next second moment`."""


def _adaptive(second: SecondMoment, lr: float, beta1: float, tau: float) -> Strategy:
    """FedOpt: m <- b1 m + (1-b1) d; v <- second(v, d^2); w <- w + lr m / (sqrt(v) + tau).

    (Reddi et al. 2021, algorithm 2, https://arxiv.org/abs/2003.00295, with v starting at tau^2.)
    """

    def init(params: Params) -> State:
        first = {f"m.{name}": torch.zeros_like(params[name]) for name in params}
        return first | {f"v.{name}": torch.full_like(params[name], tau**2) for name in params}

    def apply(
        params: Params, state: State, contributions: Contributions
    ) -> tuple[dict[str, Tensor], State]:
        mean = _mean(contributions)
        m = {n: beta1 * state[f"m.{n}"] + (1 - beta1) * mean[n] for n in params}
        v = {n: second(state[f"v.{n}"], mean[n].square()) for n in params}
        moved = {n: params[n] + lr * m[n] / (v[n].sqrt() + tau) for n in params}
        after = {f"m.{n}": m[n] for n in params} | {f"v.{n}": v[n] for n in params}
        return moved, after

    return Strategy(apply=apply, init=init)


@validate_call
def fed_adam(
    lr: Positive = 0.01, beta1: Below1 = 0.9, beta2: Below1 = 0.99, tau: Positive = 1e-3
) -> Strategy:
    """FedAdam: FedOpt (`_adaptive`) with v <- b2 v + (1-b2) d^2."""
    return _adaptive(lambda v, d2: beta2 * v + (1 - beta2) * d2, lr, beta1, tau)


@validate_call
def fed_yogi(
    lr: Positive = 0.01, beta1: Below1 = 0.9, beta2: Below1 = 0.99, tau: Positive = 1e-3
) -> Strategy:
    """FedYogi: FedOpt (`_adaptive`) with v <- v - (1-b2) d^2 sign(v - d^2)."""
    return _adaptive(lambda v, d2: v - (1 - beta2) * d2 * (v - d2).sign(), lr, beta1, tau)


@validate_call
def fed_adagrad(lr: Positive = 0.01, beta1: Below1 = 0.0, tau: Positive = 1e-3) -> Strategy:
    """FedAdagrad: FedOpt (`_adaptive`) with v <- v + d^2."""
    return _adaptive(lambda v, d2: v + d2, lr, beta1, tau)


def _robust(rule: Callable[[robust.Changes], dict[str, Tensor]], fewest: int = 1) -> Strategy:
    def apply(
        params: Params, state: State, contributions: Contributions
    ) -> tuple[dict[str, Tensor], State]:
        return P.add(params, rule([each.change for each in contributions])), state

    return Strategy(apply=apply, weighs=False, fewest=fewest, needs_each=True)


def coordinate_median() -> Strategy:
    """Move each coordinate by the median of the changes (source: `robust.median`)."""
    return _robust(robust.median)


Faulty = Annotated[int, Field(ge=1)]


@validate_call
def trimmed_mean(faulty: Faulty = 1) -> Strategy:
    """Move each coordinate by the mean without the extreme changes (source: `robust.trimmed_mean`)."""
    return _robust(
        lambda changes: robust.trimmed_mean(changes, faulty), fewest=robust.votes_to_trim(faulty)
    )


@validate_call
def krum(faulty: Faulty = 1, chosen: Annotated[int, Field(ge=1)] = 1) -> Strategy:
    """Krum, and multi-Krum if several are `chosen` (source: `robust.krum`)."""
    return _robust(
        lambda changes: robust.krum(changes, faulty, chosen), fewest=robust.votes_for_krum(faulty)
    )


def geometric_median() -> Strategy:
    """RFA: the model moves by the changes' geometric median (source: `robust.geometric_median`)."""
    return _robust(robust.geometric_median)


@validate_call
def norm_bounding(factor: Positive = 1.0) -> Strategy:
    """Norm bounding: the mean after long changes are shortened (source: `robust.norm_bounded_mean`)."""
    return _robust(lambda changes: robust.norm_bounded_mean(changes, factor))


STRATEGIES: Mapping[str, Callable[..., Strategy]] = {
    "fed_avg": fed_avg,
    "fed_prox": fed_prox,
    "fed_nova": fed_nova,
    "fed_bn": fed_bn,
    "fed_per": fed_per,
    "ditto": ditto,
    "scaffold": scaffold,
    "fed_avg_m": fed_avg_m,
    "fed_adam": fed_adam,
    "fed_yogi": fed_yogi,
    "fed_adagrad": fed_adagrad,
    "coordinate_median": coordinate_median,
    "trimmed_mean": trimmed_mean,
    "krum": krum,
    "geometric_median": geometric_median,
    "norm_bounding": norm_bounding,
}
