"""Releases in eight bits: a quarter of the bytes, and on average the same values.

Each tensor is counted in 127 steps up to its own largest value, up or down at random so that the mean is
the value itself (Alistarh et al. 2017, QSGD, section 3.1, https://arxiv.org/abs/1610.02132). It happens
to a change that privacy has been paid for, noise included, with public randomness: post-processing,
which costs nothing (Dwork and Roth 2014, proposition 2.1, https://doi.org/10.1561/0400000042).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from models.checkpoints import StoredParams
from models.errors import CorruptCheckpoint
from models.params import Params

STEPS = 127
SCALE = "/scale"
"""Ends the name of the tensor with the size of one step of another tensor."""


def to_eight_bits(params: Params, rng: torch.Generator) -> dict[str, Tensor]:
    """Return parameters as whole numbers of steps, `int8`, and beside each the size of its steps.

    Args:
        params: finite values.
        rng: draws which way each value is rounded; it is not secret.

    >>> found = to_eight_bits({"w": torch.tensor([0.0, 1.27, -0.5])}, torch.Generator())
    >>> found["w"].tolist(), round(float(found["w/scale"]), 4)
    ([0, 127, -50], 0.01)
    """
    found = {}
    for name in sorted(params):  # whatever their order, the same draws
        value = params[name].detach().double().cpu()
        scale = (value.abs().max() / STEPS if value.numel() else value.sum()).float()
        counts = value / scale.double() if scale > 0 else torch.zeros_like(value)
        up = torch.rand(value.shape, generator=rng, dtype=torch.double)
        # what is a whole number but for the last bits stays that number
        whole = counts.round()
        counts = torch.where((counts - whole).abs() < 1e-6, whole, (counts + up).floor())
        found[name] = counts.clamp(-STEPS, STEPS).to(torch.int8)
        found[name + SCALE] = scale
    return found


@dataclass(frozen=True)
class EightBits(Mapping[str, Tensor]):
    """The parameters that a file holds in eight bits, read lazily as `StoredParams` are."""

    stored: StoredParams

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter."""
        return {name: at for name, at in self.stored.shapes.items() if not name.endswith(SCALE)}

    def check(self) -> None:
        """Raise `CorruptCheckpoint` unless the file holds parameters in eight bits, and nothing else."""
        kinds = dict.fromkeys(self.shapes, "I8") | {name + SCALE: "F32" for name in self.shapes}
        if self.stored.dtypes != kinds:
            raise CorruptCheckpoint("Expected tensors in eight bits, each with the size of its steps.")
        for name in self.shapes:
            shape = self.stored.shapes[name + SCALE]
            if shape or not 0 <= float(self.stored[name + SCALE]) < torch.inf:
                raise CorruptCheckpoint(f"Expected one finite size of the steps of {name!r}.")

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        return self._values(name, self.stored[name])

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return rows `start` to `stop` of a tensor along its first axis, reading only those."""
        return self._values(name, self.stored.rows(name, start, stop))

    def _values(self, name: str, counts: Tensor) -> Tensor:
        return counts.float() * self.stored[name + SCALE]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)
