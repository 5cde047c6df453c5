"""Scores of a model on a hospital's evaluation patients, who never train."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.objectives import Prediction, Task
from models.settings.metrics import LOWER_IS_BETTER, flat
from models.settings.tasks import TaskConfig
from privacy.accounting import PrivacyEvent
from privacy.noise.noised import Noised, noised_sums, to_grid
from privacy.noise.source import NoiseSource
from privacy.statements import LARGEST_METRIC
from sites.cohort import Patient
from sites.inference import Predict

log = logging.getLogger("wardround.site")

T = TypeVar("T")

FEWEST = 10
"""Smallest number of patients for which an interval is published."""
WITHIN = 1.96
"""Standard deviations to each end of a normal distribution's interval of 95 %."""
DRAWS = 200
"""Number of draws of patients for an interval."""


def score(predict: Predict, task: Task, patients: Sequence[Patient]) -> dict[str, float]:
    """Return the mean metrics over `patients`, each of whom counts once.

    One scan is in memory at a time.
    """
    return task.over_patients(kept(predict, task, patients))


def kept(predict: Predict, task: Task, patients: Sequence[Patient]) -> list[Any]:
    """Return the values of each patient that the metrics need, with one scan in memory at a time."""
    return [_robust(task.of_patient, predict, patient) for patient in patients]


def intervals(task: Task, outcomes: Sequence[Any], seed: int) -> dict[str, float]:
    """Return `low/<metric>` and `high/<metric>`: the 95 % interval of each metric over patients.

    The ends are percentiles of the metrics of patients drawn with replacement. With fewer than `FEWEST`
    patients the ends would be values of single patients, so no interval is returned. A metric that is
    missing in some draws has no interval either.

    Source: Efron 1979, Bootstrap Methods: Another Look at the Jackknife,
    https://doi.org/10.1214/aos/1176344552.
    """
    if len(outcomes) < FEWEST:
        return {}
    rng = np.random.default_rng(seed)
    draws = [
        task.over_patients([outcomes[i] for i in rng.integers(len(outcomes), size=len(outcomes))])
        for _ in range(DRAWS)
    ]
    common = set.intersection(*(set(draw) for draw in draws))
    found: dict[str, float] = {}
    for name in sorted(common):
        low, high = np.percentile([draw[name] for draw in draws], [2.5, 97.5])
        found |= {f"low/{flat(name)}": float(low), f"high/{flat(name)}": float(high)}
    return found


def coarse(metrics: Mapping[str, float], task: TaskConfig, declared: int) -> dict[str, float]:
    """Return exact metrics in steps that do not show the true number of patients.

    An accuracy of 0.826087 is 19 of 23. Metrics of classes are rounded to the nearest share of the
    `declared` number of evaluation patients, those of segmentations to three digits, errors of numbers
    to a thousandth of the study's range.

    >>> from models.settings.tasks import ClassificationConfig
    >>> task = ClassificationConfig(kind="classification", dims=2, labels={0: "well", 1: "ill"})
    >>> coarse({"accuracy": 19 / 23}, task, declared=20)
    {'accuracy': 0.85}
    """
    metrics = {name: min(value, LARGEST_METRIC) for name, value in metrics.items()}
    if task.kind == "regression":
        steps = {"within_tolerance": 1 / declared, "mae": (task.high - task.low) / 1000}
        parts = {name: name.rpartition("/")[2] for name in metrics}  # low/mae, attacked/mae
        return {name: round(v / steps[parts[name]]) * steps[parts[name]] for name, v in metrics.items()}
    if task.kind == "classification":
        return {name: round(value * declared) / declared for name, value in metrics.items()}
    return {name: round(value, 3) for name, value in metrics.items()}


def worst_case(outcomes: Sequence[Any]) -> dict[str, float]:
    """Return `worst_case/<metric>`: the worst patient's value of each metric defined for one patient."""
    if not all(isinstance(outcome, Mapping) for outcome in outcomes):
        return {}
    return {
        f"worst_case/{flat(name)}": (max if name in LOWER_IS_BETTER else min)(o[name] for o in outcomes)
        for name in outcomes[0]
    }


def noised_score(
    predict: Predict,
    task: Task,
    patients: Sequence[Patient],
    *,
    declared: int,
    event: PrivacyEvent,
    noise: NoiseSource,
) -> dict[str, float]:
    """Return the mean metrics over patients with the Gaussian noise that `event` states.

    Each has `low/<metric>` and `high/<metric>` beside it, the ends of the 95 % interval of its noise;
    values may lie outside [0, 1]. If the true number of patients is smaller than `declared`, the values
    are smaller in the same proportion.

    Guarantees: each of a patient's d metrics is in [0, 1], so setting them to zero changes the sum by at
    most sqrt(d) in L2; the divisor is the declared number of evaluation patients. If there are several
    labels, `dice` is the mean of their noised values, at no extra privacy cost.
    """
    rows = bounded_rows(predict, task, patients)
    deviation = event.noise_multiplier * rows.shape[1] ** 0.5
    sums = noised_sums(rows, event, rows.shape[1] ** 0.5, noise)
    return noised_means(sums, task, declared, deviation)


def bounded_rows(predict: Predict, task: Task, patients: Sequence[Patient]) -> NDArray[np.float64]:
    """Return each patient's metrics from 0 to 1, `(P, D)`, in the order of their names."""
    outcomes = [_robust(task.bounded, predict, patient) for patient in patients]
    names = sorted(task.bounded([]))
    values = [[outcome[name] for name in names] for outcome in outcomes]
    return np.array(values, dtype=np.float64).reshape(-1, len(names))


def noised_means(
    sums: Noised, task: Task, declared: int, deviation: float
) -> dict[str, float]:  # fmt: skip
    """Return metrics with the intervals of their noise, by noised sums over a declared number.

    Args:
        deviation: the standard deviation of each sum's noise.
    """
    names = sorted(task.bounded([]))
    metrics = dict(zip(names, sums.means(declared), strict=True))
    std = dict.fromkeys(names, deviation / declared)
    dice = [value for name, value in metrics.items() if name.startswith("dice/")]
    if dice:
        metrics["dice"] = to_grid(sum(dice) / len(dice))
        std["dice"] = std[names[0]] / len(dice) ** 0.5
    for name in list(metrics):
        for end, sign in (("low", -1), ("high", 1)):
            metrics[f"{end}/{flat(name)}"] = to_grid(metrics[name] + sign * WITHIN * std[name])
    return metrics


def _predictions(predict: Predict, patient: Patient) -> Iterator[Prediction]:
    for scan in patient.scans:
        try:
            prepared = scan.load()
            probabilities = predict(prepared)
        except Exception as error:  # an error that ends the evaluation could be seen from outside
            log.warning("a scan can't be scored and counts as none: %s", type(error).__name__)
            continue
        yield Prediction(probabilities, prepared.truth, prepared.spacing_mm)


def _robust(of: Callable[[Iterable[Prediction]], T], predict: Predict, patient: Patient) -> T:
    """Return a patient's outcome; a miss if it can't be computed."""
    try:
        return of(_predictions(predict, patient))
    except Exception as error:  # as above
        log.warning("a patient can't be scored and is a miss: %s", type(error).__name__)
        return of(())
