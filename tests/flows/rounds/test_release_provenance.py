"""Whose release is it? The attack on changes, where hospitals differ and where they don't."""

import pytest
import torch

from flows.rounds.release_provenance import guessed


def _changes(apart: float, seed: int, dim: int = 200):
    rng = torch.Generator().manual_seed(seed)
    own = {site: torch.randn(dim, generator=rng) for site in ("a", "b", "c", "d")}
    return [{s: apart * o + torch.randn(dim, generator=rng) for s, o in own.items()} for _ in range(6)]


def test_hospitals_with_directions_of_their_own_are_told_apart() -> None:
    found = guessed(_changes(1.0, 0))
    assert (found.right, found.guesses) == (20, 20)
    assert found.chance == 0.25
    assert found.low > 0.8


def test_changes_of_noise_alone_are_told_apart_by_chance() -> None:
    rounds = [guessed(_changes(0.0, seed)) for seed in range(20)]
    right, of = sum(r.right for r in rounds), sum(r.guesses for r in rounds)
    assert right / of == pytest.approx(0.25, abs=0.07)


def test_one_round_or_one_hospital_gives_no_guess() -> None:
    one = _changes(1.0, 0)[:1]
    assert guessed(one) is None
    assert guessed([{"a": torch.ones(3)}, {"a": torch.ones(3)}]) is None


def test_a_hospital_that_was_never_seen_before_is_not_guessed() -> None:
    rounds = _changes(1.0, 0)
    first = {site: rounds[0][site] for site in ("a", "b")}
    found = guessed([first, rounds[1]])
    assert found.guesses == 2 and found.chance == 0.5
