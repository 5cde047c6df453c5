"""A federation in one process: the hospitals' and the coordinator's own code, without servers.

Orders, ledgers, releases and rounds are those of a real run; Prefect, MLflow and a process for each
hospital are left out, so that a benchmark can do dozens of runs.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flows.rounds import aggregation, global_model, recording, releases, secure_sum, statements
from flows.rounds.membership import participants
from flows.rounds.statements import NO_ANSWERS, Answers
from flows.runs.paths import Home
from flows.runs.records import RoundRecord, StartRecord
from flows.runs.run import Run
from flows.starts.first_model import first_model, start_of
from models.objectives import build_task
from models.params import Params
from models.settings.images import PreprocessingConfig
from sites.cohort import Cohort, Patient
from sites.evaluation.scoring import score
from sites.exchange.phases import Phase
from sites.hospital import Hospital
from sites.imaging.preprocessing import fixed_pair
from sites.imaging.reading import Reading
from sites.inference import predictor
from sites.local_models import CPU, network_for
from sites.progress import ignore_progress
from sites.protocol.dispatch import carry_out
from sites.study import Study
from sites.training.examples import prepare
from sites.training.sgd import train_plainly

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("WARDROUND_DATA", ROOT.parent / "shared" / "data"))

HIPPOCAMPUS: dict[str, Any] = {
    "name": "hippocampus",
    "task": {"kind": "segmentation", "dims": 3, "labels": {1: "anterior", 2: "posterior"}},
    "network": {"name": "UNet", "channels": [8, 16, 32]},
    "rounds": 25,
    "sites": {"min": 4},
    "preprocessing": {"shape": [32, 48, 32], "augmentation": None},
    "training": {"steps": 10, "lr": 0.1, "lot": 6},
    "privacy": {"mode": "none"},
    "export": "weights",
    "strategy": {"name": "fed_avg"},
    "evaluation": {"every": 1000},
}
"""A study of the hippocampus set without privacy, which is evaluated at its beginning and end alone."""

Alter = Callable[[Run, int, Answers], None]
"""Changes what hospitals have released in a round, before it is aggregated."""

_COHORTS: dict[tuple[bytes, str], Cohort] = {}


class Remembering(Hospital):
    """A hospital that reads its scans once."""

    def cohort(self, study: Study) -> Cohort:
        """Return the hospital's patients for a study."""
        key = self.pseudonym_key, study.task.model_dump_json() + study.preprocessing.model_dump_json()
        if key not in _COHORTS:
            _COHORTS[key] = _in_memory(super().cohort(study), study.preprocessing)
        return _COHORTS[key]


def _in_memory(cohort: Cohort, config: PreprocessingConfig) -> Cohort:
    def loaded(reading: Reading) -> Reading:
        prepared = reading.load()
        if not prepared.is_map:
            prepared = replace(prepared, image=fixed_pair(prepared, config)[0])
        return replace(reading, load=lambda: prepared)

    def all_loaded(patients: Sequence[Patient]) -> tuple[Patient, ...]:
        return tuple(replace(each, scans=tuple(map(loaded, each.scans))) for each in patients)

    return Cohort(all_loaded(cohort.training), all_loaded(cohort.evaluation))


def quiet() -> None:
    """Use one thread, and silence the hospitals' logs."""
    torch.set_num_threads(1)
    logging.getLogger("wardround.site").setLevel(logging.CRITICAL)


def make_keys(wards: Sequence[Path]) -> None:
    """Give each hospital the key by which its patients are divided, the same for every copy of it."""
    for ward in wards:
        _ = Hospital.open(ward).pseudonym_key


def copied(wards: Path, to: Path) -> list[Path]:
    """Return hospitals with the same patients and keys as those in `wards`, and no history."""
    past = shutil.ignore_patterns("ledger*", "outbox", "lock", "cache")
    shutil.copytree(wards, to, copy_function=os.link, ignore=past)
    return sorted(to.iterdir())


def federate(study: Study, wards: Sequence[Path], folder: Path, alter: Alter | None = None) -> Run:
    """Train a study among hospitals, round after round, and return the finished run."""
    hospitals = {ward.name: Remembering.open(ward) for ward in wards}
    roster = {name: hospital.public_key for name, hospital in hospitals.items()}
    run = Run.create(Home(folder), study, roster, Home(folder).exchange)
    run.begin_attempt()
    answers = _ask(run, hospitals, 0, "join")
    run = run.with_participants(participants(run, answers), answers.absent)
    start = start_of(run)
    record = _finish(run, hospitals, 0, start.params, NO_ANSWERS, start.record)
    for number in range(1, study.rounds + 1):
        taken = _contributions(run, hospitals, number, record)
        if alter:
            alter(run, number, taken)
        model = aggregation.aggregate(run, number, record, taken)
        record = _finish(run, hospitals, number, model, taken)
    return run


def _contributions(
    run: Run, hospitals: Mapping[str, Hospital], number: int, base: RoundRecord
) -> Answers:
    def ask(run: Run, number: int, phase: Phase, sites: Sequence[str]) -> Answers:
        return _ask(run, {site: hospitals[site] for site in sites}, number, phase)

    if run.study.is_summed:
        return secure_sum.contribute(run, number, base, ask)
    answers = ask(run, number, "contribute", sorted(run.description.participants))
    return releases.accept_releases(run, number, base, answers)


def _finish(
    run: Run, hospitals: Mapping[str, Hospital], number: int, model: Params, taken: Answers,
    start: StartRecord | None = None,
) -> RoundRecord:  # fmt: skip
    rate = start.rate if start else run.rate
    sha256 = global_model.publish_model(run, number, model, rate)
    is_evaluated = run.study.is_evaluated(number)
    scores = _ask(run, hospitals, number, "evaluate") if is_evaluated else NO_ANSWERS
    record = recording.round_record(run, number, sha256, taken, scores, time.time(), start=start)
    run.keep(record)
    return record


def _ask(run: Run, hospitals: Mapping[str, Hospital], number: int, phase: Phase) -> Answers:
    for hospital in hospitals.values():
        carry_out(hospital, statements.order(run, number, phase, hospital.name), ignore_progress)
    return statements.answers(run, number, phase, sorted(hospitals))


def trained_alone(
    study: Study, cohorts: Sequence[Cohort], *, lots: int = 1, folder: Path = Path()
) -> nn.Module:
    """Return a network trained on all these patients: as many steps, of `lots` times the lot.

    Args:
        folder: the home whose `public/` has the material of the study's start.
    """
    network = network_for(study.network, study, CPU, first_model(study, Home(folder)).params)
    patients = [patient for cohort in cohorts for patient in cohort.training]
    examples = prepare(patients, study.preprocessing, CPU, 0)
    rng, task = torch.Generator().manual_seed(study.seed), build_task(study.task)
    size = study.training.lot_size
    for number in range(1, study.rounds + 1):
        config = study.training.in_round(number, study.rounds)
        if size:
            config = config.model_copy(update={"lot": min(size * lots, len(patients))})
        train_plainly(network, task, examples, config, rng, None, ignore_progress)
    return network


def scored(study: Study, network: nn.Module, patients: Sequence[Patient]) -> dict[str, float]:
    """Return a network's metrics over patients."""
    predict = predictor(network, study, study.network, CPU)
    return score(predict, build_task(study.task), patients)
