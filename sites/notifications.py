"""Calls a person: something waits for him, or needs a look. It tells public names and numbers alone."""

import logging
import os
import threading
from collections.abc import Mapping
from urllib.parse import urlsplit

import httpx

from sites.exchange.storage import LOOPBACK

WEBHOOK = "WARDROUND_WEBHOOK"
"""The environment's variable with the address to which a call is posted, such as a chat's."""

TIMEOUT_S = 10

log = logging.getLogger("wardround.site")


def call(what: str, text: str, **told: str | int | float) -> None:
    """Post `{"text": ..., "what": ..., **told}` to whoever is to be called, if anybody.

    A call that does not arrive costs nothing but itself: whatever it was about is on record elsewhere.
    """
    address = os.environ.get(WEBHOOK)
    if not address:
        return
    threading.Thread(target=_post, args=(address, {"text": text, "what": what, **told})).start()


def _post(address: str, told: Mapping[str, str | int | float]) -> None:
    try:
        parts = urlsplit(address)
        if parts.scheme != "https" and parts.hostname not in LOOPBACK:
            log.warning("%s: expected an https address; nobody was called", WEBHOOK)
            return
        httpx.post(address, json=told, timeout=TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        log.warning("nobody could be called: %s", type(error).__name__)
