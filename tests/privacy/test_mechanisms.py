import pytest

from privacy.accounting import epsilon
from privacy.mechanisms import LocalPrivacy, mechanism_for

PRIVACY = LocalPrivacy(
    mode="local", unit="patient", epsilon=8, delta=1e-4, clip={"kind": "flat", "norm": 0.5}
)


@pytest.mark.parametrize("lot", [None, 10])
def test_all_rounds_together_spend_the_studys_budget_and_not_more(lot: int | None) -> None:
    mechanism = mechanism_for(PRIVACY, rounds=6, steps=4, lot=lot, declared=70)
    assert mechanism.event.steps == 4
    spent = epsilon([mechanism.event] * 6, 1e-4)
    assert 7.99 < spent <= 8.000001


def test_noise_divisor_and_rate_come_from_the_declared_number() -> None:
    mechanism = mechanism_for(PRIVACY, rounds=6, steps=4, lot=10, declared=70)
    assert mechanism.sampling_rate == 10 / 70
    assert mechanism.divisor == 10
    assert mechanism.noise_std == mechanism.noise_multiplier * 0.5


def test_a_delta_of_one_over_n_is_refused() -> None:
    with pytest.raises(ValueError, match="delta < 1/10000"):
        mechanism_for(PRIVACY, rounds=1, steps=1, lot=None, declared=10_000)


def test_a_lot_above_the_declared_number_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 70"):
        mechanism_for(PRIVACY, rounds=1, steps=1, lot=71, declared=70)
