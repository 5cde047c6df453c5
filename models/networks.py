"""The MONAI networks that a study may name, each with the arguments that the study may set.

No network here has batch statistics (instance or group norm only): one patient's output never
depends on another patient, which per-patient clipping needs. Where MONAI offers only batch norm,
Opacus' fixer replaces it with group norm.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from monai.networks import nets
from opacus.validators import ModuleValidator
from pydantic import BeforeValidator, Field, PositiveInt, model_validator
from torch import Tensor, nn

from models.config import Config

Kind = Literal["segmentation", "classification"]
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


class EfficientNetConfig(_NetworkConfig):
    """MONAI's EfficientNetBN with group norm; no layer is dropped at random in training.

    `size` is b0 to b4. (Tan and Le 2019, EfficientNet, https://arxiv.org/abs/1905.11946.)
    """

    kind: ClassVar[Kind] = "classification"
    divisor: ClassVar[int] = 32

    name: Literal["EfficientNetBN"]
    size: Literal["b0", "b1", "b2", "b3", "b4"] = "b0"

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

    def build(self, dims: int, out_channels: int, in_channels: int = 1) -> nn.Module:
        """Return the network for images `(B, in_channels, *spatial)`."""
        network = super().build(dims, out_channels, in_channels)
        layers: list[Any] = list(network.modules())
        layers[0].set_swish(memory_efficient=False)
        for layer in layers:
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
            elif hasattr(layer, "drop_connect_rate"):
                layer.drop_connect_rate = 0.0
        return network


class ViTConfig(_NetworkConfig):
    """MONAI's ViT for pictures of one size, `image`, in patches of `patch` by `patch` pixels.

    (Dosovitskiy et al. 2021, An Image is Worth 16x16 Words, https://arxiv.org/abs/2010.11929.)
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

    @property
    def divisor(self) -> int:
        """The number that must divide each side of an image."""
        return self.patch

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

    def build(self, dims: int, out_channels: int, in_channels: int = 1) -> nn.Module:
        """Return the network for images `(B, in_channels, *image)`."""
        network = _ViT(**self.arguments(dims, out_channels, in_channels))
        network.sides = self.image
        for block in network.blocks:  # MONAI 1.6 makes a norm for cross attention that nothing uses
            block.norm_cross_attn = nn.Identity()
        return network


class _ViT(nets.ViT):  # type: ignore[misc]  # MONAI is not typed
    """MONAI's ViT, whose answer is the logits alone and not all hidden states beside them."""

    sides: tuple[int, ...] = ()
    """The only sides of an image that it takes."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = super().forward(x)[0]
        return logits


REFUSED = {
    "SwinUNETR": "its windows share tables of relative positions, of which no exact gradient of each "
    "patient is known here; take UNet, SegResNet, DynUNet or AttentionUnet",
    "ConvNeXt": "MONAI has no such network; take EfficientNetBN, ViT, DenseNet121 or resnet18",
    "UNETR": "its transformer takes images of one size alone, and predictions here are of any size; "
    "take AttentionUnet",
}
"""Networks that people ask for, and why a study can't name them."""


def _known(value: Any) -> Any:  # noqa: ANN401  # whatever a file holds
    name = value.get("name") if isinstance(value, dict) else None
    if isinstance(name, str) and name in REFUSED:
        raise ValueError(f"{name}: {REFUSED[name]}.")
    return value


NetworkConfig = Annotated[
    UNetConfig
    | BasicUNetConfig
    | SegResNetConfig
    | DynUNetConfig
    | AttentionUnetConfig
    | DenseNet121Config
    | ResNetConfig
    | EfficientNetConfig
    | ViTConfig,
    Field(discriminator="name"),
    BeforeValidator(_known),
]
NETWORKS: frozenset[str] = frozenset(
    {
        "UNet", "BasicUNet", "SegResNet", "DynUNet", "AttentionUnet",
        "DenseNet121", "resnet10", "resnet18", "EfficientNetBN", "ViT",
    }
)  # fmt: skip
