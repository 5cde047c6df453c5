"""Opponents of a network in training: one changes images against it, one guesses the training patients.

The attack on a scan uses that scan, its target and the network alone, so a patient's gradient on
attacked images depends on no other patient, and clipping bounds it as before. The attacker who guesses
learns from all patients at once, so this attacker is for training without differential privacy.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.settings.opponents import AttackConfig

Loss = Callable[[Tensor, Tensor], Tensor]
"""`(logits (N, ...), targets (N, ...)) -> (N,)`."""


def attacked(
    network: nn.Module, loss: Loss, images: Tensor, targets: Tensor, config: AttackConfig
) -> Tensor:
    """Return `images` `(N, 1, *spatial)`, each changed so that its own loss grows."""
    steps = 1 if config.kind == "fgsm" else config.steps
    length = config.radius if config.kind == "fgsm" else 2.5 * config.radius / steps
    changed = images.detach()
    for _ in range(steps):
        changed.requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(network(changed), targets).sum(), changed)
        moved = changed.detach() + length * gradient.sign()
        changed = torch.minimum(torch.maximum(moved, images - config.radius), images + config.radius)
    return changed.detach()


class MembershipAttacker:
    """A small network that guesses from `signals` whether a scan was trained on."""

    def __init__(self, rng: torch.Generator) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**31, (), generator=rng)))
            layers = [nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)]
            self._guess = nn.Sequential(*layers)
        self._optimizer = torch.optim.Adam(self._guess.parameters(), lr=1e-2)

    def learn(self, members: Tensor, strangers: Tensor) -> None:
        """Take one step to separate `members` `(N, 3)` from `strangers` `(M, 3)` by their signals."""
        self._optimizer.zero_grad()
        right = functional.logsigmoid(self._guess(members.detach())).mean()
        right = right + functional.logsigmoid(-self._guess(strangers.detach())).mean()
        torch.autograd.backward(-right / 2)
        self._optimizer.step()

    def gain(self, members: Tensor) -> Tensor:
        """Return each member's part of the attacker's gain, log h / 2, `(N,)`: 0 if certain."""
        own: Tensor = functional.logsigmoid(self._guess(members)).squeeze(1) / 2
        return own


def signals(losses: Tensor, logits: Tensor) -> Tensor:
    """Return the attacker's input for each scan, `(N, 3)`: its loss, mean confidence and mean entropy.

    Args:
        logits: `(N, C, ...)`, of classes of which exactly one is true.
    """
    log_probs = logits.log_softmax(1)
    confidence = log_probs.exp().amax(1).reshape(len(logits), -1).mean(1)
    entropy = -(log_probs.exp() * log_probs).sum(1).reshape(len(logits), -1).mean(1)
    return torch.stack([losses, confidence, entropy], 1)
