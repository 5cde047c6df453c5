"""Networks for classification and regression."""

from collections.abc import Mapping
from math import gcd
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from models.networks.network import Images, Kind, Network

if TYPE_CHECKING:
    from torch import nn


class ResNetConfig(Network):
    """MONAI's resnet10 or resnet18 with group norm instead of batch norm.

    `width` is the number of channels of the first of four levels; each later level has twice as many.
    (He et al. 2016, Deep Residual Learning, https://arxiv.org/abs/1512.03385; Chen et al. 2019, Med3D,
    https://arxiv.org/abs/1904.00625.)

    Attributes:
        width (channels): channels of the first level.
    """

    kind: ClassVar[Kind] = "classification"
    fixed: ClassVar[Mapping[str, Any] | None] = {"num_groups": 8}

    name: Literal["resnet10", "resnet18"]
    width: Literal[8, 16, 32, 64] = 64

    def divisors(self, dims: int) -> tuple[int, ...]:
        """Return the number that must divide each side of an image."""
        return (16,) * dims

    def arguments(self, dims: int, out_channels: int, in_channels: int = 1) -> dict[str, Any]:
        """Return the arguments of MONAI's class."""
        return {
            "spatial_dims": dims,
            "n_input_channels": in_channels,
            "num_classes": out_channels,
            "widen_factor": self.width / 64,
        }


BLOCKS = (6, 12, 24, 16)
"""Layers of the four blocks of DenseNet121; each halves the channels after it but the last."""


class DenseNet121Config(Network):
    """MONAI's DenseNet121 with group norm instead of batch norm.

    (Huang et al. 2017, Densely Connected Convolutional Networks, https://arxiv.org/abs/1608.06993.)

    Attributes:
        init_features (channels): channels of the first layer.
        growth_rate (channels): channels that each layer adds.
    """

    kind: ClassVar[Kind] = "classification"

    name: Literal["DenseNet121"]
    init_features: Annotated[int, Field(ge=16, le=64, multiple_of=16)] = 64
    growth_rate: Annotated[int, Field(ge=8, le=32, multiple_of=8)] = 32

    @property
    def groups(self) -> int:
        """The number of groups of its norms: it divides the channels after each block."""
        channels, groups = self.init_features, gcd(8, self.init_features, self.growth_rate)
        for layers in BLOCKS:
            channels += layers * self.growth_rate
            groups = gcd(groups, channels)
            channels //= 2
        return groups

    def divisors(self, dims: int) -> tuple[int, ...]:
        """Return the number that must divide each side of an image."""
        return (32,) * dims

    def arguments(self, dims: int, out_channels: int, in_channels: int = 1) -> dict[str, Any]:
        """Return the arguments of MONAI's class."""
        return {
            "spatial_dims": dims,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "init_features": self.init_features,
            "growth_rate": self.growth_rate,
            "norm": ("group", {"num_groups": self.groups}),
        }


class EfficientNetConfig(Network):
    """MONAI's EfficientNetBN with group norm; no layer is dropped at random in training.

    `size` is b0 to b4. (Tan and Le 2019, EfficientNet, https://arxiv.org/abs/1905.11946.)

    Attributes:
        size: `b0` (smallest) to `b4`.
    """

    kind: ClassVar[Kind] = "classification"

    name: Literal["EfficientNetBN"]
    size: Literal["b0", "b1", "b2", "b3", "b4"] = "b0"

    def divisors(self, dims: int) -> tuple[int, ...]:
        """Return the number that must divide each side of an image."""
        return (32,) * dims

    def arguments(self, dims: int, out_channels: int, in_channels: int = 1) -> dict[str, Any]:
        """Return the arguments of MONAI's class."""
        return {
            "model_name": f"efficientnet-{self.size}",
            "pretrained": False,
            "spatial_dims": dims,
            "in_channels": in_channels,
            "num_classes": out_channels,
            "norm": ("group", {"num_groups": 8}),
        }

    def build(self, dims: int, out_channels: int, in_channels: int = 1) -> "nn.Module":
        """Return the network for images `(B, in_channels, *spatial)`."""
        from models.networks import building  # noqa: PLC0415  # as in `Network.build`

        return building.without_chance(super().build(dims, out_channels, in_channels))


class ViTConfig(Network):
    """MONAI's ViT for pictures of one size, `image`, in patches of `patch` by `patch` pixels.

    (Dosovitskiy et al. 2021, An Image is Worth 16x16 Words, https://arxiv.org/abs/2010.11929.)

    Attributes:
        image (pixels): pixels along each side of the images.
        patch (pixels): pixels along each side of a patch.
        width (numbers): numbers by which a patch is described.
        heads (heads): attention heads of a layer; they divide `width`.
        depth (layers): number of layers.
    """

    kind: ClassVar[Kind] = "classification"

    name: Literal["ViT"]
    image: Annotated[tuple[PositiveInt, ...], Field(min_length=2, max_length=3)]
    patch: Annotated[int, Field(ge=2, le=64)] = 8
    width: Annotated[int, Field(ge=8, le=1024, multiple_of=8)] = 64
    heads: Annotated[int, Field(ge=1, le=16)] = 4
    depth: Annotated[int, Field(ge=1, le=24)] = 4

    @model_validator(mode="after")
    def _divides(self) -> "ViTConfig":
        if any(side % self.patch for side in self.image):
            raise ValueError(f"image: expected multiples of the patch {self.patch}, got {self.image}")
        if self.width % self.heads:
            raise ValueError(f"width: expected a multiple of the {self.heads} heads, got {self.width}")
        return self

    def check_input(self, key: str, images: Images) -> None:
        """Raise ValueError unless a study's images fit; `key` is the study's key of the network."""
        if self.image != images.shape:
            raise ValueError(f"{key}: expected an image of preprocessing.shape = {list(images.shape)}.")
        super().check_input(key, images)

    def divisors(self, dims: int) -> tuple[int, ...]:
        """Return the number that must divide each side of an image."""
        return (self.patch,) * dims

    def arguments(self, dims: int, out_channels: int, in_channels: int = 1) -> dict[str, Any]:
        """Return the arguments of MONAI's class."""
        return {
            "in_channels": in_channels,
            "img_size": self.image,
            "patch_size": (self.patch,) * dims,
            "hidden_size": self.width,
            "mlp_dim": 2 * self.width,
            "num_layers": self.depth,
            "num_heads": self.heads,
            "classification": True,
            "num_classes": out_channels,
            "spatial_dims": dims,
            "post_activation": "none",
        }

    def build(self, dims: int, out_channels: int, in_channels: int = 1) -> "nn.Module":
        """Return the network for images `(B, in_channels, *image)`."""
        from models.networks import building  # noqa: PLC0415  # as in `Network.build`

        return building.vision_transformer(self.arguments(dims, out_channels, in_channels), self.image)
