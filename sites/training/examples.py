"""Training examples: images and targets of patients' scans, drawn patient by patient."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor

from sites.cohort import Patient
from sites.imaging.preprocessing import Pair, PreprocessingConfig, drawn_pairs, fixed_pair

Batch = tuple[Tensor, Tensor, Tensor]
"""Images, targets, and each image's position among the batch's patients."""


@dataclass(frozen=True)
class Examples:
    """Training examples of `count` patients.

    `draw(i, step)` returns patient i's images `(S, 1, *shape)` and targets `(S, ...)` at a step. S is
    the number of images from that patient's scans.
    """

    count: int
    draw: Callable[[int, int], Pair]

    def batch(self, patients: Sequence[int], step: int) -> Batch:
        """Return these patients' images and targets, and each image's position in `patients`."""
        drawn = [self.draw(i, step) for i in patients]
        images = torch.tensor([len(images) for images, _ in drawn])
        return (
            torch.cat([images for images, _ in drawn]),
            torch.cat([targets for _, targets in drawn]),
            torch.arange(len(patients)).repeat_interleave(images),
        )

    def __len__(self) -> int:
        return self.count


def prepare(
    patients: Sequence[Patient], config: PreprocessingConfig, device: torch.device, seed: int
) -> Examples:
    """Return the patients' scans, preprocessed for the network at each step.

    Without random draws, the preprocessed scans stay in memory. Otherwise each step loads the scans
    that it needs.

    Args:
        seed: seed of the random draws, which depend only on it, the patient, the scan and the step.
    """
    if config.is_random:
        return Examples(len(patients), lambda i, step: _drawn(patients[i], config, seed, step, device))
    fixed = [
        _stacked([fixed_pair(scan.load(), config) for scan in patient.scans], device)
        for patient in patients
    ]
    return Examples(len(fixed), lambda i, step: fixed[i])


def _drawn(
    patient: Patient, config: PreprocessingConfig, seed: int, step: int, device: torch.device
) -> Pair:
    pairs = []
    for number, scan in enumerate(patient.scans):
        text = f"{seed} {patient.pseudonym} {step} {number}"
        own = int.from_bytes(sha256(text.encode()).digest()[:4])
        pairs += drawn_pairs(scan.load(), config, own)
    return _stacked(pairs, device)


def _stacked(pairs: Sequence[Pair], device: torch.device) -> Pair:
    images, targets = zip(*pairs, strict=True)
    return torch.stack(images).to(device), torch.stack(targets).to(device)
