"""Where an unfinished training stands, so that one that was killed goes on from there, bit for bit."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models import checkpoints
from models.checkpoints import CorruptCheckpoint, StoredParams
from models.params import Params

log = logging.getLogger("wardround.models")


@dataclass
class Unfinished:
    """The place of one training's state: a file that its name binds to all that the training depends on.

    Attributes:
        every_s: how many seconds of work may be lost.
    """

    path: Path
    every_s: float
    _kept_at: float = field(default_factory=time.monotonic)

    def read(self) -> Params | None:
        """Return what was kept, None if nothing was or it can't be read."""
        if not self.path.exists():
            return None
        try:
            stored = StoredParams(self.path)
            return {name: stored[name] for name in stored}
        except CorruptCheckpoint:
            log.warning("an unfinished training can't be read and begins anew")
            return None

    def keep(self, state: Callable[[], Params], *, is_last: bool = False) -> None:
        """Keep a state once it is time, or where it `is_last`. A full disk costs the state alone."""
        if not is_last and time.monotonic() - self._kept_at < self.every_s:
            return
        try:
            checkpoints.write(self.path, state())
        except OSError as error:
            log.warning("an unfinished training can't be kept: %s", type(error).__name__)
        self._kept_at = time.monotonic()


def state_of(network: nn.Module, optimizer: Optimizer, step: int) -> dict[str, Tensor]:
    """Return where a training stands after `step` steps; `restore` puts it back."""
    state = {f"network/{name}": tensor for name, tensor in network.state_dict().items()}
    for number, kept in optimizer.state_dict()["state"].items():
        for name, tensor in kept.items():
            if tensor is not None:
                state[f"optimizer/{number}/{name}"] = tensor
    return {**state, "step": torch.tensor(step)}


def restore(network: nn.Module, optimizer: Optimizer, state: Params) -> int:
    """Put network and optimizer where `state_of` found them; return how many steps were taken."""
    named: dict[str, Tensor] = {}
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        kind, _, rest = name.partition("/")
        if kind == "network":
            named[rest] = tensor
        elif kind == "optimizer":
            number, _, key = rest.partition("/")
            moments.setdefault(int(number), {})[key] = tensor
    network.load_state_dict(named)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return int(state["step"])
