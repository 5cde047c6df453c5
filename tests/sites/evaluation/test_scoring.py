from functools import partial

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from models.objectives import build_task
from models.settings.images import PreprocessingConfig
from models.settings.tasks import SegmentationConfig
from privacy.accounting import PrivacyEvent
from privacy.noise.noised import STEP, is_on_grid
from privacy.noise.source import NoiseSource
from privacy.statements import LARGEST_METRIC, MetricValue
from sites.cohort import Patient
from sites.evaluation.scoring import FEWEST, coarse, intervals, kept, noised_score, score, worst_case
from sites.imaging.intake import Scan
from sites.imaging.preprocessing import prepare
from sites.imaging.profile import profile_of
from sites.imaging.reading import Reading
from sites.inference import predict

SEGMENTATION = SegmentationConfig(kind="segmentation", dims=2, labels={1: "a", 2: "b"})
TASK = build_task(SEGMENTATION)


class Reads(torch.nn.Module):
    """Network that answers with the label in the normalised image: low, middle, high."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ranks = [x < 0, (x >= 0) & (x < 2.4), x >= 2.4]
        return 50 * torch.cat(ranks, 1).float()


CONFIG = PreprocessingConfig(shape=(8, 8))
READS = partial(predict, Reads(), TASK.activation, CONFIG, (4, 4), device=torch.device("cpu"))


def patients(count: int) -> list[Patient]:
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        target = np.zeros((9, 7), dtype=np.int64)
        target[2:4, 1 : 4 + i % 2], target[6:8, 2:4] = 1, 2
        image = (target * 100 + rng.normal(0, 1, target.shape)).astype(np.float32)
        scan = Scan(image[None], target, (1.0, 1.0))
        reading = Reading(profile_of(scan), (), lambda scan=scan: prepare(scan, CONFIG))
        made.append(Patient(str(i), (reading,) * (1 + i % 2)))
    return made


def test_a_network_that_reads_the_truth_scores_one_on_images_of_any_size() -> None:
    metrics = score(READS, TASK, patients(3))
    assert metrics == {"dice": 1.0, "dice/a": 1.0, "dice/b": 1.0, "hd95_mm": 0.0, "surface_dice": 1.0}


def test_noised_metrics_are_the_exact_sum_with_noise_of_the_stated_size() -> None:
    draws = [
        noised_score(
            READS, TASK, patients(4),
            declared=100, event=PrivacyEvent(10.0, 1.0, 1), noise=NoiseSource.for_test(seed, ""),
        )
        for seed in range(160)
    ]  # fmt: skip
    std = 10 * 2**0.5 / 100
    values = torch.tensor([[d["dice/a"], d["dice/b"]] for d in draws])
    assert values.std().item() == pytest.approx(std, rel=0.12)
    assert values.mean().item() == pytest.approx(0.04, abs=3 * std / 320**0.5)  # limits would add to it
    assert values.min() < 0
    assert all(d["dice"] == pytest.approx((d["dice/a"] + d["dice/b"]) / 2, abs=STEP) for d in draws)
    assert all(is_on_grid(value) for d in draws for value in d.values())


def test_the_interval_beside_a_noised_metric_is_that_of_its_noise() -> None:
    def draw(seed: int) -> dict[str, float]:
        return noised_score(
            READS, TASK, patients(4),
            declared=4, event=PrivacyEvent(0.1, 1.0, 1), noise=NoiseSource.for_test(seed, "interval"),
        )  # fmt: skip

    draws = [draw(seed) for seed in range(400)]
    for name in ("dice-a", "dice-b", "dice"):
        covered = [d[f"low/{name}"] <= 1 <= d[f"high/{name}"] for d in draws]
        assert sum(covered) / len(covered) == pytest.approx(0.95, abs=0.035)
    first = draws[0]
    assert first["high/dice-a"] - first["low/dice-a"] == pytest.approx(
        2 * 1.96 * 0.1 * 2**0.5 / 4, abs=1e-5
    )
    assert first["high/dice"] - first["low/dice"] == pytest.approx(2 * 1.96 * 0.1 / 4, abs=1e-5)


def test_noised_metrics_divide_by_the_declared_number() -> None:
    metrics = noised_score(
        READS, TASK, patients(4),
        declared=8, event=PrivacyEvent(1e-4, 1.0, 1), noise=NoiseSource.for_test(0, ""),
    )  # fmt: skip
    assert metrics["dice/a"] == pytest.approx(0.5, abs=1e-3)


def outcomes_of(count: int) -> list[dict[str, float]]:
    rng = np.random.default_rng(count)
    return [
        {"dice": float(d), "dice/a": float(d), "hd95_mm": 9 * float(d)} for d in rng.uniform(size=count)
    ]


def test_an_interval_is_that_of_means_of_patients_drawn_with_replacement() -> None:
    outcomes = outcomes_of(40)
    found = intervals(TASK, outcomes, 7)
    dice = np.array([outcome["dice"] for outcome in outcomes])
    half = 1.96 * dice.std() / len(dice) ** 0.5  # of the normal distribution that the mean approaches
    assert found["low/dice"] == pytest.approx(dice.mean() - half, abs=0.03)
    assert found["high/dice"] == pytest.approx(dice.mean() + half, abs=0.03)
    assert found["low/dice-a"] == found["low/dice"] and found["high/hd95_mm"] > 9 * dice.mean()
    assert intervals(TASK, outcomes, 7) == found != intervals(TASK, outcomes, 8)


def test_of_few_patients_no_interval_is_told_as_its_ends_would_be_single_ones() -> None:
    assert intervals(TASK, outcomes_of(FEWEST - 1), 0) == {}
    few = outcomes_of(FEWEST)
    singles = {round(outcome["dice"], 9) for outcome in few}
    found = intervals(TASK, few, 0)
    assert not singles & {round(found["low/dice"], 9), round(found["high/dice"], 9)}


def test_the_worst_case_is_the_worst_patients_value_whatever_worse_means() -> None:
    found = worst_case(outcomes_of(12))
    assert found["worst_case/dice"] == min(o["dice"] for o in outcomes_of(12))
    assert found["worst_case/hd95_mm"] == max(o["hd95_mm"] for o in outcomes_of(12))
    assert worst_case([(torch.zeros(2), torch.tensor(1))]) == {}  # classes have none


def test_a_metric_above_what_a_statement_holds_is_cut_to_it() -> None:
    """The distance in a scan whose voxels state a wrong unit is no reason to end a round."""
    found = coarse({"dice": 0.12345, "hd95_mm": 3e9}, SEGMENTATION, declared=20)
    assert found == {"dice": 0.123, "hd95_mm": LARGEST_METRIC}
    assert TypeAdapter(MetricValue).validate_python(found["hd95_mm"]) == LARGEST_METRIC


def test_what_is_kept_of_patients_makes_the_metrics() -> None:
    assert TASK.over_patients(kept(READS, TASK, patients(3))) == score(READS, TASK, patients(3))
