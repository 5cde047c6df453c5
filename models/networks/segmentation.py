"""Networks for segmentation."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from models.config import Config
from models.networks.network import Channels, Images, Kind, Network
from models.networks.unet_plan import Plan, planned


class _Levels(Network):
    """A network by the channels of its levels; each level but the first halves the image."""

    kind: ClassVar[Kind] = "segmentation"

    channels: Annotated[tuple[Channels, ...], Field(min_length=2, max_length=6)]

    def divisors(self, dims: int) -> tuple[int, ...]:
        """Return the number that must divide each side of an image."""
        return (1 << (len(self.channels) - 1),) * dims

    def arguments(self, dims: int, out_channels: int, in_channels: int = 1) -> dict[str, Any]:
        """Return the arguments of MONAI's class."""
        return {
            "spatial_dims": dims,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "channels": self.channels,
            "strides": (2,) * (len(self.channels) - 1),
        }


class UNetConfig(_Levels):
    """MONAI's residual UNet with instance norm.

    (Kerfoot et al. 2018, Left-Ventricle Quantification Using Residual U-Net,
    https://doi.org/10.1007/978-3-030-12029-0_40.)

    Attributes:
        channels (channels): channels of each level, from the first; the image is halved between levels.
        num_res_units (units): residual units of each level; 0 for plain convolutions.
    """

    name: Literal["UNet"]
    num_res_units: Annotated[int, Field(ge=0, le=4)] = 0

    def arguments(self, dims: int, out_channels: int, in_channels: int = 1) -> dict[str, Any]:
        """Return the arguments of MONAI's class."""
        levels = super().arguments(dims, out_channels, in_channels)
        return {**levels, "num_res_units": self.num_res_units}


class SegResNetConfig(Network):
    """MONAI's SegResNet with group norm; each level but the first halves the image.

    (Myronenko 2018, 3D MRI brain tumor segmentation using autoencoder regularization,
    https://arxiv.org/abs/1810.11654.)

    Attributes:
        init_filters (channels): channels of the first level; each further one has twice as many.
        blocks_down (blocks): residual blocks of each level.
    """

    kind: ClassVar[Kind] = "segmentation"

    name: Literal["SegResNet"]
    init_filters: Annotated[int, Field(ge=8, le=64, multiple_of=8)] = 8
    blocks_down: Annotated[tuple[PositiveInt, ...], Field(min_length=2, max_length=5)] = (1, 2, 2)

    def divisors(self, dims: int) -> tuple[int, ...]:
        """Return the number that must divide each side of an image."""
        return (1 << (len(self.blocks_down) - 1),) * dims

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


class BasicUNetConfig(Network):
    """MONAI's BasicUNet with instance norm; it halves the image four times.

    `features` are the channels of the five levels, and of the last layer before the output.
    (Falk et al. 2019, U-Net: deep learning for cell counting, detection, and morphometry,
    https://doi.org/10.1038/s41592-018-0261-2.)

    Attributes:
        features (channels): channels of the five levels and of the last layer.
    """

    kind: ClassVar[Kind] = "segmentation"

    name: Literal["BasicUNet"]
    features: Annotated[tuple[Channels, ...], Field(min_length=6, max_length=6)]

    def divisors(self, dims: int) -> tuple[int, ...]:
        """Return the number that must divide each side of an image."""
        return (16,) * dims

    def arguments(self, dims: int, out_channels: int, in_channels: int = 1) -> dict[str, Any]:
        """Return the arguments of MONAI's class."""
        return {
            "spatial_dims": dims,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "features": self.features,
        }


class Voxels(Config):
    """The input for which a network is planned: the study's shape of images, and the voxels' sides.

    Attributes:
        shape (voxels): voxels along each axis.
        spacing_mm (mm): their sides in mm.
    """

    shape: Annotated[tuple[PositiveInt, ...], Field(min_length=2, max_length=3)]
    spacing_mm: Annotated[tuple[PositiveFloat, ...], Field(min_length=2, max_length=3)]

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> "Voxels":
        if len(self.shape) != len(self.spacing_mm):
            raise ValueError(f"spacing_mm: expected {len(self.shape)} sides, got {len(self.spacing_mm)}")
        return self


class DynUNetConfig(Network):
    """MONAI's DynUNet, the network of nnU-Net, with instance norm and no deep supervision.

    Each level but the first halves the image; with `planned_for`, kernels and strides are those that
    nnU-Net plans for such an input (`models.networks.unet_plan`). (Isensee et al. 2021, nnU-Net,
    https://doi.org/10.1038/s41592-020-01008-z.)

    Attributes:
        filters (channels): channels of each level.
        res_block: `true` for residual blocks.
        planned_for: image and voxels for which kernels, strides and depth are planned as by nnU-Net;
            None for cubes.
    """

    kind: ClassVar[Kind] = "segmentation"

    name: Literal["DynUNet"]
    filters: Annotated[tuple[Channels, ...], Field(min_length=3, max_length=6)]
    res_block: bool = False
    planned_for: Voxels | None = None

    @model_validator(mode="after")
    def _has_planned_levels(self) -> "DynUNetConfig":
        if self.planned_for and len(self.filters) > (fewer := len(self._plan(self.planned_for).strides)):
            raise ValueError(
                f"filters: expected at most {fewer} levels for such voxels, got {len(self.filters)}"
            )
        return self

    def check_input(self, key: str, images: Images) -> None:
        """Raise ValueError unless a study's images fit; `key` is the study's key of the network."""
        if voxels := self.planned_for:
            due = images.shape, images.spacing_mm or voxels.spacing_mm
            if (voxels.shape, voxels.spacing_mm) != due:
                raise ValueError(
                    f"{key}.planned_for: expected shape {list(due[0])} and spacing_mm {list(due[1])} as "
                    f"in preprocessing, got {list(voxels.shape)} and {list(voxels.spacing_mm)}."
                )
        super().check_input(key, images)

    def _plan(self, voxels: Voxels) -> Plan:
        return planned(voxels.shape, voxels.spacing_mm, len(self.filters))

    def divisors(self, dims: int) -> tuple[int, ...]:
        """Return the number that must divide each side of an image."""
        if self.planned_for:
            return self._plan(self.planned_for).divisors
        return (1 << (len(self.filters) - 1),) * dims

    def arguments(self, dims: int, out_channels: int, in_channels: int = 1) -> dict[str, Any]:
        """Return the arguments of MONAI's class."""
        levels = len(self.filters)
        plan = Plan(((3,) * dims,) * levels, ((1,) * dims, *((2,) * dims,) * (levels - 1)))
        if self.planned_for:
            plan = self._plan(self.planned_for)
        return {
            "spatial_dims": dims,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "kernel_size": plan.kernels,
            "strides": plan.strides,
            "upsample_kernel_size": plan.strides[1:],
            "filters": self.filters,
            "res_block": self.res_block,
        }


class AttentionUnetConfig(_Levels):
    """MONAI's AttentionUnet with group norm instead of batch norm.

    (Oktay et al. 2018, Attention U-Net, https://arxiv.org/abs/1804.03999.)

    Attributes:
        channels (channels): channels of each level; the image is halved between levels.
    """

    fixed: ClassVar[Mapping[str, Any] | None] = {}

    name: Literal["AttentionUnet"]
