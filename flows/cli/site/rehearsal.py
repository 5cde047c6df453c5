"""Rehearsal: a whole round on made-up patients, in a process like that of a real round.

It does not touch the hospital's ledger, outbox or exchange: it uses a folder that is deleted afterwards.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flows.hospitals.processes import HospitalFailed, HospitalProcess
from flows.hospitals.reach import reached
from flows.rounds import global_model, recording, statements
from flows.rounds.statements import NO_ANSWERS
from flows.runs.paths import Home
from flows.runs.run import Run
from flows.starts.first_model import untrained
from models import params as P
from privacy.statements import ReleaseManifest
from sites.exchange.phases import SUMS, Phase
from sites.hospital import Hospital
from sites.orders import sums_of
from sites.policy.policy import CoordinatorConfig
from sites.setup.rehearsal import understudy
from sites.study import Study

REHEARSED_RATE = 0.01
"""Learning rate of a rehearsal where the study leaves it to the run."""
NO_PEERS = "not rehearsed: a secure sum needs the other hospitals"
ACTS: tuple[tuple[Phase, int], ...] = (("join", 0), ("evaluate", 0), ("contribute", 1))


@dataclass(frozen=True)
class Tried:
    """One step of a rehearsal: its duration, its result or the reason why it failed."""

    what: str
    seconds: float
    result: str
    is_fine: bool


def rehearse(hospital: Hospital, study: Study) -> Iterator[Tried]:
    """Yield the result of each act of a round on made-up patients, then of reaching the coordinator."""
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
        place = Path(folder)
        made_up = understudy(hospital, study, place / hospital.name)
        with _process(made_up) as process:
            home = Home(place / "coordinator")
            roster = {hospital.name: process.public_key()}
            run = Run.create(home, study, roster, home.exchange, kind="rehearsal")
            run.begin_attempt()
            rate = REHEARSED_RATE if study.training.lr == "auto" else None
            model = global_model.publish_model(run, 0, P.of(untrained(study)), rate)
            run.keep(recording.round_record(run, 0, model, NO_ANSWERS, NO_ANSWERS, time.time()))
            summed = {SUMS[kind].vector for kind in sums_of(study)}
            for phase, number in ((phase, k) for phase, k in ACTS if phase not in summed):
                tried = _act(run, process, phase, number)
                yield tried
                if not tried.is_fine:
                    break
            for phase in sorted(summed):
                yield Tried(phase, 0.0, NO_PEERS, is_fine=True)
    if hospital.policy.coordinator:
        yield from _reached(hospital.name, hospital.policy.coordinator)


@contextmanager
def _process(hospital: Hospital) -> Iterator[HospitalProcess]:
    process = HospitalProcess(hospital.name, hospital.folder)
    try:
        yield process
    finally:
        process.close()


def _act(run: Run, process: HospitalProcess, phase: Phase, number: int) -> Tried:
    started, site = time.monotonic(), process.name
    try:
        process.carry_out(statements.order(run, number, phase, site), run.study.sites.deadline_s)
    except HospitalFailed as error:
        return Tried(phase, time.monotonic() - started, f"failed: {error}", is_fine=False)
    seconds, found = time.monotonic() - started, statements.answers(run, number, phase, [site])
    if site in found.absent:
        return Tried(phase, seconds, str(found.absent[site]), is_fine=False)
    statement = found.taken[site].statement
    if isinstance(statement, ReleaseManifest):
        spent = "no privacy" if statement.epsilon is None else f"epsilon {statement.epsilon:.3f}"
        return Tried(phase, seconds, f"{statement.payload_bytes:,} bytes, {spent}", is_fine=True)
    return Tried(phase, seconds, statement.kind, is_fine=True)


def _reached(name: str, coordinator: CoordinatorConfig) -> Iterator[Tried]:
    started = time.monotonic()
    for each in reached(name, coordinator):
        seconds, started = time.monotonic() - started, time.monotonic()
        yield Tried(each.what, seconds, each.problem or "within reach", is_fine=not each.problem)
