"""Sums of clipped gradients are the same in any order and any division among whoever sums them."""

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trainings import TASK, examples, network

from privacy.mechanisms import ClipConfig, Mechanism
from privacy.per_patient import per_patient_gradients
from sites.training.config import TrainingConfig
from sites.training.lot_sums import LotSum, OwnSums, added

MECHANISM = Mechanism(ClipConfig(kind="flat", norm=0.5), 1.0, 1.0, 1, divisor=9)
EXAMPLES = examples(9)
OWN = OwnSums(TASK, EXAMPLES, TrainingConfig(steps=1, lr=0.1, lot="all", microbatch=1))
ALL = OWN(network(), range(9), 0, MECHANISM)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(9)), st.lists(st.integers(0, 9), max_size=3))
def test_a_sum_is_the_same_bits_however_patients_are_divided(order: list[int], cuts: list[int]) -> None:
    places = [0, *sorted(cuts), 9]
    groups = [order[a:b] for a, b in pairwise(places)]
    found = added([OWN(network(), group, 0, MECHANISM) for group in groups])
    assert found.within == ALL.within
    assert all(torch.equal(a, b) for a, b in zip(found.sums, ALL.sums, strict=True))


def test_a_sum_is_that_of_each_patients_gradient_clipped_by_itself() -> None:
    net = network()
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in net.named_parameters()}
    within = 0.0
    for i in range(9):
        images, targets = EXAMPLES.draw(i, 0)
        alone = torch.zeros(len(images), dtype=torch.long)
        one = {n: g[0] for n, g in per_patient_gradients(net, TASK.loss, images, targets, alone).items()}
        norm = torch.cat([g.double().flatten() for g in one.values()]).norm()
        within += 0.5 if norm <= 0.5 else -0.5
        for name, gradient in one.items():
            total[name] += gradient.double() * min(1.0, 0.5 / float(norm))
    assert ALL.within == within
    for mine, right in zip(ALL.sums, total.values(), strict=True):
        assert torch.allclose(mine, right, atol=1e-4)


def test_nobodys_sum_is_none_and_adds_nothing() -> None:
    assert OWN(network(), [], 0, MECHANISM) == LotSum()
    assert added([LotSum(), ALL, LotSum()]) is not ALL
    assert added([LotSum(), ALL, LotSum()]) == ALL
