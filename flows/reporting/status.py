"""The status of the newest run: its hospitals, the orders that it waits for, when workers were seen."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.table import Table

from flows.runs.paths import Home
from flows.runs.record_files import records_in
from flows.runs.summary import OrderSummary, RunSummary, newest_run
from privacy.signing import private_key, public_hex, verified
from sites.exchange.answers import is_answered
from sites.exchange.exchange import Exchange


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
    """The newest run, and its hospitals.

    Attributes:
        epsilon: the most that all rounds may cost a patient; None without privacy.
    """

    run: str
    study: str
    round: int
    rounds: int
    epsilon: float | None
    is_finished: bool
    hospitals: tuple[HospitalStatus, ...]


def status(home: Home) -> Status | None:
    """Return the status of the newest run of a home, None before the first."""
    run = newest_run(home)
    if run is None:
        return None
    records, is_finished = records_in(run.folder), run.is_finished
    seen = _last_seen(sorted(run.roster))
    hospitals = []
    for site in sorted(run.roster):
        mine = [(r.round, r.releases[site].statement) for r in records if site in r.releases]
        order = None if is_finished else _open_order(home, run, site)
        hospitals.append(
            HospitalStatus(
                name=site,
                takes_part=site in run.participants,
                last_round=mine[-1][0] if mine else None,
                epsilon=mine[-1][1].epsilon if mine else None,
                asked=f"{order.phase} {order.round}" if order else "",
                until_ms=order.expires_ms if order else None,
                last_seen=seen.get(site, ""),
            )
        )
    return Status(
        run=run.run,
        study=run.study.name,
        round=records[-1].round if records else 0,
        rounds=run.study.rounds,
        epsilon=run.study.privacy.epsilon,
        is_finished=is_finished,
        hospitals=tuple(hospitals),
    )


def _open_order(home: Home, run: RunSummary, site: str) -> OrderSummary | None:
    """Return the newest order of a run that a hospital can still answer and has not."""
    exchange, coordinator = Exchange(run.exchange), public_hex(private_key(home.coordinator_key))
    found: list[OrderSummary] = []
    for place in exchange.orders_of(site):
        if place.run == run.run and (data := exchange.statement(place)):
            fields = verified(data, "coordinator", {"coordinator": coordinator})
            found.append(OrderSummary.model_validate(fields))
    waiting = [order for order in found if _is_open(exchange, order, run.roster[site])]
    return max(waiting, key=lambda order: order.expires_ms or 0, default=None)


def _is_open(exchange: Exchange, order: OrderSummary, public_key: str) -> bool:
    is_over = order.expires_ms is not None and time.time() * 1000 >= order.expires_ms
    return not is_over and not is_answered(exchange, order, public_key)


def _last_seen(sites: Sequence[str]) -> dict[str, str]:
    """Return the last heartbeat of each hospital's worker, where the environment names Prefect's API."""
    if not os.environ.get("PREFECT_API_URL"):
        return {}
    from flows.hospitals.heartbeats import quiet_seconds

    quiet = {site: quiet_seconds(site) for site in sites}
    return {site: f"{seconds:.0f} s ago" for site, seconds in quiet.items() if seconds is not None}


def status_table(status: Status) -> Table:
    """Return the status of a run as a table: a row for each hospital."""
    state = "finished" if status.is_finished else f"round {status.round} of {status.rounds} is recorded"
    table = Table(title=f"{status.run}: {state}")
    spent = f"epsilon of {status.epsilon:g}" if status.epsilon else "epsilon"
    for heading in ("hospital", "takes part", "last release", spent, "open order", "last seen"):
        table.add_column(heading)
    for each in status.hospitals:
        until = f", until {_time_of(each.until_ms)}" if each.until_ms else ""
        table.add_row(
            each.name,
            "yes" if each.takes_part else "no",
            "" if each.last_round is None else f"round {each.last_round}",
            "" if each.epsilon is None else f"{each.epsilon:.3f}",
            f"{each.asked}{until}",
            each.last_seen,
        )
    return table


def _time_of(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%H:%M:%S} UTC"
