"""The MONAI networks that a study may name, each with the arguments that the study may set.

No network here has batch statistics (instance or group norm only): one patient's output never
depends on another patient, which per-patient clipping needs. Where MONAI offers only batch norm,
Opacus' fixer replaces it with group norm.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from monai.networks import nets
from opacus.validators import ModuleValidator
from pydantic import Field, PositiveInt
from torch import nn

from models.config import Config

Kind = Literal["segmentation", "classification"]
LEAST_SIDE = 64
"""A side length, in voxels, that every network here accepts."""
Channels = Annotated[int, Field(ge=1, le=1024)]


class _NetworkConfig(Config):
    """A network by its name in MONAI.

    Attributes:
        kind: the task that it is for.
        fixed: arguments of Opacus' fixer, which replaces batch norm with group norm; None: no fixer.
    """

    kind: ClassVar[Kind]
    fixed: ClassVar[Mapping[str, Any] | None] = None

    name: str

    @abstractmethod
    def arguments(self, dims: int, out_channels: int, in_channels: int = 1) -> dict[str, Any]:
        """Return the arguments of MONAI's class."""

    def build(self, dims: int, out_channels: int, in_channels: int = 1) -> nn.Module:
        """Return the network for images `(B, in_channels, *spatial)`."""
        arguments = self.arguments(dims, out_channels, in_channels)
        network: nn.Module = getattr(nets, self.name)(**arguments)
        if self.fixed is None:
            return network
        fixed: nn.Module = ModuleValidator.fix(network, **self.fixed)
        return fixed


class UNetConfig(_NetworkConfig):
    """MONAI's residual UNet with instance norm; each level but the first halves the image.

    (Kerfoot et al. 2018, Left-Ventricle Quantification Using Residual U-Net,
    https://doi.org/10.1007/978-3-030-12029-0_40.)
    """

    kind: ClassVar[Kind] = "segmentation"

    name: Literal["UNet"]
    channels: Annotated[tuple[Channels, ...], Field(min_length=2, max_length=6)]
    num_res_units: Annotated[int, Field(ge=0, le=4)] = 0

    @property
    def divisor(self) -> int:
        """The number that must divide each side of an image."""
        return 1 << (len(self.channels) - 1)

    def arguments(self, dims: int, out_channels: int, in_channels: int = 1) -> dict[str, Any]:
        """Return the arguments of MONAI's class."""
        return {
            "spatial_dims": dims,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "channels": self.channels,
            "strides": (2,) * (len(self.channels) - 1),
            "num_res_units": self.num_res_units,
        }


class SegResNetConfig(_NetworkConfig):
    """MONAI's SegResNet with group norm; each level but the first halves the image.

    (Myronenko 2018, 3D MRI brain tumor segmentation using autoencoder regularization,
    https://arxiv.org/abs/1810.11654.)
    """

    kind: ClassVar[Kind] = "segmentation"

    name: Literal["SegResNet"]
    init_filters: Annotated[int, Field(ge=8, le=64, multiple_of=8)] = 8
    blocks_down: Annotated[tuple[PositiveInt, ...], Field(min_length=2, max_length=5)] = (1, 2, 2)

    @property
    def divisor(self) -> int:
        """The number that must divide each side of an image."""
        return 1 << (len(self.blocks_down) - 1)

    def arguments(self, dims: int, out_channels: int, in_channels: int = 1) -> dict[str, Any]:
        """Return the arguments of MONAI's class."""
        return {
            "spatial_dims": dims,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "init_filters": self.init_filters,
            "blocks_down": self.blocks_down,
            "blocks_up": (1,) * (len(self.blocks_down) - 1),
        }


class BasicUNetConfig(_NetworkConfig):
    """MONAI's BasicUNet with instance norm; it halves the image four times.

    `features` are the channels of the five levels, and of the last layer before the output.
    (Falk et al. 2019, U-Net: deep learning for cell counting, detection, and morphometry,
    https://doi.org/10.1038/s41592-018-0261-2.)
    """

    kind: ClassVar[Kind] = "segmentation"
    divisor: ClassVar[int] = 16

    name: Literal["BasicUNet"]
    features: Annotated[tuple[Channels, ...], Field(min_length=6, max_length=6)]

    def arguments(self, dims: int, out_channels: int, in_channels: int = 1) -> dict[str, Any]:
        """Return the arguments of MONAI's class."""
        return {
            "spatial_dims": dims,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "features": self.features,
        }


