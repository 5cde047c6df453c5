"""Each rule against a plain version, and under hospitals that send anything."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models import robust
from models.robust import TooFewVotes

Params = dict[str, Tensor]


def changes(count: int, seed: int = 0, spread: float = 0.3) -> list[Params]:
    """Return changes that agree about a direction, as honest hospitals' do."""
    rng = torch.Generator().manual_seed(seed)
    common = {"a": torch.randn(5, 3, generator=rng), "b": torch.randn(7, generator=rng)}
    return [
        {n: p + spread * torch.randn(p.shape, generator=rng) for n, p in common.items()}
        for _ in range(count)
    ]


def flat(params: Params) -> Tensor:
    return torch.cat([params[name].flatten() for name in sorted(params)]).double()


def mean_of(items: list[Params]) -> Tensor:
    return torch.stack([flat(item) for item in items]).mean(0)


RULES = {
    "median": robust.median,
    "trimmed_mean": lambda c: robust.trimmed_mean(c, 3),
    "krum": lambda c: robust.krum(c, 3),
    "multi_krum": lambda c: robust.krum(c, 3, chosen=5),
    "geometric_median": robust.geometric_median,
    "norm_bounding": lambda c: robust.norm_bounded_mean(c, 1.0),
}
ATTACKS = {
    "sign flipped": lambda honest, n: {k: -p for k, p in honest[n].items()},
    "scaled": lambda honest, n: {k: 1000 * p for k, p in honest[n].items()},
    "flipped and scaled": lambda honest, n: {k: -50 * p for k, p in honest[n].items()},
    "random": lambda honest, n: {
        k: 30 * torch.randn(p.shape, generator=torch.Generator().manual_seed(n))
        for k, p in honest[n].items()
    },
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_under_a_third_of_faulty_hospitals_the_direction_is_the_honest_one(attack, rule) -> None:
    honest = changes(10)
    sent = [attack(honest, n) if n < 3 else honest[n] for n in range(10)]
    aim, found = mean_of(honest[3:]), flat(rule(sent))
    assert torch.cosine_similarity(found, aim, dim=0) > (0.6 if rule is RULES["norm_bounding"] else 0.9)
    assert found.norm() < 2 * aim.norm()
    if attack is not ATTACKS["sign flipped"]:
        assert (mean_of(sent) - aim).norm() > aim.norm()  # where a plain mean is lost


def test_the_median_is_that_of_each_coordinate() -> None:
    items = changes(5)
    found = flat(robust.median(items))
    assert torch.equal(found, torch.stack([flat(i) for i in items]).median(0).values)


def test_a_trimmed_mean_leaves_out_the_extremes_written_out() -> None:
    items = changes(6)
    table = torch.stack([flat(item) for item in items]).T.tolist()
    plain = [sum(sorted(row)[2:-2]) / 2 for row in table]
    assert flat(robust.trimmed_mean(items, 2)).tolist() == pytest.approx(plain)


@pytest.mark.parametrize("chosen", [1, 3])
def test_krum_is_its_definition_written_out(chosen: int) -> None:
    items, faulty = changes(8, seed=4), 2
    vectors = [flat(item) for item in items]
    scores = []
    for i, mine in enumerate(vectors):
        others = sorted(float((mine - v).square().sum()) for j, v in enumerate(vectors) if j != i)
        scores.append(sum(others[: len(items) - faulty - 2]))
    best = sorted(range(8), key=scores.__getitem__)[:chosen]
    assert torch.allclose(flat(robust.krum(items, faulty, chosen)), mean_of([items[k] for k in best]))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(3, 9))
def test_no_other_point_is_nearer_to_all_than_the_geometric_median(seed: int, count: int) -> None:
    items = changes(count, seed, spread=1.0)
    vectors = torch.stack([flat(item) for item in items])

    def total(point: Tensor) -> float:
        return float((vectors - point).norm(dim=1).sum())

    found = flat(robust.geometric_median(items))
    best = total(found)
    rng = torch.Generator().manual_seed(seed)
    for size in (0.3, 0.03):
        for _ in range(20):
            moved = found + size * torch.randn(found.shape, generator=rng, dtype=torch.double)
            assert total(moved) >= best * (1 - 1e-4)
    assert all(total(vector) >= best * (1 - 1e-4) for vector in vectors)


def test_bounded_changes_are_their_mean_where_none_is_long() -> None:
    items = changes(5, spread=0.01)
    assert torch.allclose(
        flat(robust.norm_bounded_mean(items, 2.0)), mean_of(items).float().double(), atol=1e-6
    )
    items[0] = {name: 1e6 * p for name, p in items[0].items()}
    norms = sorted(float(flat(item).norm()) for item in items)
    plain = sum(flat(i) * min(1.0, norms[2] / float(flat(i).norm())) for i in items) / 5
    assert torch.allclose(flat(robust.norm_bounded_mean(items, 1.0)), plain, rtol=1e-4)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_the_order_of_hospitals_does_not_matter_nor_does_agreement(rule) -> None:
    items = changes(9)
    for order in itertools.islice(itertools.permutations(range(9)), 0, 50, 7):
        again = rule([items[k] for k in order])
        assert torch.allclose(flat(rule(items)), flat(again), atol=1e-6)
    same = [items[0]] * 9
    assert torch.allclose(flat(rule(same)), flat(items[0]), rtol=1e-5)


def test_too_few_hospitals_for_the_faulty_ones_are_an_error() -> None:
    with pytest.raises(TooFewVotes, match="at least 5 hospitals where 2 may be faulty, got 4"):
        robust.trimmed_mean(changes(4), 2)
    with pytest.raises(TooFewVotes, match="at least 7 hospitals where 2 may be faulty, got 6"):
        robust.krum(changes(6), 2)
