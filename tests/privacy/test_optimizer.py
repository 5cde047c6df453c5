import pytest
import torch
from torch import nn

from privacy.mechanisms import SLACK, ClipConfig, Mechanism
from privacy.noise.grid import on_grid
from privacy.noise.source import NoiseSource
from privacy.optimizer import PatientOptimizer
from privacy.per_patient import clipped_sums


def one_step(
    gradients: torch.Tensor, kind: str = "flat", noise_multiplier: float = 1e-9, divisor: float = 1
) -> torch.Tensor:
    """Return the gradient that a step applied, given patients' gradients `(P, 4)`."""
    layer = nn.Linear(4, 1, bias=False)
    nn.init.zeros_(layer.weight)
    mechanism = Mechanism(ClipConfig(kind=kind, norm=2.0), noise_multiplier, 1.0, 1, divisor)
    sgd = torch.optim.SGD(layer.parameters(), lr=1.0)
    optimizer = PatientOptimizer(sgd, mechanism, NoiseSource.for_test(0, "optimizer"))
    if len(gradients):
        optimizer.accumulate(sums_of(layer, gradients, mechanism))
    optimizer.step()
    return -layer.weight.detach()[0]


def sums_of(layer: nn.Linear, gradients: torch.Tensor, mechanism: Mechanism) -> list[torch.Tensor]:
    """Return the clipped sum of given gradients: a linear layer's gradient is its input."""
    patients = torch.arange(len(gradients))
    zeros = torch.zeros(len(gradients))
    sums = clipped_sums(
        layer, lambda y, t: y[:, 0] + t, gradients, zeros, patients, mechanism.clip_factors
    )
    return [sums["weight"]]


def test_flat_clipping_bounds_each_patient_and_leaves_small_gradients() -> None:
    large, small = torch.tensor([30.0, 40, 0, 0]), torch.tensor([0, 0, 0.3, 0.4])
    summed = one_step(torch.stack([large, small]))
    assert torch.allclose(summed, large / 25 + small, atol=1e-5)


def test_normalised_clipping_brings_every_patient_to_the_norm() -> None:
    for size in (1e-1, 1.0, 1e4):
        clipped = one_step(torch.tensor([[size, 0, 0, 0]]), kind="normalised")
        assert clipped.norm().item() == pytest.approx(2.0 * size / (size + 0.01), rel=1e-5)


@pytest.mark.parametrize("kind", ["flat", "normalised"])
def test_leaving_a_patient_out_moves_the_sum_by_at_most_the_norm(kind: str) -> None:
    rng = torch.Generator().manual_seed(1)
    for scale in (1e-3, 1.0, 1e3):
        gradients = torch.randn(5, 4, generator=rng) * scale
        whole = one_step(gradients, kind)
        for patient in range(5):
            without = gradients.clone()
            without[patient] = 0
            assert (whole - one_step(without, kind)).norm() <= 2.0 + 1e-5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_patient_without_a_finite_gradient_counts_as_zero(bad: float) -> None:
    good = torch.tensor([0.0, 0, 0.3, 0.4])
    summed = one_step(torch.stack([torch.tensor([bad, bad, 0, 0]), good]))
    assert torch.allclose(summed, good, atol=1e-5)


def test_a_huge_gradient_is_clipped_like_any_other() -> None:
    huge = torch.tensor([1e18, 0, 0, 0])
    assert one_step(huge[None]).norm().item() == pytest.approx(2.0, rel=1e-5)
    overflowing = torch.tensor([3e38, 3e38, 0, 0])
    assert one_step(overflowing[None]).norm().item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("patients", [0, 1, 3])
def test_every_released_number_is_on_one_public_grid_whatever_the_sum_is(patients: int) -> None:
    """Float64 parameters, so that nothing is rounded after the mechanism."""
    layer = nn.Linear(5000, 1, bias=False).double()
    nn.init.zeros_(layer.weight)
    mechanism = Mechanism(ClipConfig(kind="flat", norm=3.0), 1.0, 1.0, 1, divisor=1)
    optimizer = PatientOptimizer(
        torch.optim.SGD(layer.parameters(), lr=1.0), mechanism, NoiseSource.for_test(0, "grid")
    )
    if patients:
        gradients = torch.rand(patients, 5000, generator=torch.Generator().manual_seed(0)) / 3
        optimizer.accumulate(sums_of(layer, gradients.double(), mechanism))
    optimizer.step()
    units = layer.weight.detach() / mechanism.grid(5000)
    assert torch.equal(units, units.round())
    assert len(units.unique()) > 4000


def test_the_grid_moves_a_sum_by_less_than_the_slack_of_clipping() -> None:
    for norm in (1e-6, 0.7, 1e6):
        mechanism = Mechanism(ClipConfig(kind="flat", norm=norm), 1.0, 1.0, 1, divisor=1)
        for numel in (1, 1000, 10**6):
            values = torch.rand(numel, dtype=torch.float64) * norm
            grid = mechanism.grid(numel)
            moved = (on_grid(values, grid) - values).norm()
            assert moved <= SLACK * norm / 2
            assert grid > SLACK * norm / (4 * numel**0.5) * (1 - 1e-9)


def test_one_more_patient_moves_a_sum_of_thousands_by_at_most_the_norm() -> None:
    """In float32 a sum of 6000 would move in steps of 2^-11, by 0.04 % more than the norm."""
    norm, count = 1.0, 6000
    layer = nn.Linear(1, 1, bias=False)
    mechanism = Mechanism(ClipConfig(kind="flat", norm=norm), 1.0, 1.0, 1, divisor=1)
    (whole,) = sums_of(layer, torch.full((count, 1), 1.0), mechanism)
    for fewer in range(count - 5, count):
        (without,) = sums_of(layer, torch.full((fewer, 1), 1.0), mechanism)
        assert whole - without <= norm * (count - fewer)
    assert whole.dtype == torch.float64
    assert whole.item() == pytest.approx(count, rel=1e-5)


def test_the_sum_is_divided_by_the_declared_number_and_not_the_true_one() -> None:
    gradients = torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0]])
    assert one_step(gradients, divisor=10)[0].item() == pytest.approx(0.2, rel=1e-5)


def test_an_empty_lot_still_adds_noise_of_the_mechanisms_size() -> None:
    applied = torch.stack([one_step(torch.zeros(0, 4), noise_multiplier=3.0)])
    assert applied.abs().min() > 0
    layer = nn.Linear(100, 100, bias=False)
    mechanism = Mechanism(ClipConfig(kind="flat", norm=2.0), 3.0, 1.0, 1, divisor=4)
    optimizer = PatientOptimizer(
        torch.optim.SGD(layer.parameters(), lr=1.0), mechanism, NoiseSource.from_system()
    )
    before = layer.weight.detach().clone()
    optimizer.step()
    assert (layer.weight - before).std().item() == pytest.approx(3.0 * 2.0 / 4, rel=0.05)


def test_microbatches_give_the_step_of_the_whole_batch() -> None:
    gradients = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    whole = one_step(gradients)
    layer = nn.Linear(4, 1, bias=False)
    nn.init.zeros_(layer.weight)
    mechanism = Mechanism(ClipConfig(kind="flat", norm=2.0), 1e-9, 1.0, 1, divisor=1)
    optimizer = PatientOptimizer(
        torch.optim.SGD(layer.parameters(), lr=1.0), mechanism, NoiseSource.for_test(0, "optimizer")
    )
    for part in gradients.split(2):
        optimizer.accumulate(sums_of(layer, part, mechanism))
    optimizer.step()
    assert torch.allclose(-layer.weight[0], whole, atol=1e-5)
