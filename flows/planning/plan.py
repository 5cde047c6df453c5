"""What a study will cost, before anything is spent: noise, epsilon round by round, bytes, time, signal.

Everything follows from public numbers: the study, and the patients that hospitals declare. Time and
memory are measured here, on random images.
"""

import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import nn

from flows.starts.rate import reach_of, warnings
from models import params as P
from models.objectives import Task, build_task
from privacy.accounting import epsilon
from privacy.mechanisms import Mechanism, mechanism_for
from privacy.per_patient import clipped_sums
from privacy.signal import NEEDED
from sites.admission.admission import admit, check_list, mechanism_for_study, training_for
from sites.hospital import Hospital
from sites.local_models import CPU, network_for
from sites.policy.policy import Refused
from sites.study import Study

MICROBATCH = 4
"""Most images of the step that is timed."""
MIB = 2**20


@dataclass(frozen=True)
class HospitalPlan:
    """What a study will cost one hospital.

    Attributes:
        patients: declared training patients.
        noise: noise multiplier of a step; None without privacy.
        epsilons: epsilon of a patient after each round; empty without privacy.
        budget: what all studies have spent there at this study's end, and the limit; None where the
            hospital's folder is not here.
        seconds: training of a round on this machine, with one scan for each patient.
        refusal: why the hospital would take no part; empty if it would.
    """

    name: str
    patients: int
    noise: float | None
    epsilons: Sequence[float]
    budget: tuple[float, float] | None
    seconds: float
    refusal: str = ""


@dataclass(frozen=True)
class Plan:
    """What a study will cost.

    Attributes:
        parameters: number of the network's parameters.
        release_bytes: of each release; None for predictions, whose size depends on the images.
        memory_mib: peak memory of a training step over that of the idle process, about.
        strength: strength of the signal (`privacy/signal.py`); None without privacy.
        warnings: sentences on what is not expected to work.
    """

    study: Study
    hospitals: Sequence[HospitalPlan]
    parameters: int
    release_bytes: int | None
    memory_mib: int
    strength: float | None
    warnings: Sequence[str]

    @property
    def strength_needed(self) -> float:
        """The strength below which training gained nothing where it was measured."""
        return NEEDED


def plan_of_wards(study: Study, wards: Mapping[str, Path]) -> Plan:
    """Return the plan of a study among hospitals whose folders are here: their policies count."""
    step = step_cost(study)
    found = [_of_ward(study, Hospital.open(path), step.seconds) for path in wards.values()]
    return _plan(study, found, step)


def plan_of_patients(study: Study, patients: Sequence[int]) -> Plan:
    """Return the plan of a study among hospitals that declare so many training patients each."""
    step = step_cost(study)
    found = [
        _hospital(study, f"hospital {number}", count, study.training.steps, step.seconds)
        for number, count in enumerate(patients, start=1)
    ]
    return _plan(study, found, step)


def _plan(study: Study, hospitals: Sequence[HospitalPlan], step: "StepCost") -> Plan:
    able = {h.name: (h.patients, study.training.steps) for h in hospitals if not h.refusal}
    numel = P.numel(P.of(study.built()))
    found = reach_of(study, able) if able else None
    words = list(warnings(study, able)) if able else []
    if len(able) < study.sites.min:
        words.append(
            f"{len(able)} hospitals would take part, the study's sites.min is {study.sites.min}."
        )
    bits = {"predictions": None}.get(study.export, study.release_bits)
    return Plan(
        study=study,
        hospitals=hospitals,
        parameters=numel,
        release_bytes=None if bits is None else numel * bits // 8,
        memory_mib=step.memory_mib,
        strength=found.strength(numel) if found else None,
        warnings=words,
    )


def _of_ward(study: Study, hospital: Hospital, seconds: float) -> HospitalPlan:
    policy = hospital.policy
    try:
        admit(policy, study)
        check_list(hospital, study)
        steps = training_for(policy, study).steps
        mechanism = mechanism_for_study(policy, study)
    except Refused as why:
        return HospitalPlan(policy.name, policy.declared_training, None, (), None, 0.0, str(why))
    found = _hospital(study, policy.name, policy.declared_training, steps, seconds)
    if mechanism is None or found.refusal:
        return found
    delta, spent = policy.budget.delta, 0.0
    events = [mechanism.event] * (study.rounds + study.spare)
    for history in hospital.ledger.histories() or [[]]:
        spent = max(spent, epsilon([*history, *events], delta, hospital.ledger.rule))
    refusal = ""
    if not policy.budget.covers(spent):
        refusal = f"its budget of epsilon {policy.budget.epsilon:g} would be exceeded: {spent:.2f}"
    return HospitalPlan(
        found.name, found.patients, found.noise, found.epsilons, (spent, policy.budget.epsilon),
        found.seconds, refusal,
    )  # fmt: skip


def _hospital(study: Study, name: str, patients: int, steps: int, seconds: float) -> HospitalPlan:
    lot = study.training.lot_size or patients
    took = steps * min(lot, patients) * seconds
    if study.privacy.mode == "none":
        return HospitalPlan(name, patients, None, (), None, took)
    try:
        mechanism = mechanism_for(
            study.privacy, rounds=study.rounds, steps=steps, lot=study.training.lot_size,
            declared=patients,
        )  # fmt: skip
    except ValueError as error:
        return HospitalPlan(name, patients, None, (), None, 0.0, str(error))
    return HospitalPlan(
        name, patients, mechanism.noise_multiplier, _epsilons(study, mechanism), None, took
    )


def _epsilons(study: Study, mechanism: Mechanism) -> tuple[float, ...]:
    if study.privacy.mode == "none":
        return ()
    delta = study.privacy.delta
    return tuple(epsilon([mechanism.event] * k, delta) for k in range(1, study.rounds + 1))


@dataclass(frozen=True)
class StepCost:
    """What a training step costs here: seconds for each scan, and memory over the idle process's."""

    seconds: float
    memory_mib: int


def step_cost(study: Study) -> StepCost:
    """Measure a training step on random images of the study's shape, with one thread."""
    count = min(MICROBATCH, study.training.microbatch)
    shape, task = study.preprocessing.shape, build_task(study.task)
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(count, study.task.in_channels, *shape, generator=rng)
    targets = _targets(study, count)
    network, threads = network_for(study.network, study, CPU, None), torch.get_num_threads()
    torch.set_num_threads(1)
    before, seconds = _peak(), []
    try:
        for _ in range(3):
            started = time.perf_counter()
            _step(study, network, task, images, targets)
            seconds.append((time.perf_counter() - started) / count)
    finally:
        torch.set_num_threads(threads)
    return StepCost(min(seconds), max(1, (_peak() - before) // MIB))


def _step(
    study: Study, network: nn.Module, task: Task, images: torch.Tensor, targets: torch.Tensor
) -> None:
    if study.clips_patients:
        numbers = torch.arange(len(images))
        clipped_sums(network, task.loss, images, targets, numbers, torch.ones_like)
    else:
        torch.autograd.backward(task.loss(network(images), targets).mean())


def _targets(study: Study, count: int) -> torch.Tensor:
    task, shape = study.task, study.preprocessing.shape
    if task.kind == "segmentation":
        return torch.zeros(count, prod(shape)).long().view(count, *shape)
    if task.kind == "regression":
        return torch.full((count,), float(task.low))
    return torch.zeros(count, *([len(task.labels)] if task.multi_label else [])).long()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
