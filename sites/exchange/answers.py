"""Answers in an exchange: whether a hospital has answered an order."""

from typing import Protocol

from sites.exchange.exchange import Exchange
from sites.exchange.phases import refusal_of
from sites.exchange.places import Place


class Asked(Protocol):
    """What of an order says where its answer is."""

    @property
    def run(self) -> str:
        """The name of the run."""
        ...

    @property
    def round(self) -> int:
        """The number of the round."""
        ...

    @property
    def site(self) -> str:
        """The hospital that is asked."""
        ...

    @property
    def act(self) -> str:
        """The purpose of the answer."""
        ...

    @property
    def attempt(self) -> int:
        """The number of the coordinator's start."""
        ...


def is_answered(exchange: Exchange, order: Asked, public_key: str) -> bool:
    """Return whether the exchange holds the hospital's answer to an order, or its refusal of it.

    Args:
        public_key: the hospital's key; what others left at its places is no answer.
    """
    acts = (order.act, refusal_of(order.act, order.attempt))
    places = (Place.statement(order.run, order.round, act, order.site) for act in acts)
    return any(exchange.signed_answer(place, [public_key]) is not None for place in places)
