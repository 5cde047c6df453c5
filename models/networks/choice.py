"""The choice of a network in a study or a policy, by its name in MONAI."""

from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field

from models.networks.classification import DenseNet121Config, EfficientNetConfig, ResNetConfig, ViTConfig
from models.networks.segmentation import (
    AttentionUnetConfig,
    BasicUNetConfig,
    DynUNetConfig,
    SegResNetConfig,
    UNetConfig,
)

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
        raise ValueError(f"another network than {name}: {REFUSED[name]}")
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
    name
    for config in get_args(get_args(NetworkConfig)[0])
    for name in get_args(config.model_fields["name"].annotation)
)
"""The names that a study may give."""
