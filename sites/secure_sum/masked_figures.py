"""Metrics and statistics that leave in the sum over all hospitals alone, with a share of its noise."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from privacy.accounting import Budget, epsilon
from privacy.ledger import Charge
from privacy.noise.noised import own_event, shared_sums
from privacy.noise.source import NoiseSource
from privacy.release import MOST_EPSILON, Masked
from sites.hospital import Hospital
from sites.orders import Order, check_in_time
from sites.secure_sum.attempt import masked_vector, terms_of
from sites.secure_sum.figures import event_of
from sites.secure_sum.steps import take_shares
from sites.study_sections import SumKind

Rows = Callable[[frozenset[str]], NDArray[np.float64]]
"""Function from the patients who are charged to their numbers `(P, D)`, each from 0 to 1."""


@dataclass(frozen=True)
class SummedFigures:
    """A hospital's part in one sum of figures.

    Attributes:
        sensitivity: the largest L2 norm of a patient's row.
    """

    hospital: Hospital
    order: Order
    kind: SumKind
    sensitivity: float

    def hidden(
        self, act: Charge, eligible: frozenset[str], limit: Budget, rows: Rows
    ) -> tuple[Charge, Masked, tuple[int, ...]]:
        """Charge the patients, and return their masked sums with a share of the noise.

        Raises:
            BudgetExceeded: the charge is above `limit`, or the budget; nothing was charged.
        """
        hospital, study = self.hospital, self.order.study
        attempt = take_shares(hospital, self.order)
        terms, event = terms_of(self.order, len(attempt.roster)), event_of(study, self.kind)
        charge = replace(act, event=event)
        check_in_time(self.order)
        charged = hospital.ledger.reserve(charge, eligible, limit)
        hospital.ledger.start(charge)
        source = self._noise()
        units = shared_sums(rows(charged), event, self.sensitivity, source, terms.honest)
        vector = masked_vector(units, hospital.name, attempt, terms)
        alone = epsilon(
            [own_event(event, self.sensitivity, terms.honest)], limit.delta, hospital.ledger.rule
        )
        masked = Masked(
            attempt=self.order.sum_attempt,
            members=attempt.shares_sha256,
            honest=terms.honest,
            own_epsilon=min(alone, MOST_EPSILON),
        )
        return charge, masked, tuple(int(each) for each in vector)

    def _noise(self) -> NoiseSource:
        source, _ = self.hospital.noise(f"{self.order.noise_purpose} {self.kind} {self.order.run}")
        return source
