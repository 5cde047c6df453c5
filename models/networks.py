"""The MONAI networks a study may name, each with the arguments that it may set.

No network here has batch statistics (instance or group norm only): one patient's output never
depends on another patient, which per-patient clipping needs.
"""

from typing import Annotated, ClassVar, Literal

from monai.networks.nets import DenseNet121, SegResNet, UNet
from pydantic import Field, PositiveInt
from torch import nn

from models.config import Config

Kind = Literal["segmentation", "classification"]
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


NetworkConfig = Annotated[UNetConfig | SegResNetConfig | DenseNet121Config, Field(discriminator="name")]
NETWORKS: frozenset[str] = frozenset({"UNet", "SegResNet", "DenseNet121"})