class DynUNetConfig(_NetworkConfig):
    """MONAI's DynUNet, the network of nnU-Net, with instance norm and no deep supervision.

    Each level but the first halves the image. (Isensee et al. 2021, nnU-Net,
    https://doi.org/10.1038/s41592-020-01008-z.)
    """

    kind: ClassVar[Kind] = "segmentation"

    name: Literal["DynUNet"]
    filters: Annotated[tuple[Channels, ...], Field(min_length=3, max_length=6)]
    res_block: bool = False

    @property
    def divisor(self) -> int:
        """The number that must divide each side of an image."""
        return 1 << (len(self.filters) - 1)

    def arguments(self, dims: int, out_channels: int, in_channels: int = 1) -> dict[str, Any]:
        """Return the arguments of MONAI's class."""
        levels = len(self.filters)
        return {
            "spatial_dims": dims,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "kernel_size": [3] * levels,
            "strides": [1] + [2] * (levels - 1),
            "upsample_kernel_size": [2] * (levels - 1),
            "filters": self.filters,
            "res_block": self.res_block,
        }


class AttentionUnetConfig(_NetworkConfig):
    """MONAI's AttentionUnet with group norm instead of batch norm.

    (Oktay et al. 2018, Attention U-Net, https://arxiv.org/abs/1804.03999.)
    """

    kind: ClassVar[Kind] = "segmentation"
    fixed: ClassVar[Mapping[str, Any] | None] = {}

    name: Literal["AttentionUnet"]
    channels: Annotated[tuple[Channels, ...], Field(min_length=2, max_length=6)]

    @property
    def divisor(self) -> int:
        """The number that must divide each side of an image."""
        return 1 << (len(self.channels) - 1)

    def arguments(self, dims: int, out_channels: int, in_channels: int = 1) -> dict[str, Any]:
        """Return the arguments of MONAI's class."""
        return {
            "spatial_dims": dims,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "channels": self.channels,
            "strides": (2,) * (len(self.channels) - 1),
        }


class ResNetConfig(_NetworkConfig):
    """MONAI's resnet10 or resnet18 with group norm instead of batch norm.

    `width` is the number of channels of the first of four levels; each later level has twice as many.
    (He et al. 2016, Deep Residual Learning, https://arxiv.org/abs/1512.03385; Chen et al. 2019, Med3D,
    https://arxiv.org/abs/1904.00625.)
    """

    kind: ClassVar[Kind] = "classification"
    divisor: ClassVar[int] = 16
    fixed: ClassVar[Mapping[str, Any] | None] = {"num_groups": 8}

    name: Literal["resnet10", "resnet18"]
    width: Literal[8, 16, 32, 64] = 64

    def arguments(self, dims: int, out_channels: int, in_channels: int = 1) -> dict[str, Any]:
        """Return the arguments of MONAI's class."""
        return {
            "spatial_dims": dims,
            "n_input_channels": in_channels,
            "num_classes": out_channels,
            "widen_factor": self.width / 64,
        }


class DenseNet121Config(_NetworkConfig):
    """MONAI's DenseNet121 with group norm instead of batch norm.

    (Huang et al. 2017, Densely Connected Convolutional Networks, https://arxiv.org/abs/1608.06993.)
    """

    kind: ClassVar[Kind] = "classification"
    divisor: ClassVar[int] = 32

    name: Literal["DenseNet121"]
    init_features: Annotated[int, Field(ge=16, le=64, multiple_of=16)] = 64
    growth_rate: Annotated[int, Field(ge=8, le=32, multiple_of=8)] = 32

    def arguments(self, dims: int, out_channels: int, in_channels: int = 1) -> dict[str, Any]:
        """Return the arguments of MONAI's class."""
        return {
            "spatial_dims": dims,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "init_features": self.init_features,
            "growth_rate": self.growth_rate,
            "norm": ("group", {"num_groups": 8}),
        }


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
            network(torch.zeros(1, first.shape[1], *[LEAST_SIDE] * (first.dim() - 2)))
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
