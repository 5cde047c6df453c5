"""How a model does on a hospital's evaluation patients, who never train."""

from collections.abc import Sequence

import torch
from torch import nn

from models.objectives import Prediction, Task
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


def _predict(
    network: nn.Module, task: Task, divisor: int, scan: Scan, device: torch.device
) -> Prediction:
    image = whole_image(scan, divisor).to(device)
    probabilities = task.activation(network(image[None]))[0].cpu()
    within = (slice(None), *(slice(side) for side in scan.target.shape))
    return Prediction(probabilities[within], torch.from_numpy(scan.target), scan.spacing_mm)
