"""Soft predictions as they leave: eight bits of the teacher's answers, and one ensemble of them."""

import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy import predictions


def logits(*shape: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from([(3, 2), (4, 3), (2, 3, 5, 4), (2, 2, 3, 3, 3), (5, 2, 14)]),
    seed=st.integers(0, 10**6),
    scale=st.floats(0.1, 30),
    temperature=st.floats(0.5, 5),
)
def test_probabilities_come_back_to_within_their_eight_bits(shape, seed, scale, temperature) -> None:
    answer = logits(*shape, seed=seed, scale=scale)
    packed = predictions.to_tensors(answer, temperature)[predictions.NAME]
    back = predictions.from_tensors(packed, shape, temperature)
    soft, again = ((x / temperature).softmax(1) for x in (answer, back))
    assert again.shape == soft.shape
    assert (again - soft).abs().max() < shape[1] / predictions.LEVELS


def test_they_take_a_fraction_of_the_answers_size() -> None:
    confident = logits(8, 3, 16, 16, 16, scale=1.0)
    confident[:, 0] += 20  # background nearly everywhere, as in a segmentation
    packed = predictions.to_tensors(confident, 2.0)[predictions.NAME]
    assert packed.numel() < confident.numel() * confident.element_size() / 50


@pytest.mark.parametrize(
    "content",
    [
        zlib.compress(bytes(10)),
        zlib.compress(bytes(13)),
        zlib.compress(bytes(10**8)),
        zlib.compress(bytes(12))[:-3],
        b"nothing of the kind",
        b"",
    ],
    ids=["too few", "too many", "a bomb", "cut off", "garbage", "empty"],
)
def test_anything_else_is_refused_before_it_is_unpacked(content: bytes) -> None:
    packed = torch.from_numpy(np.frombuffer(content, np.uint8).copy())
    with pytest.raises(ValueError, match="predictions"):
        predictions.from_tensors(packed, (6, 3), 2.0)


def test_an_ensemble_is_the_mean_by_declared_patients() -> None:
    a, b = logits(4, 3, 2, seed=1), logits(4, 3, 2, seed=2)
    mean = predictions.ensemble([(30, a), (10, b)], "declared")
    assert torch.allclose(mean, (30 * a + 10 * b) / 40)


def test_with_confidence_a_hospital_that_knows_nothing_of_an_image_hardly_counts() -> None:
    certain = torch.tensor([[8.0, 0.0], [0.0, 0.0]])
    other = torch.tensor([[0.0, 0.0], [0.0, 8.0]])
    mean = predictions.ensemble([(10, certain), (10, other)], "confidence")
    assert torch.allclose(mean, torch.tensor([[8.0, 0.0], [0.0, 8.0]]), atol=0.02)


def test_nobodys_answers_are_no_ensemble() -> None:
    with pytest.raises(ValueError, match="at least one"):
        predictions.ensemble([], "declared")
