"""Audits of a run among hospitals on this machine, or of a federation."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flows.hospitals.session import Reachable, session
from flows.runs.paths import Home
from flows.runs.run import Run, named_run
from flows.servers.environment import own_servers, require_prefect, with_mlflow
from models.errors import FixYourInput
from privacy.signing import private_key
from sites.exchange.exchange import Exchange
from sites.setup.wards import wards_in


class CannotAudit(FixYourInput):
    """The run has no trained model of this round, or none of its hospitals is here."""


@dataclass(frozen=True)
class Setting:
    """The size of an audit.

    Attributes:
        steps: steps of each gradient inversion.
        canaries: gradients that are planted in the audit of one training; 0 for none.
        partial: whether to record an audit to which a hospital gave no answer.
    """

    steps: int = 300
    canaries: int = 10_000
    partial: bool = False


def audited_round(run: Run, round: int | None) -> int:
    """Return the round to audit, the newest by default; raise `CannotAudit` without a trained model."""
    last = len(run.records()) - 1
    number = last if round is None else round
    if not 1 <= number <= last:
        raise CannotAudit(
            f"Expected a round from 1 to {last} of {run.name}, got {number}; an audit is of a trained "
            f"model."
        )
    return number


def audit_here(home: Home, name: str | None, sites: Path, round: int | None, setting: Setting) -> Run:
    """Audit a run, the newest by default, among the hospitals in a folder."""
    run = named_run(home, name)
    number, wards = audited_round(run, round), wards_in(sites)
    known = {site: path for site, path in wards.items() if site in run.description.participants}
    if not known:
        raise CannotAudit(f"{sites}: expected hospitals of {run.name}, found none of them.")
    with own_servers(home) as servers:
        from flows.hospitals.processes import warm
        from flows.hospitals.template import started_template

        servers.ready()
        with (
            started_template() as template,
            warm(known, lambda name, what, step, of: None, template) as processes,
        ):
            _audit(run, number, processes, sorted(known), setting)
    return run.again()


def audit_remotely(
    home: Home, name: str | None, federation: Path, round: int | None, setting: Setting
) -> Run:
    """Audit a run, the newest by default, among the hospitals of a `federation.yaml`."""
    run = named_run(home, name)
    number = audited_round(run, round)
    require_prefect(home)
    with with_mlflow(home), _remote(home, run, federation) as asked:
        _audit(run, number, asked, sorted(asked), setting)
    return run.again()


@contextmanager
def _remote(home: Home, run: Run, federation: Path) -> Iterator[Mapping[str, Reachable]]:
    from flows.hospitals.federation import RemoteHospital, load_federation

    members = load_federation(federation)
    exchange, key = Exchange(members.exchange), private_key(home.coordinator_key)
    asked = {
        name: RemoteHospital(name, public, exchange, key)
        for name, public in members.roster.items()
        if name in run.description.participants
    }
    try:
        yield asked
    finally:
        for hospital in asked.values():
            hospital.withdraw()


def _audit(
    run: Run, number: int, asked: Mapping[str, Reachable], sites: Sequence[str], setting: Setting
) -> None:
    from flows.audit import audit  # Prefect reads its environment when it is imported

    with session(run, asked):
        audit(
            run.name, number, str(run.home.folder), list(sites), setting.steps, setting.canaries,
            setting.partial,
        )  # fmt: skip
