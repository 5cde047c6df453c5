"""What Flower's clients train in `benchmarks/peers.py`: one network on one hospital's phantoms.

It runs in an environment with torch, MONAI and nibabel alone. A hospital's folder is one that
`sites.datasets.phantoms` made; three quarters of its patients train, the others evaluate.
"""

import csv
import json
import os
import time
import uuid
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.metrics import compute_dice
from monai.networks.nets import UNet
from torch import Tensor, nn
from torch.nn.functional import one_hot

CHANNELS, CLASSES, BATCH, RATE = (8, 16, 32), 3, 4, 0.05


def network() -> nn.Module:
    """Return the network of the study, with the same first parameters in each process."""
    torch.manual_seed(0)
    strides = (2,) * (len(CHANNELS) - 1)
    return UNet(spatial_dims=3, in_channels=1, out_channels=CLASSES, channels=CHANNELS, strides=strides)


Scans = list[tuple[Tensor, Tensor]]
"""A patient's images `(1, *spatial)`, standardised, and labels `(*spatial)`."""


def patients(ward: Path) -> list[Scans]:
    """Return a hospital's patients."""
    found: dict[str, Scans] = {}
    with (ward / "subjects.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            image, label = (
                np.asarray(nib.as_closest_canonical(nib.load(ward / row[kind])).dataobj)
                for kind in ("image", "label")
            )
            scaled = torch.as_tensor((image - image.mean()) / image.std(), dtype=torch.float32)
            pair = scaled[None], torch.as_tensor(label.astype(np.int64))
            found.setdefault(row["subject"], []).append(pair)
    return list(found.values())


def stacked(scans: Scans) -> tuple[Tensor, Tensor]:
    """Return scans' images `(N, 1, *spatial)` and labels `(N, 1, *spatial)`."""
    images, labels = zip(*scans, strict=True)
    return torch.stack(images), torch.stack(labels)[:, None]


def train(net: nn.Module, ward: Path, steps: int) -> int:
    """Train `steps` steps, each on all scans of `BATCH` patients; return the number of patients."""
    everybody = patients(ward)
    cut = len(everybody) * 3 // 4
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9)
    loss = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
    started = time.perf_counter()
    for _ in range(steps):
        chosen = torch.randperm(cut)[:BATCH].tolist()
        images, labels = stacked([scan for number in chosen for scan in everybody[number]])
        optimizer.zero_grad()
        loss(net(images), labels).backward()
        optimizer.step()
    _note(time.perf_counter() - started)
    return cut


@torch.no_grad()
def dice(net: nn.Module, ward: Path) -> tuple[float, int]:
    """Return the mean Dice on the patients who don't train, and their number."""
    everybody = patients(ward)
    apart = everybody[len(everybody) * 3 // 4 :]
    images, labels = stacked([scan for scans in apart for scan in scans])
    found = one_hot(net(images).argmax(1), CLASSES).movedim(-1, 1)
    truth = one_hot(labels[:, 0], CLASSES).movedim(-1, 1)
    scores = compute_dice(found, truth, include_background=False, ignore_empty=False)
    return float(scores.mean()), len(apart)


def _note(seconds: float) -> None:
    """Store the seconds of one hospital's training in a round, for the benchmark's row."""
    path = Path(os.environ["PEERS_NOTES"]) / f"{uuid.uuid4()}.json"
    path.write_text(json.dumps(seconds))
