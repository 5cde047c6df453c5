"""Aggregation that tolerates some faulty hospitals: sign-flipped, scaled, or random changes.

Every hospital has one vote here, for any declared number of patients: nobody can check that number.
Tensors are read in pieces of `AT_A_TIME` values over all hospitals, so memory holds neither K models nor
K copies of a large tensor. The rules assume that an honest majority sends similar changes; different
hospitals weaken that.
"""

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor

from models import params as P
from models.params import Params

Changes = Sequence[Params]
"""Each hospital's change to the global model, read lazily."""


class TooFewVotes(ValueError):
    """Fewer hospitals contributed than a rule needs for the number that may be faulty."""


def votes_to_trim(faulty: int) -> int:
    """Return the least number of hospitals that a trimmed mean needs."""
    return 2 * faulty + 1


def votes_for_krum(faulty: int) -> int:
    """Return the least number of hospitals that Krum's proof needs.

    (Blanchard et al. 2017, Krum, proposition 1, https://arxiv.org/abs/1703.02757.)
    """
    return 2 * faulty + 3


AT_A_TIME = 2**24
"""Values of all hospitals together that are in memory at a time."""


def _stacks(changes: Changes, name: str) -> Iterator[Tensor]:
    """Yield a tensor of all hospitals piece by piece, each `(K, rows, ...)`."""
    for some in P.rows(changes[0], name, AT_A_TIME // len(changes)):
        yield torch.stack([P.part(change, name, some) for change in changes])


def _by_tensor(changes: Changes, rule: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Return the result of a rule that treats each coordinate alone, `(K, ...) -> (...)`."""
    found = {}
    for name in changes[0]:
        parts = [rule(stack) for stack in _stacks(changes, name)]
        found[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
    return found


def median(changes: Changes) -> dict[str, Tensor]:
    """Return each coordinate's median, the mean of the middle two of an even number.

    (Yin et al. 2018, Byzantine-Robust Distributed Learning, definition 1,
    https://arxiv.org/abs/1803.01498.)
    """
    return _by_tensor(changes, lambda stack: stack.quantile(0.5, dim=0))


def trimmed_mean(changes: Changes, faulty: int) -> dict[str, Tensor]:
    """Return each coordinate's mean without its `faulty` largest and `faulty` smallest values.

    (Yin et al. 2018, Byzantine-Robust Distributed Learning, definition 2,
    https://arxiv.org/abs/1803.01498.)

    Raises:
        TooFewVotes: at most 2 `faulty` hospitals contributed.
    """
    _check_votes(len(changes), votes_to_trim(faulty), faulty)
    kept = slice(faulty, len(changes) - faulty)
    return _by_tensor(changes, lambda stack: stack.sort(dim=0).values[kept].mean(0))


def krum(changes: Changes, faulty: int, chosen: int = 1) -> dict[str, Tensor]:
    """Return the mean of the `chosen` changes that are closest to their K - faulty - 2 nearest others.

    One is Krum, several are multi-Krum (Blanchard et al. 2017, Krum, section 4,
    https://arxiv.org/abs/1703.02757).

    Raises:
        TooFewVotes: fewer than 2 `faulty` + 3 hospitals contributed.
    """
    count = len(changes)
    _check_votes(count, votes_for_krum(faulty), faulty)
    distances = _squared_distances(changes)
    others = distances + torch.diag(torch.full((count,), torch.inf, dtype=torch.double))
    scores = others.sort(dim=1).values[:, : count - faulty - 2].sum(1)
    best = scores.argsort(stable=True)[: min(chosen, count - faulty)].tolist()
    return _by_tensor([changes[k] for k in best], lambda stack: stack.mean(0))


def geometric_median(
    changes: Changes, iterations: int = 32, smoothing: float = 1e-6
) -> dict[str, Tensor]:
    """Return the point with the smallest sum of distances to the changes, by smoothed Weiszfeld steps.

    (Pillutla et al. 2022, RFA, algorithm 2, https://arxiv.org/abs/1912.13445.) The point stays in the
    span of the changes, so each step needs only their inner products, which are computed once.
    """
    gram = _inner_products(changes)
    scale = float(gram.diagonal().mean().clamp(min=1e-300)) ** 0.5
    weights = torch.full((len(changes),), 1 / len(changes), dtype=torch.double)
    for _ in range(iterations):
        across = gram @ weights
        squared = gram.diagonal() - 2 * across + weights @ across
        nearness = 1 / squared.clamp(min=0).sqrt().clamp(min=smoothing * scale)
        weights = nearness / nearness.sum()
    return _weighted(changes, weights.tolist())


def norm_bounded_mean(changes: Changes, factor: float) -> dict[str, Tensor]:
    """Return the mean of the changes, each scaled down to at most `factor` times their median norm.

    (Sun et al. 2019, Can You Really Backdoor Federated Learning?, section 4,
    https://arxiv.org/abs/1911.07963; here the bound comes from the round itself.)
    """
    norms = torch.tensor([P.norm(change) for change in changes], dtype=torch.double)
    bound = factor * norms.quantile(0.5)
    shrunk = (bound / norms.clamp(min=1e-300)).clamp(max=1.0) / len(changes)
    return _weighted(changes, shrunk.tolist())


def _weighted(changes: Changes, weights: Collection[float]) -> dict[str, Tensor]:
    factors = torch.tensor(list(weights), dtype=torch.double)
    return _by_tensor(
        changes, lambda stack: torch.einsum("k,k...->...", factors, stack.double()).to(stack.dtype)
    )


def _inner_products(changes: Changes) -> Tensor:
    """Return the changes' inner products over all coordinates, `(K, K)`."""
    gram = torch.zeros(len(changes), len(changes), dtype=torch.double)
    for name in changes[0]:
        for stack in _stacks(changes, name):
            flat = stack.flatten(1).double()
            gram += flat @ flat.T
    return gram


def _squared_distances(changes: Changes) -> Tensor:
    gram = _inner_products(changes)
    norms = gram.diagonal()
    return (norms[:, None] + norms[None, :] - 2 * gram).clamp(min=0)


def _check_votes(count: int, least: int, faulty: int) -> None:
    if count < least:
        raise TooFewVotes(
            f"Expected at least {least} hospitals where {faulty} may be faulty, got {count}."
        )
