"""Is it well? What a person looks at first: versions, disk, clock, reach, rights, GPU.

Each line states what was looked at and what to do. Nothing is changed, no order is given.
"""

import os
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import httpx
import torch

from flows.hospitals.reach import Reach, reached, tried
from flows.runs.paths import Home
from flows.runs.run import started_runs
from flows.servers.environment import set_prefect
from privacy.ledger import LedgerError
from sites.exchange.exchange import Exchange
from sites.exchange.storage import AUTH
from sites.hospital import Hospital
from sites.policy.cluster import ClusterConfig, reach
from sites.policy.policy import load_policy
from sites.yaml_files import ConfigError

State = Literal["well", "look", "wrong"]
PACKAGES = ("wardround", "torch", "monai", "opacus", "prefect", "mlflow", "nibabel")
LEAST_FREE_GB = 5.0
MOST_CLOCK_S = 60.0
TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Sign:
    """What was looked at: `well`, worth a look, or `wrong`, with what to do about it."""

    what: str
    state: State
    found: str


def signs(folder: Path) -> Iterator[Sign]:
    """Yield what can be seen of a folder: a hospital's with `site.yaml`, or a coordinator's.

    Raises:
        ConfigError: there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: expected a folder, a hospital's or the coordinator's.")
    yield from _versions()
    yield _disk(folder)
    yield _device(folder)
    has_clock = False
    for sign in _hospital(folder) if (folder / "site.yaml").exists() else _coordinator(folder):
        has_clock = has_clock or sign.what == "clock"
        yield sign
    if not has_clock:
        now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        yield Sign("clock", "well", f"{now}; no server has told its own time to compare")


def _versions() -> Iterator[Sign]:
    python = ".".join(map(str, sys.version_info[:3]))
    state: State = "well" if sys.version_info >= (3, 11) else "wrong"
    yield Sign("Python", state, python if state == "well" else f"{python}: 3.11 or newer is needed")
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        yield Sign("packages", "wrong", f"{', '.join(missing)} not installed: install Wardround again")
    else:
        yield Sign("packages", "well", ", ".join(found))


def _disk(folder: Path) -> Sign:
    free = shutil.disk_usage(folder).free / 1e9
    if free < LEAST_FREE_GB:
        return Sign("disk", "look", f"{free:.1f} GB free; models, caches and MLflow need room")
    return Sign("disk", "well", f"{free:.0f} GB free")


def _device(folder: Path) -> Sign:
    wanted = "cpu"
    if (folder / "site.yaml").exists():
        try:
            wanted = load_policy(folder).device.kind
        except ConfigError:
            wanted = "cpu"
    if torch.cuda.is_available():
        return Sign("GPU", "well", torch.cuda.get_device_name(0))
    if wanted == "cuda":
        return Sign(
            "GPU", "wrong", "site.yaml asks for cuda; torch sees none: driver, or device: {kind: cpu}"
        )
    return Sign("GPU", "well", "none, and none is asked for")


def _hospital(folder: Path) -> Iterator[Sign]:
    try:
        hospital = Hospital.open(folder)
    except (ConfigError, OSError, ValueError) as error:
        yield Sign("site.yaml and list", "wrong", str(error))
        yield _rights(folder / "state")
        yield from _addresses(folder)
        return
    try:
        listed = f"{hospital.name}: {len(hospital.cases)} listed cases"
        yield Sign("site.yaml and list", "well", listed)
    except (ConfigError, OSError, ValueError) as error:
        yield Sign("site.yaml and list", "wrong", str(error))
    yield _rights(hospital.state)
    yield _ledger(hospital)
    if hospital.policy.device.cluster is not None:
        yield _cluster(hospital.policy.device.cluster.within(folder))
    if hospital.drained.exists():
        yield Sign("orders", "look", "drained: no order is accepted before `wardround site drain --off`")
    yield from _addresses(folder)


def _addresses(folder: Path) -> Iterator[Sign]:
    """Look whether a hospital reaches its coordinator, as far as its policy can be read."""
    try:
        policy = load_policy(folder)
    except ConfigError:
        return
    coordinator = policy.coordinator
    if coordinator is None:
        yield Sign("coordinator", "well", "on this machine; site.yaml names no other")
        return
    for found in reached(policy.name, coordinator):
        if found.address.startswith("http"):
            yield from _reached(found.what, found.address)
        else:
            yield _answer(found)
            continue
        if found.is_final:
            yield Sign(f"{found.what}, access", "wrong", found.problem)


def _rights(state: Path) -> Sign:
    """Look whether others can read what the hospital keeps for itself."""
    if not state.exists():
        return Sign("state/", "well", "not there yet; it is made with rights for its owner alone")
    mode = stat.S_IMODE(state.stat().st_mode)
    if mode & 0o077:
        return Sign("state/", "wrong", f"others may open it (mode {mode:o}): chmod 700 {state}")
    return Sign("state/", "well", "for its owner alone")


def _ledger(hospital: Hospital) -> Sign:
    try:
        budget = hospital.policy.budget
        spent = hospital.ledger.spent(budget.delta)
    except (LedgerError, OSError, ValueError) as error:
        return Sign("ledger", "wrong", f"{error} `wardround site ledger --verify` names the entry")
    state: State = "look" if spent > 0.9 * budget.epsilon else "well"
    return Sign("ledger", state, f"epsilon {spent:.2f} of {budget.epsilon:g} at delta {budget.delta:g}")


def _cluster(config: ClusterConfig) -> Sign:
    """Look whether a hospital's own machines answer; without them it trains alone."""
    try:
        count = reach(config)
    except ModuleNotFoundError:
        return Sign("cluster", "wrong", "Dask is missing: `pip install 'wardround[cluster]'`")
    except (OSError, ValueError) as error:
        return Sign("cluster", "wrong", f"{config.scheduler} can't be reached: {error}")
    if count == 0:
        return Sign("cluster", "wrong", f"{config.scheduler} has no worker; start `dask worker`")
    return Sign("cluster", "well", f"{count} workers at {config.scheduler}")


