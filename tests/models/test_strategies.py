"""One contract over every strategy, and each against a plain version written out."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from models import checkpoints
from models.networks.choice import NetworkConfig
from models.params import Params
from models.settings.strategies import StrategyConfig
from models.strategies import (
    STRATEGIES,
    Contribution,
    Strategy,
    ditto,
    fed_avg,
    fed_avg_m,
    fed_nova,
    fed_prox,
    variate_after,
)

every_strategy = pytest.mark.parametrize("make", STRATEGIES.values(), ids=STRATEGIES.keys())
Make = Callable[[], Strategy]
EVERY_NETWORK: list[dict[str, object]] = [
    {"name": "UNet", "channels": [4, 8]},
    {"name": "BasicUNet", "features": [4, 4, 8, 8, 8, 4]},
    {"name": "SegResNet", "init_filters": 8},
    {"name": "DynUNet", "filters": [4, 8, 8]},
    {"name": "AttentionUnet", "channels": [8, 16]},
    {"name": "DenseNet121", "init_features": 16, "growth_rate": 8},
    {"name": "resnet10", "width": 8},
]


def random_params(seed: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(3, 2, generator=rng), "b": torch.randn(4, generator=rng)}


def many(count: int) -> list[tuple[float, Params]]:
    return [(1 + n % 3, random_params(n)) for n in range(count)]


def step(strategy: Strategy, contributions: list[tuple[float, Params]]) -> dict[str, torch.Tensor]:
    params = random_params(0)
    given = [Contribution(weight, change) for weight, change in contributions]
    moved, _ = strategy.apply(params, strategy.init(params), given)
    return moved


@every_strategy
def test_nobody_moves_means_a_fixed_point(make: Make) -> None:
    still = {name: torch.zeros_like(p) for name, p in random_params(0).items()}
    moved = step(make(), [(3, still), (5, still), (1, still), (2, still), (1, still)])
    assert all(torch.equal(moved[n], p) for n, p in random_params(0).items())


@every_strategy
def test_the_order_of_hospitals_does_not_matter(make: Make) -> None:
    contributions = many(7)
    a, b = step(make(), contributions), step(make(), contributions[::-1])
    assert all(torch.allclose(a[n], b[n], atol=1e-6) for n in a)


@every_strategy
def test_a_hospital_twice_as_large_counts_as_two_or_its_word_counts_for_nothing(make: Make) -> None:
    a, b = random_params(1), random_params(2)
    rest = [(1.0, random_params(n)) for n in range(3, 7)]
    strategy = make()
    once, twice = (
        step(strategy, [(2, a), (1, b), *rest]),
        step(strategy, [(1, a), (1, a), (1, b), *rest]),
    )
    ignored = step(strategy, [(200, a), (1, b), *rest])
    if strategy.weighs:
        assert all(torch.allclose(once[n], twice[n], atol=1e-6) for n in once)
        assert not all(torch.allclose(once[n], ignored[n], atol=1e-6) for n in once)
    else:
        assert all(torch.equal(once[n], ignored[n]) for n in once)


@every_strategy
def test_contributions_are_read_from_files_without_a_change(make: Make, tmp_path: Path) -> None:
    in_memory = [(n, random_params(n)) for n in (3, 5, 7, 9, 11)]
    stored = []
    for n, params in in_memory:
        path = tmp_path / f"{n}.safetensors"
        stored.append((n, checkpoints.read(path, checkpoints.write(path, params))))
    a, b = step(make(), in_memory), step(make(), stored)
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_fed_avg_is_the_case_weighted_mean_written_out() -> None:
    a, b = random_params(1), random_params(2)
    moved = step(fed_avg(), [(30, a), (10, b)])
    for name, p in random_params(0).items():
        assert torch.allclose(moved[name], p + (30 * a[name] + 10 * b[name]) / 40, atol=1e-6)


def test_fed_avg_m_is_momentum_written_out() -> None:
    strategy, w, state = fed_avg_m(momentum=0.5, lr=0.1), {"w": torch.zeros(1)}, None
    state, velocity, plain = strategy.init(w), 0.0, 0.0
    for delta in (1.0, -2.0, 3.0):
        w, state = strategy.apply(w, state, [Contribution(4, {"w": torch.tensor([delta])})])
        velocity = 0.5 * velocity + delta
        plain += 0.1 * velocity
        assert w["w"].item() == pytest.approx(plain)


@pytest.mark.parametrize("name", ["fed_adam", "fed_yogi", "fed_adagrad"])
def test_the_adaptive_ones_are_their_algorithm_written_out(name: str) -> None:
    b1, b2, lr, tau = 0.6, 0.8, 0.1, 0.01
    keys = {"beta1": b1, "lr": lr, "tau": tau} | ({} if name == "fed_adagrad" else {"beta2": b2})
    strategy, w, plain, m, v = STRATEGIES[name](**keys), {"w": torch.zeros(1)}, 0.0, 0.0, tau**2
    state = strategy.init(w)
    for delta in (1.0, -2.0, 0.5, 3.0):
        w, state = strategy.apply(w, state, [Contribution(4, {"w": torch.tensor([delta])})])
        m = b1 * m + (1 - b1) * delta
        if name == "fed_adam":
            v = b2 * v + (1 - b2) * delta**2
        elif name == "fed_yogi":
            v = v - (1 - b2) * delta**2 * math.copysign(1, v - delta**2)
        else:
            v = v + delta**2
        plain += lr * m / (math.sqrt(v) + tau)
        assert w["w"].item() == pytest.approx(plain, rel=1e-5)


def test_fed_prox_adds_half_mu_times_the_squared_distance() -> None:
    proximal = fed_prox(mu=0.2).local_loss
    assert proximal is not None
    own, start = {"w": torch.tensor([3.0, 4.0])}, {"w": torch.zeros(2)}
    assert proximal(own, start).item() == pytest.approx(0.1 * 25)


def test_fed_nova_is_its_equation_written_out() -> None:
    params = random_params(0)
    (a, n_a, l_a), (b, n_b, l_b) = (random_params(1), 30, 2.0), (random_params(2), 10, 0.5)
    moved, _ = fed_nova().apply(params, {}, [Contribution(n_a, a, l_a), Contribution(n_b, b, l_b)])
    effective = 0.75 * l_a + 0.25 * l_b
    for name, p in params.items():
        direction = 0.75 * a[name] / l_a + 0.25 * b[name] / l_b
        assert torch.allclose(moved[name], p + effective * direction, atol=1e-6)


def test_fed_nova_reaches_the_common_optimum_with_unequal_steps_that_fed_avg_misses() -> None:
    """Two hospitals with quadratic losses (w - b)^2 / 2, one of which takes a tenth of the steps."""
    lr, hospitals = 0.02, [(0.0, 20), (1.0, 2)]

    def train(strategy: Strategy) -> float:
        w = torch.zeros(1)
        for _ in range(400):
            given = []
            for b, steps in hospitals:
                own = w.clone()
                for _ in range(steps):
                    own = own - lr * (own - b)
                given.append(Contribution(1, {"w": own - w}, lr * steps))
            w = strategy.apply({"w": w}, {}, given)[0]["w"]
        return w.item()

    assert train(fed_nova()) == pytest.approx(0.5, abs=0.06)
    assert train(fed_avg()) < 0.15


def test_a_personal_model_is_drawn_to_the_global_one_and_the_shared_one_is_fed_avgs() -> None:
    strategy = ditto(strength=0.2)
    assert strategy.personal_loss is not None
    own, common = {"w": torch.tensor([3.0, 4.0])}, {"w": torch.zeros(2)}
    assert strategy.personal_loss(own, common).item() == pytest.approx(0.1 * 25)
    assert strategy.local_loss is None
    assert all(
        torch.equal(a, b)
        for a, b in zip(step(strategy, many(4)).values(), step(fed_avg(), many(4)).values(), strict=True)
    )


@pytest.mark.parametrize("config", EVERY_NETWORK, ids=lambda config: config["name"])
def test_local_heads_are_the_layers_that_act_last(config: dict[str, object]) -> None:
    """A change of what stays local changes the answer without another layer seeing anything else."""
    network = TypeAdapter(NetworkConfig).validate_python(config).build(2, 2)
    strategy = STRATEGIES["fed_per"]().bound_to(network)
    local = [name for name, _ in network.named_parameters() if strategy.is_local(name)]
    places = {name.rpartition(".")[0] for name in local}
    acted: list[str] = []
    for place, module in network.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_hook(lambda *_, place=place: acted.append(place))
    network(torch.zeros(1, 1, 64, 64))
    assert places == {acted[-1]}
    assert 0 < len(local) <= 2


@pytest.mark.parametrize(
    "config",
    [
        {"name": "SegResNet", "init_filters": 8},
        {"name": "DenseNet121", "init_features": 16, "growth_rate": 8},
        {"name": "resnet10", "width": 8},
    ],
)
def test_fed_bn_keeps_every_norm_layer_and_shares_all_else(config: dict[str, object]) -> None:
    network = TypeAdapter(NetworkConfig).validate_python(config).build(2, 2)
    strategy = STRATEGIES["fed_bn"]().bound_to(network)
    for name, parameter in network.named_parameters():
        layer = network.get_submodule(name.rpartition(".")[0])
        assert strategy.is_local(name) == (type(layer).__name__ in {"GroupNorm", "InstanceNorm2d"})
        assert not (strategy.is_local(name) and parameter.dim() > 1)
    assert any(strategy.is_local(name) for name, _ in network.named_parameters())


def test_local_parameters_stay_as_they_were_at_the_coordinator() -> None:
    strategy = replace(fed_avg(), is_local=lambda name: name == "b")
    params = random_params(0)
    assert set(strategy.shared(params)) == {"a"}
    moved, _ = strategy.next_params(params, {}, [Contribution(1, {"a": torch.ones(3, 2)})])
    assert torch.equal(moved["b"], params["b"])
    assert torch.allclose(moved["a"], params["a"] + 1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "fed_magic"}, "fed_avg"),
        ({"name": "fed_avg", "mu": 1}, r"mu: unknown key. Known here: none"),
        ({"name": "fed_prox", "mu": -1}, "greater than 0"),
    ],
)
def test_a_wrong_strategy_is_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        StrategyConfig.model_validate(config)


def test_scaffold_finds_the_common_optimum_that_local_steps_alone_miss() -> None:
    """Two hospitals with quadratic losses a/2 (w - b)^2, everything written out in scalars."""
    losses, steps, lr = [(1.0, 4.0), (8.0, -1.0)], 10, 0.1
    optimum = sum(a * b for a, b in losses) / sum(a for a, _ in losses)

    def train(corrects: bool) -> float:
        w, common, own = 0.0, 0.0, [0.0, 0.0]
        for _ in range(60):
            changes = []
            for k, (a, b) in enumerate(losses):
                y = w
                for _ in range(steps):
                    y -= lr * (a * (y - b) + (common - own[k] if corrects else 0.0))
                changes.append(y - w)
                before = {"w": torch.tensor([own[k] - common])}
                after = variate_after({"w": torch.tensor([y - w])}, steps * lr, before)
                own[k] = after["w"].item() if corrects else 0.0
            moved = sum(changes) / 2
            w += moved
            common = variate_after({"w": torch.tensor([moved])}, steps * lr)["w"].item()
        return w

    assert train(corrects=True) == pytest.approx(optimum, abs=1e-3)
    assert abs(train(corrects=False) - optimum) > 0.3
