"""Eight bits of a number are right on average, within a step, and a quarter of the bytes."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import checkpoints
from models import params as P
from models.checkpoints import StoredParams
from models.errors import CorruptCheckpoint
from privacy.eight_bits import STEPS, EightBits, to_eight_bits


def kept(path: Path, params: P.Params, seed: int = 0) -> EightBits:
    checkpoints.write(path, to_eight_bits(params, torch.Generator().manual_seed(seed)))
    found = EightBits(StoredParams(path))
    found.check()
    return found


def test_the_mean_over_many_roundings_is_the_value_itself(tmp_path: Path) -> None:
    value = torch.tensor([1.0, 0.3, -0.0031, 0.0, -0.777])
    step = 1 / STEPS
    draws = [kept(tmp_path / "x", {"w": value}, seed)["w"] for seed in range(400)]
    mean = torch.stack(draws).mean(0)
    # a rounding deviates by at most half a step; five standard errors of 400 of them
    assert torch.allclose(mean, value, atol=5 * step / 2 / 400**0.5)
    assert all((draw - value).abs().max() <= step for draw in draws)
    assert len({tuple(draw.tolist()) for draw in draws}) > 1


@given(
    st.lists(st.floats(-(2.0**90), 2.0**90, width=32), max_size=40),
    st.integers(0, 2**31),
)
def test_no_value_moves_by_more_than_a_step_and_the_largest_stays(
    values: list[float], seed: int
) -> None:
    params = {"w": torch.tensor(values, dtype=torch.float32)}
    found = to_eight_bits(params, torch.Generator().manual_seed(seed))
    assert found["w"].dtype == torch.int8
    scale = float(found["w/scale"])
    back = found["w"].double() * scale
    assert ((back - params["w"].double()).abs() <= scale * (1 + 1e-6)).all()
    if scale > 0:
        assert int(found["w"].abs().max()) == STEPS


def test_a_file_of_eight_bits_reads_as_parameters_of_a_quarter_of_the_bytes(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(1)
    params = {"a": torch.randn(200, 50, generator=rng), "b": torch.randn(7, generator=rng)}
    found = kept(tmp_path / "x", params)
    plain = checkpoints.to_bytes(params)
    assert (tmp_path / "x").stat().st_size < len(plain) / 4 + 600
    assert found.shapes == {"a": (200, 50), "b": (7,)}
    assert list(found) == ["a", "b"] and "a/scale" not in found
    assert torch.equal(found.rows("a", 20, 30), found["a"][20:30])
    with pytest.raises(KeyError):
        found["a/scale"]
    P.check_like(found, params)
    mean = P.weighted_mean([(1.0, found), (3.0, found)])
    assert torch.allclose(mean["a"], found["a"])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": torch.ones(3)}, "in eight bits"),
        ({"a": torch.ones(3, dtype=torch.int8)}, "in eight bits"),
        ({"a/scale": torch.tensor(1.0)}, "in eight bits"),
        ({"a": torch.ones(3).char(), "a/scale": torch.ones(1)}, "one finite size"),
        ({"a": torch.ones(3).char(), "a/scale": torch.tensor(torch.nan)}, "one finite size"),
        ({"a": torch.ones(3).char(), "a/scale": torch.tensor(torch.inf)}, "one finite size"),
        ({"a": torch.ones(3).char(), "a/scale": torch.tensor(-1.0)}, "one finite size"),
        ({"a": torch.ones(3).char(), "a/scale": torch.tensor(1.0).double()}, "in eight bits"),
    ],
)
def test_what_is_not_in_eight_bits_is_rejected(
    tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    checkpoints.write(tmp_path / "x", tensors)
    with pytest.raises(CorruptCheckpoint, match=message):
        EightBits(StoredParams(tmp_path / "x")).check()
