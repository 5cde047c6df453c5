"""The MONAI networks a study may name, each with the arguments that it may set.

No network here has batch statistics (instance or group norm only): one patient's output never
depends on another patient, which per-patient clipping needs. Where MONAI has batch norm and no other
choice, Opacus' fixer puts group norm in its place.
"""

from typing import Annotated, ClassVar, Literal

import torch
from monai.networks.nets import (
    AttentionUnet,
    BasicUNet,
    DenseNet121,
    DynUNet,
    SegResNet,
    UNet,
    resnet10,
    resnet18,
)
from opacus.validators import ModuleValidator
from pydantic import Field, PositiveInt
from torch import nn

from models.config import Config

Kind = Literal["segmentation", "classification"]
LEAST_SIDE = 64
"""A side with which every network here can be tried."""
Channels = Annotated[int, Field(ge=1, le=1024)]


class UNetConfig(Config):
    """MONAI's residual UNet (Kerfoot et al. 2018), instance norm; each level halves the image."""

    kind: ClassVar[Kind] = "segmentation"

    name: Literal["UNet"]
    channels: Annotated[tuple[Channels, ...], Field(min_length=2, max_length=6)]
    num_res_units: Annotated[int, Field(ge=0, le=4)] = 0

    @property
    def divisor(self) -> int:
        """The number that each side of an image must be a multiple of."""
        return 1 << (len(self.channels) - 1)

    def build(self, dims: int, out_channels: int) -> nn.Module:
        """Return the network for images `(B, 1, *spatial)`."""
        network: nn.Module = UNet(
            spatial_dims=dims,
            in_channels=1,
            out_channels=out_channels,
            channels=self.channels,
            strides=(2,) * (len(self.channels) - 1),
            num_res_units=self.num_res_units,
        )
        return network


class SegResNetConfig(Config):
    """MONAI's SegResNet (Myronenko 2018), group norm; each level but the first halves the image."""

    kind: ClassVar[Kind] = "segmentation"

    name: Literal["SegResNet"]
    init_filters: Annotated[int, Field(ge=8, le=64, multiple_of=8)] = 8
    blocks_down: Annotated[tuple[PositiveInt, ...], Field(min_length=2, max_length=5)] = (1, 2, 2)

    @property
    def divisor(self) -> int:
        """The number that each side of an image must be a multiple of."""
        return 1 << (len(self.blocks_down) - 1)

    def build(self, dims: int, out_channels: int) -> nn.Module:
        """Return the network for images `(B, 1, *spatial)`."""
        network: nn.Module = SegResNet(
            spatial_dims=dims,
            in_channels=1,
            out_channels=out_channels,
            init_filters=self.init_filters,
            blocks_down=self.blocks_down,
            blocks_up=(1,) * (len(self.blocks_down) - 1),
        )
        return network


class BasicUNetConfig(Config):
    """MONAI's BasicUNet (Falk et al. 2019), instance norm; four levels, each halves the image.

    `features` are the channels of the five levels, and of the last layer before the output.
    """

    kind: ClassVar[Kind] = "segmentation"
    divisor: ClassVar[int] = 16

    name: Literal["BasicUNet"]
    features: Annotated[tuple[Channels, ...], Field(min_length=6, max_length=6)]

    def build(self, dims: int, out_channels: int) -> nn.Module:
        """Return the network for images `(B, 1, *spatial)`."""
        network: nn.Module = BasicUNet(
            spatial_dims=dims, in_channels=1, out_channels=out_channels, features=self.features
        )
        return network


class DynUNetConfig(Config):
    """MONAI's DynUNet, the network of nnU-Net (Isensee et al. 2021), instance norm, no deep supervision.

    Each level but the first halves the image.
    """

    kind: ClassVar[Kind] = "segmentation"

    name: Literal["DynUNet"]
    filters: Annotated[tuple[Channels, ...], Field(min_length=3, max_length=6)]
    res_block: bool = False

    @property
    def divisor(self) -> int:
        """The number that each side of an image must be a multiple of."""
        return 1 << (len(self.filters) - 1)

    def build(self, dims: int, out_channels: int) -> nn.Module:
        """Return the network for images `(B, 1, *spatial)`."""
        levels = len(self.filters)
        network: nn.Module = DynUNet(
            spatial_dims=dims,
            in_channels=1,
            out_channels=out_channels,
            kernel_size=[3] * levels,
            strides=[1] + [2] * (levels - 1),
            upsample_kernel_size=[2] * (levels - 1),
            filters=self.filters,
            res_block=self.res_block,
        )
        return network


