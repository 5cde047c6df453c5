"""Made-up patients with two contrasts, and hospitals that have both or one."""

import csv
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import yaml
from scipy.ndimage import gaussian_filter

from models.synthesis import tube

LEVELS = {"t1": (0.2, 0.5, 0.9, 0.55), "flair": (0.1, 0.6, 0.65, 1.0)}
"""Air, head, label 1, label 2: each contrast shows only one of the two labels well."""


def patient(rng: np.random.Generator, side: int = 24) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return one patient's images by contrast, and their labels."""
    label = tube((side,) * 3, 2, rng)
    axes = np.stack(np.meshgrid(*[np.linspace(-1, 1, side)] * 3, indexing="ij"))
    head = np.square(axes).sum(0) < 0.9
    images = {}
    for contrast, (air, brain, *labels) in LEVELS.items():
        image = np.where(head, brain, air)
        for value, level in enumerate(labels, start=1):
            image[label == value] = level
        noisy = gaussian_filter(image, 0.5) + rng.normal(0, 0.05, image.shape)
        images[contrast] = (500 * noisy).astype(np.float32)
    return images, label.astype(np.uint8)


def make_ward(
    ward: Path, contrasts: Mapping[str, str], patients: int, seed: int, **policy: object
) -> Path:
    """Make a hospital whose list calls each contrast by a name of its own; return its folder."""
    rng = np.random.default_rng(seed)
    for kind in ("images", "labels"):
        (ward / kind).mkdir(parents=True)
    rows = []
    for number in range(patients):
        images, label = patient(rng)
        row = {"patient": f"p{number}", "label": f"labels/{number}.nii.gz"}
        nib.save(nib.Nifti1Image(label, np.eye(4)), ward / row["label"])
        for contrast, own in contrasts.items():
            row[f"image_{own}"] = f"images/{number}_{contrast}.nii.gz"
            nib.save(nib.Nifti1Image(images[contrast], np.eye(4)), ward / row[f"image_{own}"])
        rows.append(row)
    with (ward / "cases.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (ward / "labels.csv").write_text("value,name\n1,head\n2,tail\n")
    content = {
        "name": ward.name, "declared_patients": patients, "min_patients": 3,
        "min_evaluation_patients": 2, "budget": {"epsilon": 50.0, "delta": 1e-3},
        "networks": ["UNet"], "metrics": "exact", "on_broken_case": "skip",
        "plain_studies": "allow", "phantom": True, **policy,
    }  # fmt: skip
    (ward / "site.yaml").write_text(yaml.safe_dump(content))
    return ward
