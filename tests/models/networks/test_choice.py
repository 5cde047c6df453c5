import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from models.networks.choice import NETWORKS, NetworkConfig
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
    "EfficientNetBN": {"name": "EfficientNetBN"},
    "ViT": {"name": "ViT", "image": [32, 32], "patch": 8, "width": 16, "heads": 2, "depth": 2},
}
PARSE = TypeAdapter(NetworkConfig).validate_python


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_answers_each_patient_by_himself(name: str, dims: int) -> None:
    config = PARSE(CONFIGS[name] | ({"image": [32] * dims} if name == "ViT" else {}))
    network = config.build(dims, 3)
    x = torch.randn(2, 1, *[max(32, *config.divisors(dims))] * dims)
    alone, together = network(x[:1]), network(x)
    assert together.shape[:2] == (2, 3)
    assert torch.allclose(alone[0], together[0], atol=1e-4)
    assert not list(network.buffers())


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_gives_per_patient_gradients_for_every_parameter(name: str) -> None:
    config = PARSE(CONFIGS[name])
    network = config.build(2, 3)
    x = torch.randn(2, 1, *[max(32, *config.divisors(2))] * 2)

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


THICK = {"shape": [16, 16, 8], "spacing_mm": [1, 1, 5]}
PLANNED = {"name": "DynUNet", "filters": [4, 4, 6], "planned_for": THICK}


def test_a_network_planned_for_thick_slices_is_exact_for_each_patient_and_takes_such_images() -> None:
    torch.manual_seed(0)
    config = PARSE(PLANNED)
    assert config.divisors(3) == (4, 4, 1)
    network = config.build(3, 2).double()
    kernels = {tuple(m.kernel_size) for m in network.modules() if isinstance(m, torch.nn.Conv3d)}
    assert {(3, 3, 1), (3, 3, 3)} <= kernels
    x = torch.randn(3, 1, 16, 16, 8).double()
    assert network(x).shape == (3, 2, 16, 16, 8)

    def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return logits.flatten(1).square().mean(1) + target

    gradients = per_patient_gradients(network, loss, x, torch.zeros(3), torch.arange(3))
    for number in range(3):
        network.zero_grad()
        loss(network(x[number : number + 1]), torch.zeros(1)).sum().backward()
        for name, parameter in network.named_parameters():
            assert torch.allclose(gradients[name][number], parameter.grad, atol=1e-10), name


def test_a_plan_that_fits_neither_its_levels_nor_the_study_is_refused(study_with) -> None:
    with pytest.raises(
        ValidationError, match="filters: expected at most 3 levels for such voxels, got 4"
    ):
        PARSE({**PLANNED, "filters": [4, 4, 6, 6]})
    with pytest.raises(ValidationError, match="spacing_mm: expected 3 sides, got 2"):
        PARSE({**PLANNED, "planned_for": {"shape": [16, 16, 8], "spacing_mm": [1, 1]}})
    assert study_with(network=PLANNED, preprocessing=THICK).network.divisors(3) == (4, 4, 1)
    with pytest.raises(ValidationError, match=r"network.planned_for: expected shape \[16, 16, 16\] and"):
        study_with(network=PLANNED, preprocessing={"shape": [16, 16, 16]})


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_takes_several_channels_and_its_gradients_are_those_of_each_scan_alone(
    name: str,
) -> None:
    torch.manual_seed(0)
    config = PARSE(CONFIGS[name])
    network = config.build(2, 3, 4).double()
    x = torch.randn(3, 4, *[max(32, *config.divisors(2))] * 2).double()

    def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return logits.flatten(1).square().mean(1) + target

    found = per_patient_gradients(network, loss, x, torch.zeros(3), torch.arange(3))
    names, weights = zip(*network.named_parameters(), strict=True)
    for scan in range(3):
        alone = torch.autograd.grad(loss(network(x[scan : scan + 1]), torch.zeros(1)).sum(), weights)
        for parameter, gradient in zip(names, alone, strict=True):
            assert torch.allclose(found[parameter][scan], gradient, atol=1e-9, rtol=1e-6), parameter


def test_two_scans_of_a_patient_share_his_part_of_an_embedding() -> None:
    network = PARSE(CONFIGS["ViT"]).build(2, 3).double()
    x = torch.randn(3, 1, 32, 32).double()

    def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return logits.square().mean(1) + target

    found = per_patient_gradients(network, loss, x, torch.zeros(3), torch.tensor([0, 0, 1]))
    each = per_patient_gradients(network, loss, x, torch.zeros(3), torch.arange(3))
    for name in ("cls_token", "patch_embedding.position_embeddings"):
        assert torch.allclose(found[name][0], (each[name][0] + each[name][1]) / 2)
        assert torch.allclose(found[name][1], each[name][2])
        assert network.get_parameter(name) is dict(network.named_parameters())[name]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("SwinUNETR", "tables of relative positions"),
        ("ConvNeXt", "EfficientNetBN"),
        ("UNETR", "any size"),
    ],
)
def test_a_network_that_people_ask_for_is_refused_with_the_reason(name: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        PARSE({"name": name})


def test_an_efficientnet_drops_nothing_at_random() -> None:
    network = PARSE(CONFIGS["EfficientNetBN"]).build(2, 3)
    x = torch.randn(2, 1, 32, 32)
    network.train()
    assert torch.equal(network(x), network(x))


@pytest.mark.parametrize("features", [16, 32, 48, 64])
@pytest.mark.parametrize("growth", [8, 16, 24, 32])
def test_each_densenet_that_a_study_may_name_can_be_built(features: int, growth: int) -> None:
    config = PARSE({"name": "DenseNet121", "init_features": features, "growth_rate": growth})
    assert config.groups in (2, 4, 8)
    config.build(2, 2)
