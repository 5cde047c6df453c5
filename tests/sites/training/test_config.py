import pytest

from sites.training.config import TrainingConfig


def test_a_cosine_falls_over_the_rounds_and_a_constant_rate_does_not() -> None:
    for schedule, rates in (("constant", [0.1] * 3), ("cosine", [0.1, 0.075, 0.025])):
        config = TrainingConfig(steps=1, lr=0.1, lot="all", schedule=schedule)
        assert [config.in_round(r, 3).lr for r in (1, 2, 3)] == pytest.approx(rates)