class AttentionUnetConfig(Config):
    """MONAI's AttentionUnet (Oktay et al. 2018) with group norm for batch norm."""

    kind: ClassVar[Kind] = "segmentation"

    name: Literal["AttentionUnet"]
    channels: Annotated[tuple[Channels, ...], Field(min_length=2, max_length=6)]

    @property
    def divisor(self) -> int:
        """The number that each side of an image must be a multiple of."""
        return 1 << (len(self.channels) - 1)

    def build(self, dims: int, out_channels: int) -> nn.Module:
        """Return the network for images `(B, 1, *spatial)`."""
        network = AttentionUnet(
            spatial_dims=dims,
            in_channels=1,
            out_channels=out_channels,
            channels=self.channels,
            strides=(2,) * (len(self.channels) - 1),
        )
        fixed: nn.Module = ModuleValidator.fix(network)
        return fixed


class ResNetConfig(Config):
    """MONAI's resnet10 or resnet18 (He et al. 2016; Chen et al. 2019) with group norm for batch norm.

    `width` is that of the first of its four levels; each later one is twice as wide.
    """

    kind: ClassVar[Kind] = "classification"
    divisor: ClassVar[int] = 16

    name: Literal["resnet10", "resnet18"]
    width: Literal[8, 16, 32, 64] = 64

    def build(self, dims: int, out_channels: int) -> nn.Module:
        """Return the network for images `(B, 1, *spatial)`."""
        make = {"resnet10": resnet10, "resnet18": resnet18}[self.name]
        network = make(
            spatial_dims=dims,
            n_input_channels=1,
            num_classes=out_channels,
            widen_factor=self.width / 64,
        )
        fixed: nn.Module = ModuleValidator.fix(network, num_groups=8)
        return fixed


class DenseNet121Config(Config):
    """MONAI's DenseNet121 (Huang et al. 2017) with group norm for batch norm."""

    kind: ClassVar[Kind] = "classification"
    divisor: ClassVar[int] = 32

    name: Literal["DenseNet121"]
    init_features: Annotated[int, Field(ge=16, le=64, multiple_of=16)] = 64
    growth_rate: Annotated[int, Field(ge=8, le=32, multiple_of=8)] = 32

    def build(self, dims: int, out_channels: int) -> nn.Module:
        """Return the network for images `(B, 1, *spatial)`."""
        network: nn.Module = DenseNet121(
            spatial_dims=dims,
            in_channels=1,
            out_channels=out_channels,
            init_features=self.init_features,
            growth_rate=self.growth_rate,
            norm=("group", {"num_groups": 8}),
        )
        return network


def last_layers(network: nn.Module, count: int) -> frozenset[str]:
    """Return the names of the parameters of the last `count` layers to act on an image.

    Raises:
        ValueError: the network has no more layers than that.
    """
    acted: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, place=place: acted.append(place))
        for place, module in network.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    dims = next(p.dim() - 2 for p in network.parameters() if p.dim() > 2)
    try:
        with torch.no_grad():
            network(torch.zeros(1, 1, *[LEAST_SIDE] * dims))
    finally:
        for hook in hooks:
            hook.remove()
    if count >= len(acted):
        raise ValueError(f"Expected fewer than {len(acted)} layers, which the network has, got {count}.")
    return frozenset(
        f"{place}.{name}"
        for place in acted[-count:]
        for name, _ in network.get_submodule(place).named_parameters(recurse=False)
    )


NetworkConfig = Annotated[
    UNetConfig
    | BasicUNetConfig
    | SegResNetConfig
    | DynUNetConfig
    | AttentionUnetConfig
    | DenseNet121Config
    | ResNetConfig,
    Field(discriminator="name"),
]
NETWORKS: frozenset[str] = frozenset(
    {
        "UNet", "BasicUNet", "SegResNet", "DynUNet", "AttentionUnet",
        "DenseNet121", "resnet10", "resnet18",
    }
)  # fmt: skip
