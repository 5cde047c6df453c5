"""When hospitals' workers were last heard of, and calling a person about silent ones."""

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
"""A worker is silent that has missed so much time; it is heard of each half minute."""

LOOK_S = 30.0
"""How often a coordinator that waits looks whether its hospital's worker is silent."""


def quiet_seconds(site: str) -> float | None:
    """Return for how long nothing was heard of a hospital's worker; None where Prefect can't say."""
    try:
        with get_client(sync_client=True) as client:
            workers = client.read_workers_for_work_pool(site)
    except (httpx.HTTPError, PrefectException):
        return None
    beats = [worker.last_heartbeat_time for worker in workers if worker.last_heartbeat_time]
    return (datetime.now(UTC) - max(beats)).total_seconds() if beats else None


@dataclass
class Watch:
    """Calls a person, once, if the worker that an order waits for falls silent."""

    order: Order
    _looked: float = field(default_factory=time.monotonic)
    _has_called: bool = False

    def look(self) -> None:
        """Look whether the worker is silent, if it is time to."""
        if self._has_called or time.monotonic() < self._looked + LOOK_S:
            return
        self._looked, order = time.monotonic(), self.order
        quiet_s = quiet_seconds(order.site)
        if quiet_s is None or quiet_s < SILENT_S:
            return
        self._has_called = True
        told: Mapping[str, str | int] = {
            "run": order.run,
            "study": order.study.name,
            "site": order.site,
            "quiet_s": int(quiet_s),
        }
        emit_event(
            "wardround.site.silent",
            {"prefect.resource.id": f"wardround.run.{order.run}"},
            payload=dict(told),
        )
        text = f"{order.run} waits for {order.site}, whose worker was not heard of for {quiet_s:.0f} s"
        call("wardround.site.silent", text, **told)
