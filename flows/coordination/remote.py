"""Training among remote hospitals: the servers run already, and Prefect carries the requests."""

from pathlib import Path

from flows.coordination.resume import run_for, study_lock, train_rounds
from flows.reporting.progress import Live
from flows.rounds import ensemble_distillation
from flows.runs.paths import Home
from flows.runs.run import Run
from flows.servers.environment import require_prefect, with_mlflow
from flows.starts.first_model import check_start
from privacy.signing import private_key, public_hex
from sites.exchange.exchange import Exchange
from sites.study import Study


def public_key(home: Home) -> str:
    """Return the coordinator's public key, made on first use."""
    return public_hex(private_key(home.coordinator_key))


def train(home: Home, study: Study, federation: Path, live: Live, *, new: bool = False) -> Run:
    """Train `study` among the hospitals of a `federation.yaml`; an unfinished run goes on unless `new`.

    Raises:
        ConfigError: the file is wrong, or the environment does not name Prefect's API.
        RunBusy: another coordinator trains this study.
        TooFewHospitals: too few accept (then nothing was recorded), or too few contribute.
    """
    ensemble_distillation.check_ready(study, home)
    check_start(study, home)
    require_prefect(home)
    with study_lock(home, study), with_mlflow(home):
        from flows.hospitals.federation import (  # Prefect reads its environment
            RemoteHospital,
            load_federation,
        )

        members = load_federation(federation)
        exchange, key = Exchange(members.exchange), private_key(home.coordinator_key)
        asked = {
            name: RemoteHospital(name, public, exchange, key) for name, public in members.roster.items()
        }
        run = run_for(home, study, members.roster, members.exchange, members.most_patients, new=new)
        try:
            return train_rounds(run, asked, live)
        finally:
            for hospital in asked.values():
                hospital.withdraw()
