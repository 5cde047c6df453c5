import numpy as np
import pytest

from privacy.mechanisms import LocalPrivacy, mechanism_for
from privacy.signal import FULL, LONGEST_STEP, Reach, Share, learning_rate, reach, reach_of_sum

PRIVACY = LocalPrivacy(
    mode="local", unit="patient", epsilon=8, delta=1e-5, clip={"kind": "normalised", "norm": 0.5}
)


def shares(declared: list[int], steps: int = 4, rounds: int = 3) -> list[Share]:
    return [
        Share(
            n / sum(declared),
            mechanism_for(PRIVACY, rounds=rounds, steps=steps, lot=None, declared=n),
        )
        for n in declared
    ]


def test_the_noise_of_a_run_is_that_of_steps_drawn_one_by_one() -> None:
    """Slow twin: local steps with momentum, weighted average, several rounds, on 20,000 parameters."""
    rng, rates, momentum = np.random.default_rng(0), [1.0, 0.6, 0.2], 0.9
    hospitals = shares([30, 10])
    moved = np.zeros(20_000)
    for rate in rates:
        after = np.zeros_like(moved)
        for share in hospitals:
            own, velocity, mechanism = moved.copy(), 0.0, share.mechanism
            for _ in range(mechanism.steps):
                noise = rng.normal(0, mechanism.noise_std, len(moved)) / mechanism.divisor
                velocity = momentum * velocity + noise
                own -= rate * velocity
            after += share.weight * own
        moved = after
    assert reach(hospitals, rates, momentum).noise == pytest.approx(moved.std(), rel=0.02)


def test_a_gradient_of_the_clip_norm_moves_as_far_as_the_signal() -> None:
    moved = velocity = 0.0
    for rate in (1.0, 0.5):
        velocity = 0.0
        for _ in range(4):
            velocity = 0.8 * velocity + 0.5
            moved += rate * velocity
    assert reach(shares([20, 20]), (1.0, 0.5), 0.8).signal == pytest.approx(moved)


def test_whatever_the_number_of_steps_signal_to_noise_is_about_that_of_the_run() -> None:
    strengths = [
        reach(shares([28] * 4, steps, 1), [1.0], 0.0).strength(10_000) for steps in (1, 10, 100)
    ]
    assert strengths == pytest.approx([strengths[0]] * 3, rel=0.01)


def test_more_patients_and_fewer_parameters_strengthen_the_signal() -> None:
    few, many = reach(shares([28] * 4), [1.0], 0.9), reach(shares([56] * 4), [1.0], 0.9)
    assert many.strength(100) == pytest.approx(2 * few.strength(100))
    assert few.strength(100) == pytest.approx(2 * few.strength(400))


def test_the_noise_of_a_run_at_its_rate_is_what_the_start_bears_and_less_where_the_signal_is_weak() -> (
    None
):
    strong, weak = Reach(signal=100, noise=0.5), Reach(signal=0.1 * FULL * 0.5 * 100, noise=0.5)
    assert learning_rate(strong, 100, 0.03) * strong.noise == pytest.approx(0.03)
    assert learning_rate(weak, 10_000, 0.03) * weak.noise == pytest.approx(0.003)


def test_where_there_is_little_noise_the_longest_step_bounds_the_rate() -> None:
    found = reach(shares([10**4] * 4), [1.0, 0.5], 0.9)
    rate = learning_rate(found, 100, 0.05)
    velocity = 1 + 0.9 + 0.9**2 + 0.9**3
    assert rate * velocity * 0.5 == pytest.approx(LONGEST_STEP, rel=0.01)


def test_the_reach_of_a_sum_is_that_of_its_rounds_taken_one_by_one() -> None:
    """Slow twin: a velocity that goes on from round to round, with more noise than is charged."""
    rng, rates, momentum, patients = np.random.default_rng(1), [1.0, 0.6, 0.2], 0.8, 50
    mechanism = mechanism_for(PRIVACY, rounds=3, steps=1, lot=None, declared=20)
    moved, velocity, along, speed = np.zeros(20_000), 0.0, 0.0, 0.0
    for rate in rates:
        noise = rng.normal(0, mechanism.noise_std * 2**0.5, len(moved)) / patients
        velocity = momentum * velocity + rate * noise
        moved += velocity
        speed = momentum * speed + rate * mechanism.clip.norm
        along += speed
    found = reach_of_sum(mechanism, 2.0, patients, rates, momentum)
    assert found.noise == pytest.approx(moved.std(), rel=0.02)
    assert found.signal == pytest.approx(along)


def test_a_sum_doubles_the_strength_of_four_equal_hospitals() -> None:
    local = reach(shares([28] * 4, steps=10, rounds=3), [1.0] * 3, 0.0)
    mechanism = mechanism_for(PRIVACY, rounds=30, steps=1, lot=None, declared=28)
    summed = reach_of_sum(mechanism, 1.0, 112, [1.0] * 30, 0.0)
    assert summed.strength(10_000) == pytest.approx(2 * local.strength(10_000), rel=0.01)
