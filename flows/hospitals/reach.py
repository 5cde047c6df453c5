"""Whether a hospital reaches its coordinator: Prefect's API and the exchange, with its own passwords.

A worker that can't get in would say that it has started, and never work.
"""

import os
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx

from models.errors import FixYourInput
from sites.exchange.exchange import Exchange
from sites.exchange.storage import AUTH, StorageFailed
from sites.policy.policy import CoordinatorConfig

TIMEOUT_S = 10.0
API_AUTH = "PREFECT_API_AUTH_STRING"
CERTIFICATE = "its certificate is not trusted here: set SSL_CERT_FILE to its authority's certificate"


class NotLetIn(FixYourInput):
    """The coordinator answers, and does not let this hospital in; waiting would not help."""

    next_step = "correct the password or the certificate that the message names, then start again."


@dataclass(frozen=True)
class Reach:
    """One address that a hospital needs.

    Attributes:
        problem: why it can't be used now; empty if it can.
        is_final: whether only a person can mend that; otherwise it may be right later.
        date: the server's clock, as HTTP sends it; empty where it sent none.
    """

    what: str
    address: str
    problem: str = ""
    is_final: bool = False
    date: str = ""

    def __str__(self) -> str:
        return f"{self.what}, {self.address}: {self.problem or 'within reach'}"


def reached(name: str, coordinator: CoordinatorConfig) -> Iterator[Reach]:
    """Try a hospital's addresses with its passwords: the exchange, then Prefect's API."""
    exchange = coordinator.exchange
    yield tried("exchange", exchange, AUTH, lambda: _orders(exchange, name))
    yield tried("Prefect's API", coordinator.api, API_AUTH, lambda: _version(coordinator.api))


def check_reach(name: str, coordinator: CoordinatorConfig) -> Iterator[str]:
    """Yield what can't be reached now, in words; a worker keeps trying it.

    Raises:
        NotLetIn: a password or a certificate is wrong, so that trying again would not help.
    """
    found = list(reached(name, coordinator))
    if final := [str(each) for each in found if each.is_final]:
        raise NotLetIn(" ".join(f"{each}." for each in final))
    yield from (str(each) for each in found if each.problem)


def tried(what: str, address: str, secret: str, attempt: Callable[[], str]) -> Reach:
    """Return whether an attempt to use an address succeeds, or why not; `attempt` returns the date."""
    try:
        return Reach(what, address, date=attempt())
    except (OSError, ValueError, httpx.HTTPError) as error:
        status = _status(error)
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            how = f"{secret} has another password" if os.environ.get(secret) else f"{secret} is not set"
            return Reach(what, address, f"not let in ({status}): {how}", is_final=True)
        if _is_certificate(error):
            return Reach(what, address, CERTIFICATE, is_final=True)
        return Reach(what, address, f"out of reach: {error}")


def _orders(exchange: str, name: str) -> str:
    Exchange(exchange).orders_of(name)
    return ""


def _version(api: str) -> str:
    user, _, password = os.environ.get(API_AUTH, "").partition(":")
    answer = httpx.get(f"{api}/version", auth=(user, password), timeout=TIMEOUT_S)
    return str(answer.raise_for_status().headers.get("Date", ""))


def _status(error: Exception) -> int | None:
    """Return the status with which a server answered, None if it did not answer."""
    for each in _causes(error):
        if isinstance(each, httpx.HTTPStatusError):
            return each.response.status_code
        if isinstance(each, StorageFailed) and each.status:
            return each.status
    return None


def _is_certificate(error: Exception) -> bool:
    """Return whether a certificate is the reason, also where a library wraps it in errors of its own."""
    return any(
        isinstance(each, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(each)
        for each in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
