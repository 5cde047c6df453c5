"""Parameters that a module adds to every scan's activations itself, such as position embeddings.

They belong to no layer with a rule. While gradients are recorded, each scan gets a copy of its own, and
the gradient of that copy is the scan's.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from monai.networks.blocks import PatchEmbeddingBlock
from monai.networks.nets import ViT
from torch import Tensor, nn

ADDED: Mapping[type[nn.Module], tuple[str, ...]] = {
    PatchEmbeddingBlock: ("position_embeddings",),
    ViT: ("cls_token",),
}
"""Modules of MONAI 1.6 that use parameters `(1, ...)` once in a forward pass, broadcast over scans."""


def added_by(layer: nn.Module) -> tuple[str, ...]:
    """Return the names of a module's own parameters that it adds to every scan; empty for others."""
    own = dict(layer.named_parameters(recurse=False))
    names = next((names for kind, names in ADDED.items() if isinstance(layer, kind)), ())
    exact = set(own) <= set(names) and all(parameter.shape[0] == 1 for parameter in own.values())
    return tuple(own) if exact else ()


@contextmanager
def copied(
    layer: nn.Module, anchor: Tensor, scans: int, keep: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Give each scan a copy of a module's added parameters.

    Args:
        anchor: a tensor that requires grad, so that the copies do.
        keep: is called in the backward pass with a parameter's name and gradients `(N, *shape)`.
    """
    names = added_by(layer)
    try:
        for name in names:
            own = layer.get_parameter(name)

            def kept(g: Tensor, name: str = name) -> None:
                keep(name, g[:, None])

            copies = _Copied.apply(anchor, own, scans, kept)  # type: ignore[no-untyped-call]
            layer.__dict__[name] = copies  # found before the parameter
        yield
    finally:
        for name in names:
            layer.__dict__.pop(name, None)


class _Copied(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, _anchor: Tensor, parameter: Tensor, scans: int, keep: Callable[[Tensor], None]
    ) -> Tensor:  # fmt: skip
        ctx.keep = keep
        return parameter.detach().expand(scans, *parameter.shape[1:]).clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, None, None, None]:
        ctx.keep(g)
        return None, None, None, None
