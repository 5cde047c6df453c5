"""A federation in one process: the hospitals' and the coordinator's own code, without servers.

Orders, ledgers, releases and rounds are those of a real run; what is left out is Prefect, MLflow and a
process for each hospital, so that a benchmark can afford dozens of runs.
"""

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from flows import rounds
from flows.home import Home
from flows.rounds import NO_ANSWERS, Answers
from flows.run import RoundRecord, Run
from models import params as P
from models.objectives import build_task
from models.params import Params
from sites import inference
from sites.cohort import Cohort, Patient
from sites.hospital import Hospital
from sites.orders import CPU, Phase
from sites.preprocessing import Prepared, PreprocessingConfig, fixed_pair
from sites.reading import Reading
from sites.rounds import carry_out
from sites.scoring import score
from sites.study import Study
from sites.training import Examples, prepare, train_plainly

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("WARDROUND_DATA", ROOT.parent / "shared" / "data"))

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


def copied(wards: Path, to: Path) -> list[Path]:
    """Return hospitals with the same patients and keys as those in `wards`, and no past."""
    past = shutil.ignore_patterns("ledger*", "outbox", "lock", "cache")
    shutil.copytree(wards, to, copy_function=os.link, ignore=past)
    return sorted(to.iterdir())


def federate(study: Study, wards: Sequence[Path], folder: Path, alter: Alter | None = None) -> Run:
    """Train a study among hospitals, round after round, and return the finished run."""
    hospitals = {ward.name: Remembering.open(ward) for ward in wards}
    roster = {name: hospital.public_key for name, hospital in hospitals.items()}
    run = Run.create(Home(folder), study, roster)
    run.begin_attempt()
    answers = _ask(run, hospitals, 0, "join")
    run = run.with_participants(rounds.participants(run, answers), answers.left_out)
    record = _finish(run, hospitals, 0, rounds.first_model(study), NO_ANSWERS)
    for number in range(1, study.rounds + 1):
        answers = _ask(run, hospitals, number, "contribute")
        taken = rounds.take_in(run, number, record, answers)
        if alter:
            alter(run, number, taken)
        model = rounds.aggregate(run, number, record, taken)
        record = _finish(run, hospitals, number, model, taken)
    return run


def _finish(
    run: Run, hospitals: Mapping[str, Hospital], number: int, model: Params, taken: Answers
) -> RoundRecord:
    sha256 = rounds.publish_model(run, number, model)
    is_evaluated = run.study.is_evaluated(number)
    scores = _ask(run, hospitals, number, "evaluate") if is_evaluated else NO_ANSWERS
    record = rounds.record(run, number, sha256, taken, scores, time.time())
    run.keep(record)
    return record


def _ask(run: Run, hospitals: Mapping[str, Hospital], number: int, phase: Phase) -> Answers:
    for hospital in hospitals.values():
        carry_out(hospital, rounds.order(run, number, phase), _silent)
    return rounds.answers(run, number, phase, sorted(hospitals))


def _silent(_what: str, _step: int, _of: int) -> None:
    """Tell nobody."""


def trained_alone(study: Study, cohorts: Sequence[Cohort], *, lots: int = 1) -> nn.Module:
    """Return the network of one who has all these patients: as many steps, of `lots` times the lot."""
    torch.manual_seed(0)
    network = study.network.build(study.task.dims, study.task.out_channels)
    P.load_into(network, rounds.first_model(study))
    patients = [patient for cohort in cohorts for patient in cohort.training]
    examples: Examples = prepare(patients, study.preprocessing, CPU, 0)
    rng, task = torch.Generator().manual_seed(study.seed), build_task(study.task)
    size = study.training.lot_size
    for number in range(1, study.rounds + 1):
        config = study.training.in_round(number, study.rounds)
        if size:
            config = config.model_copy(update={"lot": min(size * lots, len(patients))})
        train_plainly(network, task, examples, config, rng, None, _silent)
    return network


def scored(study: Study, network: nn.Module, patients: Sequence[Patient]) -> dict[str, float]:
    """Return a network's metrics over patients."""
    task = build_task(study.task)

    def predict(prepared: Prepared) -> torch.Tensor:
        return inference.predict(
            network, task.activation, study.preprocessing, study.network.divisor, prepared, CPU
        )

    return score(predict, task, patients)
