"""A raw update: what a hospital learned in a round, before it passes the one door (`sites.export`)."""

from dataclasses import dataclass

from models import params as P
from models.params import Params
from privacy.release import Noise


@dataclass(frozen=True)
class Update:
    """The tensors of a round at one hospital. Only `sites.export` makes a release of it.

    Guarantees: no module of `flows` can import this type or what makes one (an import contract holds
    that), so a raw update has no way past the outbox and the ledger.

    Attributes:
        tensors: the change of shared layers, or packed predictions; not finite where training diverged.
        noise: the source of the noise in them, as a manifest states it.
    """

    tensors: Params
    noise: Noise

    @property
    def is_finite(self) -> bool:
        """Whether every value is finite; a training that diverged has nothing to release."""
        return P.all_finite(self.tensors)
