"""Metrics and surveys in the sum over all hospitals: the right figures, paid for, and nobody's own."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import change_yaml
from consortium import NAMES, SEED, Consortium, small_hospitals, study_with_sum
from pydantic import ValidationError

from flows.rounds.figures import ask_survey, summed_survey
from flows.rounds.statements import Answers
from flows.rounds.sum_progress import progress
from flows.runs.run import Run
from flows.verification.check_evaluations import score_faults
from flows.verification.check_sums import sum_faults
from models.objectives import build_task, flat
from privacy.accounting import epsilon
from privacy.noise.discrete_gaussian import discrete_gaussian
from privacy.noise.noised import UNITS, share_variance
from privacy.noise.source import NoiseSource
from sites.evaluation.scoring import bounded_rows
from sites.evaluation.survey import bins, rows_of, sensitivity
from sites.hospital import Hospital
from sites.inference import predictor
from sites.local_models import CPU, network_for
from sites.orders import Phase
from sites.secure_sum.figures import event_of
from sites.study import Study

SUMMED = {"every": 1, "summed": {"epsilon": 60}}
SUM = {"sum": {"dropouts": 1, "colluding": 1}, "fewest": 4}
POLICY = {"shared_noise": {"colluding": 1}, "statistics": {"kind": "noised", "epsilon": 50}}
Make = Callable[..., Consortium]


@pytest.fixture
def made(tmp_path: Path, small_study) -> Make:
    def make(mode: str = "shared_noise", **changes: object) -> Consortium:
        wards = small_hospitals(tmp_path / "wards", NAMES, patients=10)
        for ward in wards:
            change_yaml(ward / "site.yaml", **POLICY)
        whole = {**SUM, "evaluation": SUMMED, **changes}
        return Consortium.begin(tmp_path, study_with_sum(small_study, mode, **whole), wards)

    return make


def drawn(hospital: Hospital, run: Run, number: int, kind: str, length: int, norm: float) -> np.ndarray:
    """Return the share of the noise that a hospital adds."""
    purpose = f"{run.study.sha256} {number} {kind} {run.name}"
    source = NoiseSource.for_test(SEED, f"{hospital.name} {purpose}")
    honest = len(NAMES) - 2
    return discrete_gaussian(source, length, share_variance(event_of(run.study, kind), norm, honest))


def by_hand(made: Consortium, number: int, survivors: tuple[str, ...]) -> dict[str, float]:
    """Return the metrics of all survivors' patients together, with everybody's share of the noise."""
    run, task = made.run, build_task(made.run.study.task)
    network = network_for(run.study.network, run.study, CPU, made.models[number])
    names, total, declared = sorted(task.bounded([])), 0, 0
    for name in survivors:
        hospital = made.hospitals[name]
        patients = hospital.cohort(run.study).evaluation
        rows = bounded_rows(predictor(network, run.study, run.study.network, CPU), task, patients)
        total = total + np.floor(rows * UNITS).sum(0)
        total = total + drawn(hospital, run, number, "metrics", len(names), len(names) ** 0.5)
        declared += hospital.policy.declared_evaluation
    return dict(zip(names, total / UNITS / declared, strict=True))


@pytest.mark.parametrize("mode", ["masked", "shared_noise"])
@pytest.mark.parametrize("lost", [(), ("south",)])
def test_metrics_are_those_of_all_patients_together_with_the_shares_of_noise(
    mode: str, lost: tuple[str, ...], made: Make
) -> None:
    run = made(mode)
    run.silent = {"evaluate": lost}
    record = run.round(1)
    survivors = tuple(name for name in sorted(NAMES) if name not in lost)
    assert tuple(sorted(record.scores)) == survivors
    for name, due in by_hand(run, 1, survivors).items():
        assert record.quality[name] == pytest.approx(due, abs=2**-20)
        assert record.quality[f"low/{flat(name)}"] < record.quality[name]
    assert all(not each for each in record.metrics.values())
    assert list(sum_faults(run.run, run.run.records())) == []
    assert list(score_faults(run.run, run.run.records(), record)) == []
    altered = record.model_copy(update={"quality": {**record.quality, "dice": 0.99}})
    (fault,) = score_faults(run.run, run.run.records(), altered)
    assert fault == "The quality of round 1 is not the sum of its scores."


def test_each_evaluation_is_charged_and_all_of_a_run_cost_what_the_study_says(made: Make) -> None:
    run = made()
    for number in range(1, run.run.study.rounds + 1):
        run.round(number)
    for hospital in run.hospitals.values():
        events = [c.event for c in hospital.ledger.charges(run.run.name) if c.purpose == "evaluate"]
        assert len(events) == run.run.study.rounds + 1
        spent = epsilon(events, run.run.study.privacy.delta, hospital.ledger.rule)
        assert 0.8 * 60 < spent <= 60 * (1 + 1e-6)


def test_a_hospital_that_withholds_metrics_or_refuses_shares_is_in_no_sum(made: Make) -> None:
    run = made()
    change_yaml(run.hospitals["south"].folder / "site.yaml", metrics="withheld")
    south = Hospital.open(run.hospitals["south"].folder, test_noise=SEED)
    run.hospitals = {**run.hospitals, "south": south}
    record = run.round(1)
    assert "too few" in str(record.hospitals["north"].scores)
    assert "the hospital withholds metrics" in str(record.hospitals["south"].scores)
    assert record.quality == {} and record.metrics_sum.failed
    assert list(sum_faults(run.run, run.run.records())) == []
    for hospital in run.hospitals.values():
        charges = [c for c in hospital.ledger.charges(run.run.name) if c.purpose == "evaluate"]
        assert len(charges) == 1  # of the model before training


def test_an_interrupted_evaluation_goes_on_with_the_same_statements(made: Make) -> None:
    class Killed(Exception):
        pass

    run = made()
    ask = run.ask

    def killed(of: Run, number: int, phase: Phase, sites: Sequence[str]) -> Answers:
        if phase == "metrics-opening":
            raise Killed
        return ask(of, number, phase, sites)

    run.ask = killed
    with pytest.raises(Killed):
        run.round(1)
    before = progress(run.run, 1, "metrics")
    run.ask, run.models = ask, run.models[:1]
    record = run.round(1)
    assert {s: e.statement_sha256 for s, e in record.scores.items()} == before.members("evaluate")
    assert record.metrics_sum.phases.items() >= before.phases.items()
    for hospital in run.hospitals.values():
        assert [c.purpose for c in hospital.ledger.charges(run.run.name)].count("evaluate") == 2


def test_a_survey_is_that_of_all_patients_together(made: Make) -> None:
    run = made(survey={"epsilon": 40})
    asked = Run.create(
        run.run.home,
        run.run.study,
        dict(run.run.description.roster),
        run.run.home.exchange,
        kind="survey",
    )
    asked.begin_attempt()
    answers = ask_survey(asked, run.ask)
    assert set(answers.taken) == set(NAMES)
    assert all(not each.statement.histograms for each in answers.taken.values())
    task, total, declared = run.run.study.task, 0, 0
    for hospital in run.hospitals.values():
        cohort = hospital.cohort(run.run.study)
        rows = rows_of((*cohort.training, *cohort.evaluation), task)
        total = total + np.floor(rows * UNITS).sum(0)
        total = total + drawn(hospital, asked, 0, "survey", rows.shape[1], sensitivity(task))
        declared += hospital.policy.declared_patients
    due = np.clip(total / UNITS / declared, 0, 1)
    found = summed_survey(asked)
    assert {name: len(each) for name, each in found.items()} == bins(task)
    assert np.allclose(np.concatenate(list(found.values())), due, atol=2**-20)


@pytest.mark.parametrize(
    ("mode", "changes", "message"),
    [
        ("local", {}, "evaluation.summed, survey: expected privacy.mode: masked or shared_noise"),
        ("masked", {"evaluation": {**SUMMED, "teachers": True}}, "expected no attack and no teachers"),
        ("masked", {"promotion": {"metric": "dice", "worst_site": 0.5}}, "with evaluation.summed"),
    ],
)
def test_figures_that_no_sum_has_are_refused(
    mode: str, changes: dict[str, object], message: str, small_study
) -> None:
    content = study_with_sum(small_study, "masked").model_dump(mode="json")
    content |= {"evaluation": SUMMED, **changes}
    if mode == "local":
        content["privacy"]["mode"] = "local"
        del content["privacy"]["sum"]
    with pytest.raises(ValidationError, match=message):
        Study.model_validate(content)
