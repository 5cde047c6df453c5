"""Readiness: whether hospitals could train a study as they are now, asked without a training run."""

import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flows.hospitals.processes import HospitalFailed
from flows.hospitals.session import Reachable
from flows.rounds import statements
from flows.runs.paths import Home
from flows.runs.run import Run
from flows.servers.environment import require_prefect
from flows.starts.rate import warnings
from privacy.signing import private_key
from sites.exchange.exchange import Exchange
from sites.study import Study

READY = "ready"


def readiness(home: Home, study: Study, federation: Path) -> dict[str, str]:
    """Return for each hospital of a `federation.yaml` `READY`, or the reason why it is not.

    Nothing is approved or charged.

    Raises:
        ConfigError: the file is wrong, or the environment does not name Prefect's API.
    """
    require_prefect(home)
    from flows.hospitals.federation import (  # Prefect reads its environment
        RemoteHospital,
        load_federation,
    )

    members = load_federation(federation)
    exchange, key = Exchange(members.exchange), private_key(home.coordinator_key)
    asked = {
        name: RemoteHospital(name, public, exchange, key) for name, public in members.roster.items()
    }
    run = Run.create(
        home, study, members.roster, members.exchange, kind="check", most_patients=members.most_patients
    )
    try:
        run.begin_attempt()
        return ask_all(run, asked)
    finally:
        shutil.rmtree(run.folder)


def expectations(study: Study, federation: Path) -> Sequence[str]:
    """Return a warning where the federation's patients can't be expected to improve the study's start.

    It counts the most patients that each hospital of the file may declare.
    """
    from flows.hospitals.federation import load_federation

    most = load_federation(federation).most_patients
    return warnings(study, {site: (count, study.training.steps) for site, count in most.items()})


def ask_all(run: Run, hospitals: Mapping[str, Reachable]) -> dict[str, str]:
    """Ask hospitals side by side; return `READY` or the reason of each."""

    def ask(site: str) -> str:
        try:
            hospitals[site].carry_out(
                statements.order(run, 0, "check", site), run.study.sites.deadline_s
            )
        except HospitalFailed as error:
            return str(error)
        answer = statements.answers(run, 0, "check", [site])
        return READY if site in answer.taken else str(answer.absent[site])

    with ThreadPoolExecutor(len(hospitals)) as threads:
        return dict(zip(hospitals, threads.map(ask, hospitals), strict=True))