def _coordinator(folder: Path) -> Iterator[Sign]:
    home = Home(folder)
    unfinished = [run.name for run in started_runs(home) if not run.is_finished]
    if unfinished:
        yield Sign("runs", "look", f"{unfinished[-1]} has rounds left: the same command goes on")
    else:
        yield Sign("runs", "well", f"{len(started_runs(home))}, none unfinished")
    if home.state.exists():
        yield _rights(home.state / "keys")
    if (folder / "federation.yaml").exists():
        set_prefect(home)
        from flows.hospitals.federation import load_federation  # noqa: PLC0415  # Prefect reads its environment

        try:
            members = load_federation(folder / "federation.yaml")
        except ConfigError as error:
            yield Sign("federation.yaml", "wrong", str(error))
        else:
            yield Sign("federation.yaml", "well", f"hospitals: {len(members.roster)}")
            yield from _reached("exchange", members.exchange)
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        if os.environ.get(name, "").startswith("http"):
            yield from _reached(name, os.environ[name])


def _reached(what: str, address: str) -> Iterator[Sign]:
    """Look whether an address answers, with a good certificate and about this clock's time."""
    if "://" not in address:
        there = Path(address).is_dir()
        told = address if there else f"{address}: no such folder"
        yield Sign(what, "well" if there else "wrong", told)
        return
    if not address.startswith("http"):
        yield _answer(tried(what, address, AUTH, lambda: str(Exchange(address).orders_of("doctor"))[:0]))
        return
    scheme, _, rest = address.partition("://")
    shown = f"{scheme}://{rest.rpartition('@')[2]}"
    found = tried(what, shown, "", lambda: _date_of(shown))
    if found.problem:
        yield Sign(what, "wrong", f"{shown}: {found.problem}")
        return
    yield Sign(what, "well", f"{shown} answers")
    if found.date:
        yield _clock(what, found.date)


def _answer(found: Reach) -> Sign:
    if found.problem:
        return Sign(found.what, "wrong", f"{found.address}: {found.problem}")
    return Sign(found.what, "well", f"{found.address} answers")


def _date_of(url: str) -> str:
    """Return the date that a server sends; that it wants a password is an answer, too."""
    return str(httpx.head(url, timeout=TIMEOUT_S, follow_redirects=True).headers.get("Date", ""))


def _clock(what: str, date: str) -> Sign:
    away = abs(parsedate_to_datetime(date).timestamp() - time.time())
    if away > MOST_CLOCK_S:
        now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        return Sign(
            "clock", "wrong", f"{away:.0f} s from that of {what}, here it is {now}: set it right"
        )
    return Sign("clock", "well", f"within {max(1, round(away))} s of {what}'s")
