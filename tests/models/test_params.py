from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import checkpoints
from models import params as P


def test_the_weighted_mean_equals_the_sum_written_out() -> None:
    a, b = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([5.0, -2.0])}
    mean = P.weighted_mean([(90, a), (30, b)])
    assert torch.equal(mean["w"], torch.tensor([(90 * 1 + 30 * 5) / 120, (90 * 2 - 30 * 2) / 120]))


def test_the_weighted_mean_reads_large_tensors_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same bits as whole; a row that is longer than a piece is read whole."""
    rng = torch.Generator().manual_seed(0)
    shapes = {"long": (33, 3), "wide": (2, 50), "number": (), "none": (0, 4)}
    stored = []
    for number in range(3):
        params = {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}
        checkpoints.write(tmp_path / f"{number}", params)
        stored.append(checkpoints.StoredParams(tmp_path / f"{number}"))
    items = [(weight, params) for weight, params in zip((1, 2.5, 7), stored, strict=True)]
    whole = P.weighted_mean(items)
    read = []
    rows = checkpoints.StoredParams.rows
    monkeypatch.setattr(P, "AT_A_TIME", 12)
    monkeypatch.setattr(
        checkpoints.StoredParams, "rows", lambda *at: read.append(rows(*at).numel()) or rows(*at)
    )
    found = P.weighted_mean(items)
    assert {name: value.shape for name, value in found.items()} == shapes
    assert all(torch.equal(found[name], whole[name]) for name in shapes)
    assert set(read) == {12, 3, 50}  # four rows, the last of 33, and rows that are longer


@given(st.lists(st.tuples(st.integers(1, 500), st.floats(-1e3, 1e3)), min_size=1, max_size=6))
def test_the_weighted_mean_lies_between_the_least_and_the_greatest(
    items: list[tuple[int, float]],
) -> None:
    mean = P.weighted_mean([(n, {"w": torch.tensor([x])}) for n, x in items])["w"].item()
    values = torch.tensor([x for _, x in items])
    assert values.min() - 1e-3 <= mean <= values.max() + 1e-3


@pytest.mark.parametrize("weight", [0, -1, float("nan")])
def test_a_weight_that_is_not_positive_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="weights > 0"):
        P.weighted_mean([(weight, {"w": torch.ones(1)})])


def test_no_items_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        P.weighted_mean([])


def test_parameters_of_another_network_are_refused() -> None:
    network = torch.nn.Linear(2, 3)
    own = P.of(network)
    with pytest.raises(ValueError, match="'bias', and it is missing"):
        P.load_into(network, {"weight": own["weight"]})
    with pytest.raises(ValueError, match=r"\(3, 2\), got \(2, 3\)"):
        P.load_into(network, {**own, "weight": own["weight"].T})
    with pytest.raises(ValueError, match="unknown parameter 'extra'"):
        P.load_into(network, {**own, "extra": own["bias"]})


def test_loading_parameters_restores_them() -> None:
    network = torch.nn.Linear(2, 3)
    before = P.of(network)
    P.load_into(network, P.add(before, {n: torch.ones_like(p) for n, p in before.items()}))
    moved = P.subtract(P.of(network), before)
    assert P.norm(moved) == pytest.approx(9**0.5)
