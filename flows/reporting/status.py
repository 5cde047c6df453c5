"""The status of the newest run: its hospitals, the orders that it waits for, when workers were seen."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from flows.runs.paths import Home
from flows.runs.run import Run, runs_of
from privacy.signing import verified
from sites.exchange.exchange import Exchange
from sites.orders import Order, is_answered


@dataclass(frozen=True)
class HospitalStatus:
    """One hospital in the newest run.

    Attributes:
        last_round: of its last accepted release; None before the first.
        asked: the order that it has not answered, such as `contribute 3`; empty if none.
        until_ms: the time from which that answer is too late.
        last_seen: the last heartbeat of its worker, as Prefect knows it; empty without Prefect.
    """

    name: str
    takes_part: bool
    last_round: int | None
    epsilon: float | None
    asked: str
    until_ms: int | None
    last_seen: str


@dataclass(frozen=True)
class Status:
    """The newest run, and its hospitals."""

    run: str
    study: str
    round: int
    rounds: int
    is_finished: bool
    hospitals: tuple[HospitalStatus, ...]


def status(home: Home) -> Status | None:
    """Return the status of the newest run of a home, None before the first."""
    runs = runs_of(home)
    if not runs:
        return None
    run, records = runs[-1], runs[-1].records()
    seen = _last_seen(sorted(run.description.roster))
    hospitals = []
    for site in sorted(run.description.roster):
        mine = [(r.round, r.releases[site].statement) for r in records if site in r.releases]
        order = None if run.is_finished else _open_order(run, site)
        hospitals.append(
            HospitalStatus(
                name=site,
                takes_part=site in run.description.participants,
                last_round=mine[-1][0] if mine else None,
                epsilon=mine[-1][1].epsilon if mine else None,
                asked=f"{order.phase} {order.round}" if order else "",
                until_ms=order.expires_ms if order else None,
                last_seen=seen.get(site, ""),
            )
        )
    return Status(
        run=run.name,
        study=run.study.name,
        round=records[-1].round if records else 0,
        rounds=run.study.rounds,
        is_finished=run.is_finished,
        hospitals=tuple(hospitals),
    )


def _open_order(run: Run, site: str) -> Order | None:
    """Return the newest order of a run that a hospital can still answer and has not."""
    exchange = Exchange(run.description.exchange)
    found: list[Order] = []
    for place in exchange.orders_of(site):
        if place.run == run.name and (data := exchange.statement(place)):
            fields = verified(data, "coordinator", {"coordinator": run.public_key})
            found.append(Order.model_validate(fields))
    key = run.description.roster[site]
    waiting = [order for order in found if _is_open(exchange, order, key)]
    return max(waiting, key=lambda order: order.expires_ms or 0, default=None)


def _is_open(exchange: Exchange, order: Order, public_key: str) -> bool:
    is_over = order.expires_ms is not None and time.time() * 1000 >= order.expires_ms
    return not is_over and not is_answered(exchange, order, public_key)


def _last_seen(sites: Sequence[str]) -> dict[str, str]:
    """Return the last heartbeat of each hospital's worker, where the environment names Prefect's API."""
    if not os.environ.get("PREFECT_API_URL"):
        return {}
    from flows.hospitals.heartbeats import quiet_seconds

    quiet = {site: quiet_seconds(site) for site in sites}
    return {site: f"{seconds:.0f} s ago" for site, seconds in quiet.items() if seconds is not None}
