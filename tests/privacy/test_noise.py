import numpy as np
from scipy import stats

from privacy.noise import NoiseSource


def test_noise_is_normal_with_the_deviation_asked_for() -> None:
    noise = NoiseSource.from_system().normal((200, 100), std=2.5).numpy().ravel()
    assert stats.kstest(noise / 2.5, "norm").pvalue > 1e-6
    assert abs(noise.std() / 2.5 - 1) < 0.03


def test_uniform_numbers_fill_the_unit_interval_and_never_are_zero() -> None:
    numbers = NoiseSource.from_system().uniform(100_000)
    assert numbers.min() > 0
    assert numbers.max() <= 1
    assert stats.kstest(numbers, "uniform").pvalue > 1e-6


def test_two_sources_of_the_system_differ() -> None:
    a, b = NoiseSource.from_system().uniform(8), NoiseSource.from_system().uniform(8)
    assert not np.array_equal(a, b)


def test_test_noise_repeats_with_seed_and_purpose_alone() -> None:
    def draw(seed: int, purpose: str) -> list[float]:
        return NoiseSource.for_test(seed, purpose).uniform(4).tolist()

    assert draw(1, "north 1") == draw(1, "north 1")
    assert draw(1, "north 1") != draw(1, "north 2")
    assert draw(1, "north 1") != draw(2, "north 1")


def test_a_source_does_not_repeat_itself() -> None:
    source = NoiseSource.for_test(0, "")
    assert not np.array_equal(source.uniform(16), source.uniform(16))
