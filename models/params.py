"""A network's parameters as data: a mapping from name to tensor, and the arithmetic on it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

Params = Mapping[str, Tensor]

NORMS = (nn.GroupNorm, nn.LayerNorm, _BatchNorm, _InstanceNorm)
"""The classes of norm layers."""
LEAST_SIDE = 64
"""A side length, in voxels, that every network accepts which states no `sides` of its own."""


def of(network: nn.Module) -> dict[str, Tensor]:
    """Return a detached copy of every parameter of `network`, by name."""
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def load_into(network: nn.Module, params: Params) -> None:
    """Overwrite the parameters of `network` with `params`.

    Raises:
        ValueError: the names or a shape differ from the network's.
    """
    own = dict(network.named_parameters())
    check_like(params, own)
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(params[name])


def check_like(params: Params, template: Params) -> None:
    """Raise ValueError unless `params` has the names and shapes of `template`."""
    if missing := sorted(template.keys() - params.keys()):
        raise ValueError(f"Expected parameter {missing[0]!r}, and it is missing.")
    if unknown := sorted(params.keys() - template.keys()):
        raise ValueError(f"Got the unknown parameter {unknown[0]!r}.")
    for name in template:
        expected, found = shape_of(template, name), shape_of(params, name)
        if found != expected:
            raise ValueError(f"Expected {name!r} of shape {expected}, got {found}.")


def add(a: Params, b: Params) -> dict[str, Tensor]:
    """Return a + b, name by name."""
    return {name: a[name] + b[name] for name in a}


def subtract(a: Params, b: Params) -> dict[str, Tensor]:
    """Return a - b, name by name."""
    return {name: a[name] - b[name] for name in a}


def numel(params: Params) -> int:
    """Return the number of all values together."""
    return sum(prod(shape_of(params, name)) for name in params)


def norm(params: Params) -> float:
    """Return the L2 norm over all coordinates, in float64.

    >>> norm({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])})
    5.0
    """
    return float(sum(p.double().square().sum() for p in params.values()) ** 0.5)


def all_finite(params: Params) -> bool:
    """Return whether no coordinate is NaN or infinite."""
    return all(bool(p.isfinite().all()) for p in params.values())


def rows(params: Params, name: str, most: int) -> Iterator[slice]:
    """Yield slices of a tensor's first axis that together are all of it, each of at most `most` values.

    A single row may have more. A tensor without axes, or without values, is one slice.
    """
    shape = shape_of(params, name)
    if not shape or not shape[0]:
        yield slice(None)
        return
    each = max(1, most // max(1, prod(shape[1:])))
    for start in range(0, shape[0], each):
        yield slice(start, min(start + each, shape[0]))


def shape_of(params: Params, name: str) -> tuple[int, ...]:
    """Return a tensor's shape; of parameters in a file, without reading the tensor."""
    shapes: Mapping[str, tuple[int, ...]] | None = getattr(params, "shapes", None)
    return tuple(params[name].shape) if shapes is None else shapes[name]


def part(params: Params, name: str, rows: slice) -> Tensor:
    """Return rows of a tensor; of parameters in a file, no others are read."""
    read = getattr(params, "rows", None)
    if read is None or rows.start is None:
        return params[name][rows] if rows.start is not None else params[name]
    found: Tensor = read(name, rows.start, rows.stop)
    return found


AT_A_TIME = 2**20
"""Values of a tensor of one item that are in memory at a time, where many items are averaged."""


def weighted_mean(items: Iterable[tuple[float, Params]]) -> dict[str, Tensor]:
    """Return sum_k (w_k / W) x_k with W = sum_k w_k.

    Memory holds the result, and `AT_A_TIME` values of the sum and of one item. The sum runs in float64,
    in the order of `items`; each result has its first item's own dtype.

    Raises:
        ValueError: no items, or a weight that is not positive.

    >>> mean = weighted_mean([(1, {"w": torch.tensor([0.0])}), (3, {"w": torch.tensor([4.0])})])
    >>> mean["w"]
    tensor([3.])
    """
    listed = list(items)
    if not listed:
        raise ValueError("Expected at least one item to average, got none.")
    for weight, _ in listed:
        if not weight > 0:
            raise ValueError(f"Expected weights > 0, got {weight}.")
    whole = sum(weight for weight, _ in listed)
    return {name: _mean_of(listed, name, whole) for name in listed[0][1]}


def _mean_of(items: Sequence[tuple[float, Params]], name: str, whole: float) -> Tensor:
    first = items[0][1]
    mean = torch.empty(())
    for number, some in enumerate(rows(first, name, AT_A_TIME)):
        total, dtype = torch.empty(()), None
        for k, (weight, params) in enumerate(items):
            value = part(params, name, some)
            dtype = dtype or value.dtype
            term = value.double().mul_(weight) if value.dtype != torch.double else value * weight
            total = total.add_(term) if k else term
        if number == 0:
            mean = torch.empty(shape_of(first, name), dtype=dtype)
        if mean.dim():
            mean[some] = total.div_(whole)
        else:
            mean.copy_(total.div_(whole))
    return mean


def last_layers(network: nn.Module, count: int) -> frozenset[str]:
    """Return the names of the parameters of the last `count` layers that process an image.

    Raises:
        ValueError: the network has `count` layers or fewer.
    """
    acted: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, place=place: acted.append(place))
        for place, module in network.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    first = next(p for p in network.parameters() if p.dim() > 2)  # (out, in, *kernel)
    try:
        with torch.no_grad():
            sides = getattr(network, "sides", ()) or [LEAST_SIDE] * (first.dim() - 2)
            network(torch.zeros(1, first.shape[1], *sides))
    finally:
        for hook in hooks:
            hook.remove()
    if count >= len(acted):
        raise ValueError(f"Expected fewer layers than the network has ({len(acted)}), got {count}.")
    return frozenset(
        f"{place}.{name}"
        for place in acted[-count:]
        for name, _ in network.get_submodule(place).named_parameters(recurse=False)
    )
