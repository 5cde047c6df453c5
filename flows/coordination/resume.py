"""Training of a study from its last finished round on, among local or remote hospitals."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from flows.hospitals.session import Reachable, session
from flows.reporting.progress import Live
from flows.rounds.membership import with_roster
from flows.rounds.statements import TooFewHospitals
from flows.runs.comparison import study_differences
from flows.runs.locks import held
from flows.runs.paths import Home
from flows.runs.run import Run, RunBusy, started_runs
from sites.study import Study
from sites.yaml_files import ConfigError


@contextmanager
def study_lock(home: Home, study: Study) -> Iterator[None]:
    """Let one coordinator at a time begin or train runs of a study; raise `RunBusy` for others."""
    path = home.state / "studies" / f"{study.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with held(path, RunBusy(f"Another coordinator trains study {study.name}.")):
        yield


def is_interrupted(home: Home, study: Study) -> bool:
    """Return whether the newest run of a study has rounds left."""
    runs = started_runs(home, study)
    return bool(runs) and not runs[-1].is_finished


def run_for(
    home: Home,
    study: Study,
    roster: Mapping[str, str],
    exchange: str,
    most_patients: Mapping[str, int],
    *,
    new: bool = False,
) -> Run:
    """Return the newest run of the study with any of these hospitals, or a new one if it is finished.

    Hospitals are compared by name and key. With `new`, the run is always a new one.

    Raises:
        RunBusy: another coordinator works on that run.
    """
    runs = [] if new else started_runs(home, study)
    runs = [run for run in runs if run.description.roster.items() & roster.items()]
    if runs and not runs[-1].is_finished:
        with runs[-1].locked() as run:
            return with_roster(run, roster, most_patients)
    return Run.create(home, study, roster, exchange, most_patients=most_patients)


def declared_otherwise(run: Run) -> Iterator[str]:
    """Yield a line for each hospital that may declare other numbers of patients than before."""
    before: dict[str, int] = {}
    for each in started_runs(run.home, run.study):
        if each.name != run.name:
            before |= each.description.most_patients
    for site, most in sorted(run.description.most_patients.items()):
        if before.get(site, most) != most:
            yield f"{site} may declare {most} patients now, {before[site]} in an earlier run"


MOST_KEYS = 3
"""Changed keys of a study that a sentence names."""


def left_behind(run: Run) -> Iterator[str]:
    """Yield a line where a new run begins beside an unfinished one of the study as it was before."""
    if run.records():
        return
    before = [each for each in started_runs(run.home) if each.study.name == run.study.name]
    before = [each for each in before if each.name != run.name and each.records()]
    if not before:
        return
    is_same = before[-1].study.sha256 == run.study.sha256
    if is_same and before[-1].is_finished:
        yield f"{before[-1].name} of this study is finished; this is another run, charged in addition"
    if is_same or before[-1].is_finished:
        return
    old = before[-1]
    changes = [
        f"{each.what.removeprefix('study.')} from {each.first} to {each.second}"
        for each in study_differences(old.study, run.study)
    ]
    more = f" and {len(changes) - MOST_KEYS} more" if len(changes) > MOST_KEYS else ""
    yield (
        f"this is a new run: the unfinished {old.name} had another study "
        f"({', '.join(changes[:MOST_KEYS])}{more}). What it has charged stays charged; with its study "
        f"file as it was, the same command goes on with it"
    )


def train_rounds(run: Run, hospitals: Mapping[str, Reachable], live: Live) -> Run:
    """Train a run's study to its last round, with Prefect, MLflow and the hospitals within reach.

    Raises:
        TooFewHospitals: too few accept (then the run's folder is deleted), or too few contribute.
        ConfigError: MLflow has a study of this name that is another coordinator's.
    """
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from flows import federate  # Prefect reads its environment when it is imported
    from flows.reporting.prefect_artifacts import announce_standstill
    from flows.tracking.tracking import check_free

    live.print(f"run {run.name}")
    for line in (*left_behind(run), *declared_otherwise(run)):
        live.print(line)
    try:
        check_free(run)  # before any hospital is asked
        run.home.security_log.write("training_began", run=run.name, study_sha256=run.study.sha256)
        if run.study.start and not run.records():
            live.print("the first model is made of public material, which can take minutes ...")
        # Without heartbeats a flow ends at once, not a second later; nothing here reads them.
        quick = temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})
        with session(run, hospitals, live.round), live.showing(run), quick:
            federate.federate(run.name, str(run.home.folder), sorted(run.description.roster))
    except (TooFewHospitals, ConfigError) as error:
        if isinstance(error, TooFewHospitals):
            announce_standstill(run, error.absent)
        if not Run.open(run.home, run.name).description.everybody:
            shutil.rmtree(run.folder)
        raise
    return Run.open(run.home, run.name)
