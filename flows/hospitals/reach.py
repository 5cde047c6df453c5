"""Whether a hospital reaches its coordinator: Prefect's API and the exchange, with its own passwords.

A worker that can't get in would say that it has started, and never work.
"""

import os
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from models.errors import FixYourInput
from sites.exchange.exchange import Exchange
from sites.exchange.storage import AUTH, StorageFailed
from sites.policy.policy import CoordinatorConfig

TIMEOUT_S = 10.0
API_AUTH = "PREFECT_API_AUTH_STRING"
CERTIFICATE = "its certificate is not trusted here: set SSL_CERT_FILE to its authority's certificate"
NOT_YET, EXPIRED = 9, 10
"""OpenSSL's codes of a certificate that is not valid yet, or no more: a clock, or the coordinator's."""


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
    check_addresses(coordinator)
    found = list(reached(name, coordinator))
    if final := [str(each) for each in found if each.is_final]:
        raise NotLetIn(" ".join(f"{each}." for each in final))
    yield from (str(each) for each in found if each.problem)


def check_addresses(coordinator: CoordinatorConfig) -> None:
    """Raise `NotLetIn` for an address that holds a password: it would stand in messages and logs."""
    for key, address in (("exchange", coordinator.exchange), ("api", coordinator.api)):
        if "@" in urlsplit(address).netloc and address.startswith("http"):
            variable = AUTH if key == "exchange" else API_AUTH
            raise NotLetIn(
                f"site.yaml: coordinator.{key}: expected an address without a name and a password, "
                f"which belong in {variable}; got one with them."
            )


def tried(what: str, address: str, secret: str, attempt: Callable[[], str]) -> Reach:
    """Return whether an attempt to use an address succeeds, or why not; `attempt` returns the date."""
    try:
        return Reach(what, address, date=attempt())
    except (OSError, httpx.HTTPError) as error:  # among them faults of certificates, ValueErrors too
        status = _status(error)
        if status == httpx.codes.UNAUTHORIZED:
            how = f"{secret} has another password" if os.environ.get(secret) else f"{secret} is not set"
            return Reach(what, address, f"not let in ({status}): {how}", is_final=True)
        if _is_certificate(error):
            return _certificate(what, address, error)
        return Reach(what, address, f"out of reach: {error}")
    except (httpx.InvalidURL, ValueError) as error:
        return Reach(what, address, f"can't be used: {error}", is_final=True)


def _certificate(what: str, address: str, error: Exception) -> Reach:
    codes = {getattr(each, "verify_code", None) for each in _causes(error)}
    text = " ".join(map(str, _causes(error)))
    if NOT_YET in codes or "not yet valid" in text:
        return Reach(what, address, "its certificate is not valid yet: is this machine's clock right?")
    if EXPIRED in codes or "has expired" in text:
        return Reach(what, address, "its certificate has expired: the coordinator has to renew it")
    return Reach(what, address, CERTIFICATE, is_final=True)


def _orders(exchange: str, name: str) -> str:
    Exchange(exchange).orders_of(name)
    return ""


def _version(api: str) -> str:
    user, _, password = os.environ.get(API_AUTH, "").partition(":")
    answer = httpx.get(f"{api}/version", auth=(user, password), timeout=TIMEOUT_S, verify=_trusted())
    return str(answer.raise_for_status().headers.get("Date", ""))


def _trusted() -> ssl.SSLContext:
    """Return what Prefect's client trusts: the system's authorities, or those in a named file."""
    file = os.environ.get("PREFECT_API_SSL_CERT_FILE") or os.environ.get("SSL_CERT_FILE")
    return ssl.create_default_context(cafile=file or None)


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
