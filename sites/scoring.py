"""How a model does on a hospital's evaluation patients, who never train."""

from collections.abc import Sequence

import torch
from torch import nn

from models.objectives import Prediction, Task
from privacy.accounting import PrivacyEvent
from privacy.noise import NoiseSource
from sites.cohort import Patient
from sites.intake import Scan
from sites.preprocessing import whole_image


@torch.no_grad()
def score(
    network: nn.Module, task: Task, divisor: int, patients: Sequence[Patient], device: torch.device
) -> dict[str, float]:
    """Return the mean metrics over `patients`, each of whom counts once.

    Every scan is predicted whole, at its own size.
    """
    return task.metrics(
        [[_predict(network, task, divisor, scan, device) for scan in p.scans] for p in patients]
    )


@torch.no_grad()
def noised_score(
    network: nn.Module,
    task: Task,
    divisor: int,
    patients: Sequence[Patient],
    device: torch.device,
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
    predictions = [
        [_predict(network, task, divisor, scan, device) for scan in patient.scans]
        for patient in patients
    ]
    outcomes = [task.bounded(scans) for scans in predictions]
    names = sorted(outcomes[0])
    total = torch.tensor([[o[name] for name in names] for o in outcomes]).double().sum(0)
    std = event.noise_multiplier * len(names) ** 0.5
    mean = ((total + noise.normal((len(names),), std)) / declared).clamp(0, 1)
    metrics = dict(zip(names, mean.tolist(), strict=True))
    dice = [value for name, value in metrics.items() if name.startswith("dice/")]
    return {**metrics, "dice": sum(dice) / len(dice)} if dice else metrics


def _predict(
    network: nn.Module, task: Task, divisor: int, scan: Scan, device: torch.device
) -> Prediction:
    image = whole_image(scan, divisor).to(device)
    probabilities = task.activation(network(image[None]))[0].cpu()
    within = (slice(None), *(slice(side) for side in scan.target.shape))
    return Prediction(probabilities[within], torch.from_numpy(scan.target), scan.spacing_mm)
