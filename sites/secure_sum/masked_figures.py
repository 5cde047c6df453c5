"""Metrics and statistics that leave in the sum over all hospitals alone, with a share of its noise."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from privacy.accounting import epsilon
from privacy.ledger import Charge
from privacy.ledger_book import is_kind
from privacy.noise.noised import SharedSums
from privacy.statements import MOST_EPSILON, Masked
from sites.hospital import Hospital
from sites.orders import Order, check_in_time
from sites.secure_sum.attempt import masked_vector, terms_of
from sites.secure_sum.figures import budget_of, check_figures, event_of
from sites.secure_sum.steps import take_shares

Rows = Callable[[frozenset[str]], NDArray[np.float64]]
"""Function from the patients who are charged to their numbers `(P, D)`, each from 0 to 1."""


@dataclass(frozen=True)
class SummedFigures:
    """A hospital's part in one sum of figures.

    Attributes:
        sensitivity: the largest L2 norm of a patient's row.
        numel: the length of a row.
    """

    hospital: Hospital
    order: Order
    sensitivity: float
    numel: int

    def hidden(
        self, act: Charge, eligible: frozenset[str], rows: Rows
    ) -> tuple[Charge, Masked, tuple[int, ...]]:
        """Charge the patients, and return their masked sums with a share of the noise.

        Raises:
            Refused: the policy lets no such figures leave.
            BudgetExceeded: the charge is above what the study says, or the budget; nothing was charged.
        """
        hospital, study, kind = self.hospital, self.order.study, self.order.sum_kind
        check_figures(hospital, self.order, act)
        attempt = take_shares(hospital, self.order)
        terms, budget = terms_of(self.order, len(attempt.roster)), budget_of(study, kind)
        patients = sum(peer.weight for peer in attempt.roster.values())
        shared = SharedSums(event_of(study, kind), self.sensitivity, self.numel, terms.honest, patients)
        charge = replace(act, event=shared.event)
        check_in_time(self.order)
        charged = hospital.ledger.reserve(charge, eligible, budget)
        hospital.ledger.start(charge)
        source, _ = hospital.noise(f"{self.order.noise_purpose} {kind} {self.order.run}")
        units = shared.noisy(rows(charged), source)
        vector = masked_vector(units, hospital.name, attempt, terms)
        paid = [c for c in hospital.ledger.charges(self.order.run) if is_kind(c.purpose, act.purpose)]
        alone = epsilon([shared.own_event] * len(paid), budget.delta, hospital.ledger.rule)
        masked = Masked(
            attempt=self.order.sum_attempt,
            members=attempt.shares_sha256,
            honest=terms.honest,
            own_epsilon=min(alone, MOST_EPSILON),
        )
        return charge, masked, tuple(int(each) for each in vector)
