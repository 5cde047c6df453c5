"""Raw update: the result of a hospital's round, before it passes the one door (`sites.export`)."""

from dataclasses import dataclass

from models import params as P
from models.params import Params
from privacy.statements import Noise

CLIPPED = "clipped"
"""Name of the one tensor of an update that is summed with shared noise: float64 `(d,)`."""


@dataclass(frozen=True)
class Update:
    """The tensors of a round at one hospital. Only `sites.export` turns them into a release.

    Guarantees: an import contract keeps `flows` from importing this type and the code that makes one.
    So a raw update cannot bypass the outbox and the ledger.

    Attributes:
        tensors: the change of shared layers, or packed predictions; not finite where training diverged.
        noise: the source of the noise in the tensors, as a manifest states it.
    """

    tensors: Params
    noise: Noise

    @property
    def is_finite(self) -> bool:
        """True if every value is finite; training that diverged has nothing to release."""
        return P.all_finite(self.tensors)
