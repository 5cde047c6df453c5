"""Plans against those that nnU-Net publishes or makes for the same input."""

import pytest

from models.networks.unet_plan import planned

PLANS = {
    # patch, spacing: strides, kernels; by nnunetv2's rule, worked out by hand
    ((128, 128, 128), (1, 1, 1)): ([(1, 1, 1)] + [(2, 2, 2)] * 5, [(3, 3, 3)] * 6),
    ((20, 320, 256), (3, 0.6, 0.6)): (
        [(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)],
        [(1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)],
    ),
    ((40, 56, 40), (1, 1, 1)): ([(1, 1, 1)] + [(2, 2, 2)] * 3, [(3, 3, 3)] * 4),
    ((512, 512), (0.4, 0.4)): ([(1, 1)] + [(2, 2)] * 7, [(3, 3)] * 8),
    ((10, 9, 9), (1, 1, 1)): ([(1, 1, 1), (2, 2, 2)], [(3, 3, 3)] * 2),
    ((10, 4, 4), (1, 1, 1)): ([(1, 1, 1)], [(3, 3, 3)]),
}


@pytest.mark.parametrize(("given", "due"), PLANS.items())
def test_strides_and_kernels_are_those_of_nnunet(given: tuple, due: tuple) -> None:
    plan = planned(*given, most=9)
    assert (list(plan.strides), list(plan.kernels)) == due


def test_a_network_of_fewer_levels_has_the_first_of_the_plan() -> None:
    whole, less = (planned((64, 64, 16), (1, 1, 4), most=n) for n in (6, 3))
    assert less.strides == whole.strides[:3]
    assert less.kernels[:2] == whole.kernels[:2] and less.kernels[2] == (3, 3, 3)
