"""The stored state of an unfinished training, so that a killed training continues, bit for bit."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models import checkpoints
from models.checkpoints import StoredParams
from models.errors import CorruptCheckpoint
from models.params import Params, load_into

log = logging.getLogger("wardround.models")


@dataclass
class Unfinished:
    """The file of one training's state; its name depends on everything that the training depends on.

    Attributes:
        every_s: the seconds of work that may be lost.
    """

    path: Path
    every_s: float
    _kept_at: float = field(default_factory=time.monotonic)

    def read(self) -> Params | None:
        """Return the stored state; None if there is none or it can't be read."""
        if not self.path.exists():
            return None
        try:
            stored = StoredParams(self.path)
            return {name: stored[name] for name in stored}
        except CorruptCheckpoint:
            log.warning("the state of an unfinished training can't be read; the training starts again")
            return None

    def keep(self, state: Callable[[], Params], *, is_last: bool = False) -> None:
        """Store a state every `every_s` seconds, or if it `is_last`; a full disk is only logged."""
        if not is_last and time.monotonic() - self._kept_at < self.every_s:
            return
        try:
            checkpoints.write(self.path, state())
        except OSError as error:
            log.warning("the state of an unfinished training can't be stored: %s", type(error).__name__)
        self._kept_at = time.monotonic()


def state_of(network: nn.Module, optimizer: Optimizer, step: int) -> dict[str, Tensor]:
    """Return the state of a training after `step` steps, for `restore`."""
    # by parameter, and not by state_dict, where a layer that two modules hold has two names
    state = {f"network/{name}": each.detach() for name, each in network.named_parameters()}
    for number, kept in optimizer.state_dict()["state"].items():
        for name, tensor in kept.items():
            if tensor is not None:
                state[f"optimizer/{number}/{name}"] = tensor
    return {**state, "step": torch.tensor(step)}


def restore(network: nn.Module, optimizer: Optimizer, state: Params) -> int:
    """Load a state from `state_of` into network and optimizer; return the number of steps taken."""
    named: dict[str, Tensor] = {}
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        kind, _, rest = name.partition("/")
        if kind == "network":
            named[rest] = tensor
        elif kind == "optimizer":
            number, _, key = rest.partition("/")
            moments.setdefault(int(number), {})[key] = tensor
    load_into(network, named)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return int(state["step"])
