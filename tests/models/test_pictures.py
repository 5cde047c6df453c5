"""Overlays: the worst case first, in the slice that shows most of it."""

import numpy as np

from models.pictures import PicturedCase, overlay_grid, worst_first


def case(name: str, dice: float, level: float = 1.0) -> PicturedCase:
    truth = np.zeros((12, 10, 8), dtype=np.int64)
    truth[3:8, 2:6, 5] = 1
    truth[4:6, 3:5, 2] = 2
    return PicturedCase(name, level * truth.astype(np.float32), truth, np.roll(truth, 1, 0), dice)


def test_the_worst_case_comes_first_and_equal_ones_by_name() -> None:
    cases = [case("c", 0.9), case("b", 0.1), case("a", 0.1)]
    assert [each.name for each in worst_first(cases)] == ["a", "b", "c"]


def test_a_picture_is_the_same_each_time_and_shows_what_changes() -> None:
    labels = {1: "head", 2: "tail"}
    drawn = [np.asarray(overlay_grid([case("a", 0.5, level)], labels, "t")) for level in (1, 1, -1)]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert drawn[0].ndim == 3 and drawn[0].std() > 10


def test_flat_images_are_drawn_too() -> None:
    flat = PicturedCase("x", np.eye(9), np.eye(9, dtype=int), np.zeros((9, 9), int), 0.0)
    assert np.asarray(overlay_grid([flat], {1: "line"}, "t")).shape[2] == 3
