"""Webhook calls to a person: something waits for them or needs attention. Only public facts are sent."""

import logging
import os
import threading
from collections.abc import Mapping
from urllib.parse import urlsplit

import httpx

from sites.exchange.storage import LOOPBACK

WEBHOOK = "WARDROUND_WEBHOOK"
"""Environment variable with the address to which a call is posted, such as the webhook of a chat."""

TIMEOUT_S = 10

log = logging.getLogger("wardround.site")


def call(what: str, text: str, **fields: str | int | float) -> None:
    """Post `{"text": ..., "what": ..., **fields}` to the webhook, if its address is set.

    Only public names and numbers may be passed. A call that fails changes nothing else: its subject is
    recorded elsewhere.
    """
    address = os.environ.get(WEBHOOK)
    if not address:
        return
    threading.Thread(target=_post, args=(address, {"text": text, "what": what, **fields})).start()


def _post(address: str, content: Mapping[str, str | int | float]) -> None:
    try:
        parts = urlsplit(address)
        if parts.scheme != "https" and parts.hostname not in LOOPBACK:
            log.warning("%s: expected an https address; no call was sent", WEBHOOK)
            return
        httpx.post(address, json=content, timeout=TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        log.warning("the webhook call failed: %s", type(error).__name__)
