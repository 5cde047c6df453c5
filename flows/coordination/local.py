"""Training among hospitals on this machine: the servers, a process for each hospital, and the flow."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from flows.coordination.beginning import Begun, Means
from flows.coordination.resume import run_for, study_lock, train_rounds
from flows.hospitals.cluster import ClusterHospital, on_cluster
from flows.hospitals.processes import HospitalProcess, public_keys, warm
from flows.hospitals.template import PRIVATE, Template
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
    means: Means,
    *,
    new: bool = False,
) -> Run:
    """Train `study` among the hospitals in `wards`; an unfinished run goes on unless `new`.

    Raises:
        NoCluster: the cluster that was asked for can't be used.
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
        traced(means.profile, wards, home.state),
        _processes(wards, live, begun.template, means) as processes,
    ):
        roster = public_keys(processes)
        most = {name: load_policy(wards[name]).declared_patients for name in roster}
        run = run_for(home, study, roster, home.exchange, most, new=new)
        begun.servers.ready()
        return train_rounds(run, processes, live)


def _processes(
    wards: Mapping[str, Path], live: Live, template: Template, means: Means
) -> AbstractContextManager[Mapping[str, HospitalProcess | ClusterHospital]]:
    """Return the hospitals' processes, here or on a cluster."""
    if means.cluster:
        return on_cluster(means.cluster, wards, means.test_noise)
    records = means.profile is not None
    return warm(wards, live.step, template, means.test_noise, records_spans=records)
