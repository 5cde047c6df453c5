"""The libraries' accountants, each a function of a history: Opacus' and Google's dp-accounting.

Importing them takes more than a second, so `privacy.accounting` does it where one is asked for. How they
differ is measured in `tests/privacy/test_accounting.py`.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Literal

import numpy as np
from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.analysis import rdp

History = tuple[tuple[float, float, int], ...]
"""Events as input of the accountants: (noise multiplier, rate, steps); their order does not matter."""

ORDERS = (
    *RDPAccountant.DEFAULT_ALPHAS, *range(64, 128, 8), *range(128, 256, 16), *range(256, 512, 32),
    *range(512, 1025, 64),
)  # fmt: skip
"""Orders of Renyi divergences. Opacus' own end at 63, which wastes most of a budget on small charges."""
LARGE_ORDERS = tuple(2**k for k in range(11, 21))
"""More orders, where a sampled step counts like one over all patients: a bound, by convexity."""


@lru_cache(maxsize=1024)
def _pld(history: History, delta: float) -> float:
    # The library's own grid up to epsilon 10, a coarser one of as many points beyond: with the
    # library's own step an epsilon of some hundreds takes gigabytes.
    interval = 1e-4 * max(1.0, _renyi(history, delta) / 10)
    accountant = PLDAccountant(NeighboringRelation.REPLACE_SPECIAL, interval)
    for noise, rate, steps in history:
        step = GaussianDpEvent(noise)
        accountant.compose(step if rate == 1 else PoissonSampledDpEvent(rate, step), steps)
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=1024)
def _prv(history: History, delta: float) -> float:
    accountant = PRVAccountant()
    accountant.history = list(history)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # overflows in the tails, which Opacus handles
        return float(accountant.get_epsilon(delta))


def _renyi(history: History, delta: float) -> float:
    spent = sum(steps * np.asarray(_renyi_of_a_step(noise, rate)) for noise, rate, steps in history)
    return float(compute_epsilon((*ORDERS, *LARGE_ORDERS), list(np.atleast_1d(spent)), delta)[0])


@lru_cache(maxsize=4096)
def _renyi_of_a_step(noise: float, rate: float) -> tuple[float, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # log(0), which Opacus handles
        found = rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=ORDERS)
    whole = (order / (2 * noise**2) for order in LARGE_ORDERS)
    return tuple(float(value) for value in (*found, *whole))


ACCOUNTANTS: Mapping[Literal["prv", "pld", "rdp"], Callable[[History, float], float]] = {
    "prv": _prv,
    "pld": _pld,
    "rdp": _renyi,
}
