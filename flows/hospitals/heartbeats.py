"""Heartbeats of hospitals' workers, and the call to a person about a silent worker."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.exceptions import PrefectException

from sites.notifications import call
from sites.orders import Order

SILENT_S = 120.0
"""Seconds without a heartbeat after which a worker is silent; it sends one each half minute."""

LOOK_S = 30.0
"""Seconds between two checks of a hospital's worker while the coordinator waits for it."""


def quiet_seconds(site: str) -> float | None:
    """Return the seconds since a hospital's worker's last heartbeat; None where Prefect gives none."""
    try:
        with get_client(sync_client=True) as client:
            workers = client.read_workers_for_work_pool(site)
    except (httpx.HTTPError, PrefectException):
        return None
    beats = [worker.last_heartbeat_time for worker in workers if worker.last_heartbeat_time]
    return (datetime.now(UTC) - max(beats)).total_seconds() if beats else None


@dataclass
class Watch:
    """A watch that calls a person, once, if the worker that an order waits for falls silent."""

    order: Order
    _looked: float = field(default_factory=time.monotonic)
    _has_called: bool = False

    def look(self) -> None:
        """Check whether the worker is silent, at most once in `LOOK_S` seconds."""
        if self._has_called or time.monotonic() < self._looked + LOOK_S:
            return
        self._looked, order = time.monotonic(), self.order
        quiet_s = quiet_seconds(order.site)
        if quiet_s is None or quiet_s < SILENT_S:
            return
        self._has_called = True
        payload: Mapping[str, str | int] = {
            "run": order.run,
            "study": order.study.name,
            "site": order.site,
            "quiet_s": int(quiet_s),
        }
        emit_event(
            "wardround.site.silent",
            {"prefect.resource.id": f"wardround.run.{order.run}"},
            payload=dict(payload),
        )
        text = (
            f"{order.run} waits for {order.site}: its worker has sent no heartbeat for {quiet_s:.0f} s"
        )
        call("wardround.site.silent", text, **payload)
