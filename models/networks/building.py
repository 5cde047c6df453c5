"""The building of networks from MONAI's classes, apart from the choice of one, which needs no torch."""

from collections.abc import Mapping
from typing import Any

from monai.networks import nets
from torch import Tensor, nn


def of_monai(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Return a network of one of MONAI's classes."""
    network: nn.Module = getattr(nets, name)(**arguments)
    return network


def with_group_norm(network: nn.Module, arguments: Mapping[str, Any]) -> nn.Module:
    """Return a network in which Opacus' fixer has replaced batch norm with group norm."""
    from opacus.validators import ModuleValidator  # noqa: PLC0415  # takes long to import

    fixed: nn.Module = ModuleValidator.fix(network, **arguments)
    return fixed


def without_chance(network: nn.Module) -> nn.Module:
    """Return an EfficientNet that drops no layer at random and keeps no memory of its activations."""
    layers: list[Any] = list(network.modules())
    layers[0].set_swish(memory_efficient=False)
    for layer in layers:
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
        elif hasattr(layer, "drop_connect_rate"):
            layer.drop_connect_rate = 0.0
    return network


class _ViT(nets.ViT):  # type: ignore[misc]  # MONAI is not typed
    """MONAI's ViT, whose answer is the logits alone and not all hidden states beside them."""

    sides: tuple[int, ...] = ()
    """The only sides of an image that it takes."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = super().forward(x)[0]
        return logits


def vision_transformer(arguments: Mapping[str, Any], sides: tuple[int, ...]) -> nn.Module:
    """Return MONAI's ViT for images of these sides."""
    network = _ViT(**arguments)
    network.sides = sides
    for block in network.blocks:  # MONAI 1.6 makes a norm for cross attention that nothing uses
        block.norm_cross_attn = nn.Identity()
    return network
