"""An update in whole units, with its share of the noise where that is shared, masked for an attempt."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from privacy.ledger_book import is_kind
from privacy.mechanisms import Mechanism
from privacy.secure_aggregation.fixed_point import CHANGE_GRID, MASKED, units_of
from privacy.secure_aggregation.terms import Terms
from privacy.shared_noise import SharedGaussian
from privacy.statements import Masked, Noise
from sites.hospital import Hospital
from sites.orders import Order
from sites.secure_sum.attempt import Attempt, masked_vector, terms_of
from sites.secure_sum.own_share import own_epsilon, smallest_share
from sites.study import Study
from sites.update import CLIPPED, Update


@dataclass(frozen=True)
class MaskedSum:
    """A hospital's part of one attempt at a secure sum."""

    hospital: Hospital
    order: Order
    attempt: Attempt
    mechanism: Mechanism
    rate: float | None = None

    @property
    def study(self) -> Study:
        """The order's study."""
        return self.order.study

    @property
    def terms(self) -> Terms:
        """The terms of the attempt."""
        return terms_of(self.order, len(self.attempt.roster))

    def hidden(self, update: Update) -> tuple[Update, Masked]:
        """Return an update that can be read in the sum alone, and how it is masked.

        A clipped vector gets this hospital's share of the noise here; a change with the full noise is
        weighted by the declared patients.
        """
        honest = own = None
        if self.study.shares_noise:
            shared = SharedGaussian(self.mechanism, update.tensors[CLIPPED].numel(), self.terms.honest)
            units, noise = self._with_share(update, shared)
            honest, own = self.terms.honest, self._own_epsilon(shared)
        else:
            units, noise = self._weighted(update), update.noise
        masked = Masked(
            attempt=self.order.sum_attempt,
            members=self.attempt.shares_sha256,
            rate=self.rate,
            honest=honest,
            own_epsilon=own,
        )
        return Update({MASKED: self._masked(units)}, noise), masked

    def _with_share(self, update: Update, shared: SharedGaussian) -> tuple[NDArray[np.int64], Noise]:
        source, noise = self.hospital.noise(self.order.noise_purpose)
        return shared.noisy(update.tensors[CLIPPED].numpy(), source), noise

    def _weighted(self, update: Update) -> NDArray[np.int64]:
        """Return a change in units, times this hospital's share of the members' declared patients."""
        change = update.tensors
        flat = np.concatenate([change[name].double().numpy().ravel() for name in sorted(change)])
        everybody = sum(peer.weight for peer in self.attempt.roster.values())
        share = self.attempt.roster[self.hospital.name].weight / everybody
        return units_of(flat, CHANGE_GRID, share)

    def _masked(self, units: NDArray[np.int64]) -> torch.Tensor:
        vector = masked_vector(units, self.hospital.name, self.attempt, self.terms)
        return torch.from_numpy(vector.view(np.int32))

    def _own_epsilon(self, shared: SharedGaussian) -> float:
        """Return what the run would have cost so far with this hospital's noise alone."""
        ledger, run = self.hospital.ledger, self.order.run
        charges = [c for c in ledger.charges(run) if c.event is not None]
        count = sum(is_kind(charge.purpose, "contribute") for charge in charges)
        smallest = smallest_share(self.hospital, run, self.mechanism, shared.numel, shared.honest)
        return own_epsilon(self.hospital, self.study, smallest, count)
