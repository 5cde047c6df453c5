"""The coordinator's orders to hospitals. An order holds public values only."""

import time
from typing import Annotated, Literal

from pydantic import Field

from models.config import Config
from models.objectives import Name
from sites.exchange.exchange import Exchange
from sites.exchange.places import Place
from sites.study import Study

Phase = Literal["check", "survey", "join", "contribute", "evaluate", "compare"]
RunName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,99}$")]
PROTOCOL = 1
"""What orders and statements look like. Raised whenever a hospital and a coordinator of different code
could misunderstand each other; then neither does anything until the older one is upgraded."""


def refusal_of(phase: Phase, attempt: int) -> str:
    """Return the name under which a refusal of a phase is recorded and laid down.

    >>> refusal_of("contribute", 2)
    'contribute-refused-2'
    """
    return f"{phase}-refused-{attempt}"


class Order(Config):
    """What the coordinator asks of a hospital: public values only.

    Attributes:
        site: the hospital that is asked.
        attempt: counts the coordinator's starts of this run. A refusal holds for its attempt, so
            that a hospital which was put right can take part when the run goes on.
        exchange: where to read the global model and to lay down the answer.
        coordinator: the coordinator's public key, which the hospital's policy names or which it pins on
            first contact.
        protocol: in which the coordinator speaks.
        models: of which hospitals the released models are to be compared.
        expires_ms: when the answer is too late to count, in milliseconds since 1970; None where whoever
            asks waits for it.
    """

    phase: Phase
    study: Study
    site: Name
    run: RunName
    round: Annotated[int, Field(ge=0)]
    attempt: Annotated[int, Field(ge=1)]
    exchange: str
    coordinator: str
    protocol: int = PROTOCOL
    models: tuple[Name, ...] = ()
    expires_ms: int | None = None


class Expired(Exception):
    """The order's answer would be too late to count, so nothing is begun and nothing spent for it."""


def check_in_time(order: Order) -> None:
    """Raise `Expired` once an order's answer would be too late."""
    if order.expires_ms is not None and time.time() * 1000 >= order.expires_ms:
        raise Expired("the order has expired")


def is_answered(exchange: Exchange, order: Order) -> bool:
    """Return whether the answer to an order lies in the exchange, or its hospital's refusal."""
    acts = (order.phase, refusal_of(order.phase, order.attempt))
    places = (Place.statement(order.run, order.round, act, order.site) for act in acts)
    return any(exchange.statement(place) is not None for place in places)
