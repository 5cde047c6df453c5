import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from models.networks import NETWORKS, NetworkConfig
from privacy.per_patient import per_patient_gradients

CONFIGS = {
    "UNet": {"name": "UNet", "channels": [4, 8]},
    "SegResNet": {"name": "SegResNet", "blocks_down": [1, 1]},
    "BasicUNet": {"name": "BasicUNet", "features": [4, 4, 8, 8, 8, 4]},
    "DynUNet": {"name": "DynUNet", "filters": [4, 8, 8], "res_block": True},
    "AttentionUnet": {"name": "AttentionUnet", "channels": [4, 8]},
    "resnet10": {"name": "resnet10", "width": 8},
    "resnet18": {"name": "resnet18", "width": 8},
    "DenseNet121": {"name": "DenseNet121", "init_features": 16, "growth_rate": 8},
}
PARSE = TypeAdapter(NetworkConfig).validate_python


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_answers_each_patient_by_himself(name: str, dims: int) -> None:
    config = PARSE(CONFIGS[name])
    network = config.build(dims, 3)
    x = torch.randn(2, 1, *[max(32, config.divisor)] * dims)
    alone, together = network(x[:1]), network(x)
    assert together.shape[:2] == (2, 3)
    assert torch.allclose(alone[0], together[0], atol=1e-4)
    assert not list(network.buffers())


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_gives_per_patient_gradients_for_every_parameter(name: str) -> None:
    config = PARSE(CONFIGS[name])
    network = config.build(2, 3)
    x = torch.randn(2, 1, *[max(config.divisor, 32)] * 2)

    def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return logits.flatten(1).square().mean(1) + target

    gradients = per_patient_gradients(network, loss, x, torch.zeros(2), torch.arange(2))
    assert gradients.keys() == dict(network.named_parameters()).keys()
    assert all(g.shape[0] == 2 for g in gradients.values())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "VNet"}, "UNet"),
        ({"name": "UNet"}, "channels"),
        ({"name": "UNet", "channels": [8]}, "channels"),
        ({"name": "UNet", "channels": [8, -1]}, "channels"),
        ({"name": "UNet", "channels": [8, 16], "stride": 2}, "stride"),
        ({"name": "SegResNet", "init_filters": 9}, "init_filters"),
        ({"name": "BasicUNet", "features": [4, 4]}, "features"),
        ({"name": "DynUNet", "filters": [4, 8]}, "filters"),
        ({"name": "resnet10", "width": 3}, "width"),
        ({"name": "resnet34"}, "resnet18"),
    ],
)
def test_a_wrong_network_is_refused_by_key(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PARSE(config)
