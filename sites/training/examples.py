"""Training examples: images and targets of patients' scans, drawn patient by patient."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Protocol

import torch
from torch import Tensor

from models.settings.images import PreprocessingConfig
from sites.imaging.preprocessing import Pair, Prepared, drawn_pairs, fixed_pair

log = logging.getLogger("wardround.site")

Batch = tuple[Tensor, Tensor, Tensor]
"""Images, targets, and each image's patient: 0, 1, ... among those of the batch."""


class Loads(Protocol):
    """A scan that can be loaded, such as a `Reading`."""

    @property
    def load(self) -> Callable[[], Prepared]:
        """The function that loads the prepared scan."""


class Drawn(Protocol):
    """A patient from whose scans examples are drawn, such as a `Patient`."""

    @property
    def pseudonym(self) -> str:
        """The patient's keyed hash, on which draws depend."""

    @property
    def scans(self) -> Sequence[Loads]:
        """The patient's scans."""


@dataclass(frozen=True)
class Examples:
    """Training examples of `count` patients.

    `draw(i, step)` returns patient i's images `(S, 1, *shape)` and targets `(S, ...)` at a step. S is
    the number of images from that patient's scans. It returns None if none can be read.
    """

    count: int
    draw: Callable[[int, int], Pair | None]

    def batch(self, patients: Sequence[int], step: int) -> Batch | None:
        """Return the images and targets of these patients, and each image's patient, from 0 on.

        A patient whose scans can't be read adds nothing; None is returned if nobody's can.
        """
        drawn = [pair for i in patients if (pair := self.draw(i, step)) is not None]
        if not drawn:
            return None
        images = torch.tensor([len(images) for images, _ in drawn])
        return (
            torch.cat([images for images, _ in drawn]),
            torch.cat([targets for _, targets in drawn]),
            torch.arange(len(drawn)).repeat_interleave(images),
        )

    def __len__(self) -> int:
        return self.count


def prepare(
    patients: Sequence[Drawn], config: PreprocessingConfig, device: torch.device, seed: int
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
        _stacked(
            [_read(scan, lambda found: [fixed_pair(found, config)]) for scan in patient.scans], device
        )
        for patient in patients
    ]
    return Examples(len(fixed), lambda i, step: fixed[i])


def _drawn(
    patient: Drawn, config: PreprocessingConfig, seed: int, step: int, device: torch.device
) -> Pair | None:
    pairs = []
    for number, scan in enumerate(patient.scans):
        text = f"{seed} {patient.pseudonym} {step} {number}"
        own = int.from_bytes(sha256(text.encode()).digest()[:4])
        pairs.append(_read(scan, partial(drawn_pairs, config=config, seed=own)))
    return _stacked(pairs, device)


def _read(scan: Loads, pairs_of: Callable[[Prepared], list[Pair]]) -> list[Pair]:
    """Return a scan's pairs; none if it can't be read: an error that ends a round could be seen outside.

    The patient then adds less to this step, or nothing, as privacy by zeroing out allows.
    """
    try:
        return pairs_of(scan.load())
    except Exception as error:
        log.warning("a scan can't be read for training and adds nothing: %s", type(error).__name__)
        return []


def _stacked(of_scans: Sequence[list[Pair]], device: torch.device) -> Pair | None:
    pairs = [pair for of_scan in of_scans for pair in of_scan]
    if not pairs:
        return None
    images, targets = zip(*pairs, strict=True)
    return torch.stack(images).to(device), torch.stack(targets).to(device)
