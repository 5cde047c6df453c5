"""Metrics and surveys in the sum over all hospitals: the right figures, paid for, and nobody's own."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import change_yaml
from consortium import NAMES, SEED, Consortium, small_hospitals, study_with_sum
from pydantic import ValidationError

from flows.rounds import statements
from flows.rounds.figures import ask_scores, ask_survey, summed_survey
from flows.rounds.statements import Answers
from flows.rounds.sum_progress import progress
from flows.runs.run import Run
from flows.verification.check_evaluations import score_faults
from flows.verification.check_sums import sum_faults
from models.objectives import build_task
from models.settings.metrics import flat
from models.settings.tasks import ClassificationConfig
from privacy.accounting import PrivacyEvent, epsilon
from privacy.noise.discrete_gaussian import discrete_gaussian
from privacy.noise.noised import LARGEST_TOTAL, UNITS, SharedSums
from privacy.noise.source import NoiseSource
from sites.admission.admission import check_round
from sites.evaluation.scoring import bounded_rows, noised_means
from sites.evaluation.survey import bins, rows_of, sensitivity
from sites.exchange.phases import Phase
from sites.hospital import Hospital
from sites.inference import predictor
from sites.local_models import CPU, network_for
from sites.orders import SumOrder
from sites.policy.policy import Refused
from sites.secure_sum.figures import event_of
from sites.study import Study

SUMMED = {"every": 1, "summed": {"epsilon": 60}}
SUM = {"sum": {"dropouts": 1, "colluding": 1}, "fewest": 4}
POLICY = {"shared_noise": {"colluding": 1}, "statistics": {"kind": "noised", "epsilon": 50}}
NOISED = {"metrics": "noised"}
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


def shared_in(run: Run, kind: str, length: int, norm: float, patients: int = 1) -> SharedSums:
    return SharedSums(event_of(run.study, kind), norm, length, len(NAMES) - 2, patients)


def drawn(hospital: Hospital, run: Run, number: int, kind: str, length: int, norm: float) -> np.ndarray:
    """Return the share of the noise that a hospital adds."""
    purpose = f"{run.study.sha256} {number} {kind} {run.name}"
    source = NoiseSource.for_test(SEED, f"{hospital.name} {purpose}")
    return discrete_gaussian(source, length, shared_in(run, kind, length, norm).share_variance)


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


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        ({"metrics": "withheld"}, "the hospital withholds metrics"),
        ({"shared_noise": "refuse"}, "shared_noise: refuse"),
        ({"shared_noise": {"colluding": 1, "own_epsilon": 5}}, "noise alone the metrics would cost"),
        ({**NOISED, "noised_metrics": {"epsilon": 1, "evaluations": 9}}, "the policy allows 1 in 9"),
        ({**NOISED, "noised_metrics": {"epsilon": 90, "evaluations": 1}}, "the policy allows 90 in 1"),
        ({"budget": {"epsilon": 30, "delta": 1e-3}}, "Expected epsilon of at most 30"),
    ],
)
def test_a_limit_keeps_a_hospital_out_before_anybody_is_charged(
    policy: dict[str, object], why: str, made: Make
) -> None:
    run = made()
    folder = run.hospitals["south"].folder
    change_yaml(folder / "site.yaml", **policy)
    run.hospitals = {**run.hospitals, "south": Hospital.open(folder, test_noise=SEED)}
    charged = {name: len(h.ledger.charges(run.run.name)) for name, h in run.hospitals.items()}
    answers = ask_scores(run.run, 1, "0" * 64, run.ask)
    assert answers.taken == {}
    assert why in str(answers.absent["south"]), answers.absent
    assert {n: len(h.ledger.charges(run.run.name)) for n, h in run.hospitals.items()} == charged
    assert ask_scores(run.run, 1, "0" * 64, run.ask).absent == answers.absent  # also when it goes on


def test_a_hospital_makes_one_attempt_at_a_sum_of_figures_and_one_survey_a_run(made: Make) -> None:
    run = made(survey={"epsilon": 40})
    order = statements.order(run.run, 1, "metrics-keys", "north")
    with pytest.raises(Refused, match="a sum of figures has one attempt"):
        check_round(order.model_copy(update={"sum": SumOrder(attempt=2)}))
    survey = statements.order(run.run, 0, "survey-keys", "north")
    check_round(survey)
    with pytest.raises(Refused, match="a survey has one round"):
        check_round(survey.model_copy(update={"round": 1}))


def test_messages_of_a_sum_that_the_study_has_not_are_refused(made: Make) -> None:
    run = made(evaluation={})
    order = statements.order(run.run, 1, "metrics-keys", "north")
    with pytest.raises(Refused, match="no secure sum that metrics-keys is part of"):
        check_round(order)


@pytest.mark.parametrize("patients", [1, 2**14, 2**14 + 1, 10**7])
def test_a_total_of_any_number_of_patients_stays_on_the_ring_and_is_paid_for(patients: int) -> None:
    shared = SharedSums(PrivacyEvent(3.0, 1.0, 1), 2.0, 4, 3, patients)
    assert (patients * UNITS) >> shared.shift <= LARGEST_TOTAL
    assert (patients <= 2**14) == (shared.shift == 0)
    rows = np.ones((1000, 4))
    sums = [np.floor(each * UNITS).sum(0).astype(int) >> shared.shift for each in (rows, rows[1:])]
    assert np.linalg.norm(sums[0] - sums[1]) <= shared.moved
    assert 3 * shared.share_variance >= (3.0 * shared.moved) ** 2
    noisy = shared.noisy(rows, NoiseSource.for_test(1, "x"))
    found = np.array(shared.total(noisy.tolist()).units) / UNITS
    assert np.allclose(found, 1000, atol=5 * shared.deviation(1) + 4 * 2**shared.shift / UNITS)


def test_the_interval_of_a_sum_counts_the_shares_of_everybody_in_it() -> None:
    task = build_task(ClassificationConfig(kind="classification", dims=2, labels={0: "a", 1: "b"}))
    name, *_ = names = sorted(task.bounded([]))
    count, inside = len(names), 0
    shared = SharedSums(PrivacyEvent(5.0, 1.0, 1), count**0.5, count, 3, 100)
    for seed in range(400):
        rows = np.full((50, count), 0.5)
        each = [shared.noisy(rows, NoiseSource.for_test(seed, f"{site}")) for site in range(6)]
        metrics = noised_means(shared.total(sum(each).tolist()), task, 300, shared.deviation(6))
        inside += metrics[f"low/{flat(name)}"] <= 0.5 <= metrics[f"high/{flat(name)}"]
    assert inside / 400 == pytest.approx(0.95, abs=0.035)


def test_a_study_is_gated_on_metrics_that_a_sum_has(small_study) -> None:
    content = study_with_sum(small_study, "masked").model_dump(mode="json")
    content |= {"evaluation": SUMMED, "promotion": {"metric": "surface_dice"}}
    with pytest.raises(ValidationError, match=r"promotion.metric: expected one of .*'dice'"):
        Study.model_validate(content)
