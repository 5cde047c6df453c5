"""Training among hospitals on this machine: the servers, a process for each hospital, and the flow."""

from collections.abc import Mapping
from pathlib import Path

from flows.coordination.beginning import Begun
from flows.coordination.resume import run_for, study_lock, train_rounds
from flows.hospitals.processes import public_keys, warm
from flows.hospitals.template import PRIVATE
from flows.reporting.progress import Live
from flows.reporting.trace import traced
from flows.rounds import ensemble_distillation
from flows.runs.paths import Home
from flows.runs.run import Run
from flows.starts.first_model import check_start
from sites.policy.policy import load_policy
from sites.study import Study


def train(
    home: Home,
    study: Study,
    wards: Mapping[str, Path],
    live: Live,
    begun: Begun,
    *,
    test_noise: int | None = None,
    new: bool = False,
    profile: Path | None = None,
) -> Run:
    """Train `study` among the hospitals in `wards`; an unfinished run goes on unless `new`.

    Args:
        profile: a file for the run's spans, as a Chrome trace.

    Raises:
        RunBusy: another coordinator trains this study.
        TooFewHospitals: too few accept (then nothing was recorded), or too few contribute.
        NoTransferImages: the coordinator lacks the public set on which the study distils.
        NoStart: the material of the study's start is missing or does not fit.
    """
    ensemble_distillation.check_ready(study, home)
    check_start(study, home)
    from flows import federate  # noqa: F401  # Prefect and MLflow, while the template gets ready

    begun.template.modules = PRIVATE if study.privacy.mode != "none" else ()
    with (
        study_lock(home, study),
        traced(profile, wards, home.state),
        warm(
            wards, live.step, begun.template, test_noise, records_spans=profile is not None
        ) as processes,
    ):
        roster = public_keys(processes)
        most = {name: load_policy(wards[name]).declared_patients for name in roster}
        run = run_for(home, study, roster, home.exchange, most, new=new)
        begun.servers.ready()
        return train_rounds(run, processes, live)
