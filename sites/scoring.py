"""How a model does on a hospital's evaluation patients, who never train."""

from collections.abc import Iterator, Sequence

import torch

from models.objectives import Prediction, Task
from privacy.accounting import PrivacyEvent
from privacy.noise import NoiseSource
from sites.cohort import Patient
from sites.inference import Predict


def score(predict: Predict, task: Task, patients: Sequence[Patient]) -> dict[str, float]:
    """Return the mean metrics over `patients`, each of whom counts once.

    One scan is in memory at a time.
    """
    return task.metrics(_predictions(predict, patient) for patient in patients)


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

    Guarantees: d metrics of a patient lie in [0, 1], so zeroing him moves their sum by at most
    sqrt(d) in L2; the divisor is the declared number of evaluation patients. Where there are
    several labels, `dice` is the mean of their noised values, which costs nothing more.
    """
    outcomes = [task.bounded(_predictions(predict, patient)) for patient in patients]
    names = sorted(outcomes[0])
    total = torch.tensor([[o[name] for name in names] for o in outcomes]).double().sum(0)
    std = event.noise_multiplier * len(names) ** 0.5
    mean = ((total + noise.normal((len(names),), std)) / declared).clamp(0, 1)
    metrics = dict(zip(names, mean.tolist(), strict=True))
    dice = [value for name, value in metrics.items() if name.startswith("dice/")]
    return {**metrics, "dice": sum(dice) / len(dice)} if dice else metrics


def _predictions(predict: Predict, patient: Patient) -> Iterator[Prediction]:
    for scan in patient.scans:
        prepared = scan.load()
        yield Prediction(predict(prepared), prepared.truth, prepared.spacing_mm)
