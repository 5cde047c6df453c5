import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privacy.noise.source import NoiseSource


def test_uniform_numbers_fill_the_unit_interval_and_never_are_zero() -> None:
    numbers = NoiseSource.from_system().uniform(100_000)
    assert numbers.min() > 0
    assert numbers.max() <= 1
    assert stats.kstest(numbers, "uniform").pvalue > 1e-6


@given(st.lists(st.integers(0, 90), min_size=1, max_size=12), st.sampled_from([64, 128, 1024]))
def test_the_stream_goes_on_under_the_next_nonce_and_never_repeats(
    counts: list[int], segment: int
) -> None:
    key, total = bytes(range(32)), 8 * sum(counts)
    source = NoiseSource(key, segment)
    drawn = np.concatenate([source.uniform(count) for count in counts])
    ciphers = (
        Cipher(ChaCha20(key, bytes(4) + number.to_bytes(12, "little")), mode=None).encryptor()
        for number in range(total // segment + 1)
    )
    due = b"".join(cipher.update(bytes(segment)) for cipher in ciphers)[:total]
    words = np.frombuffer(due, dtype=np.uint64)
    assert np.array_equal(drawn, ((words >> np.uint64(11)).astype(np.float64) + 1) * 2.0**-53)
    assert len(set(words.tolist())) == len(words)


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
