"""Synthetic hospitals: NIfTI volumes of a head with two structures, different in each hospital.

The hospitals differ as real ones do: in contrast, noise, orientation on disk and number of patients.
Some patients have two scans.
"""

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import yaml
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from models import synthesis
from sites.listing.pseudonyms import pseudonym_key
from sites.yaml_files import ConfigError

PUBLIC = """\
# The data are public, so studies without differential privacy may train here as well.
# A hospital with its own patients leaves plain_studies at refuse.
"""
"""Comment in the policy of a hospital made from public data."""


@dataclass(frozen=True)
class Scanner:
    """Properties of a synthetic hospital's volumes.

    Attributes:
        levels: mean intensity of air, head, structure 1, structure 2.
        noise: standard deviation of the noise, in the units of `levels`.
        orientation: axis codes of the voxels on disk.
    """

    name: str
    patients: int
    levels: tuple[float, float, float, float]
    noise: float
    orientation: str


SCANNERS: Sequence[Scanner] = (
    Scanner("north", 96, (20, 300, 620, 480), 60, "RAS"),
    Scanner("east", 72, (5, 90, 190, 150), 22, "LPS"),
    Scanner("south", 48, (0.05, 0.45, 0.95, 0.75), 0.09, "LAS"),
    Scanner("west", 24, (100, 900, 1800, 1450), 220, "PIR"),
)
SHAPE = (24, 24, 24)
SPACING_MM = 2.0
SHARE_SCANNED_TWICE = 0.25


def make_wards(
    wards: Path, seed: int, scanners: Sequence[Scanner] = SCANNERS, first: int = 0
) -> list[Path]:
    """Return the folders of synthetic hospitals under `wards`; write those that are missing.

    Args:
        first: number of the first hospital, which its patients follow from beside the seed.

    A hospital is renamed into place when it is complete, so an interrupted call leaves no partial one.

    Raises:
        ConfigError: a folder with a hospital's name holds something else, or patients of another seed.
    """
    return [_make_ward(wards, scanner, seed, i) for i, scanner in enumerate(scanners, first)]


def _make_ward(wards: Path, scanner: Scanner, seed: int, number: int) -> Path:
    ward = wards / scanner.name
    if ward.exists():
        _check_made_of(ward, seed)
        return ward
    partial = wards / f".{scanner.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    rng = np.random.default_rng([seed, number])
    rows = []
    for patient in range(scanner.patients):
        for scan in range(1 + (rng.random() < SHARE_SCANNED_TWICE)):
            case = f"phantom_{patient:03d}_{scan}"
            image, label = phantom(scanner, rng)
            _save(partial / "imagesTr" / f"{case}.nii.gz", image, scanner.orientation)
            _save(partial / "labelsTr" / f"{case}.nii.gz", label, scanner.orientation)
            rows.append((case, f"patient_{patient:03d}"))
    describe_cases(partial, rows, name=f"phantoms of seed {seed}", labels={1: "head", 2: "tail"})
    write_policy(partial, _policy(scanner))
    pseudonym_key(partial / "state", lambda: rng.bytes(32))  # nobody to protect: the same key everywhere
    partial.rename(ward)
    return ward


def _check_made_of(ward: Path, seed: int) -> None:
    """Raise ConfigError unless `ward` holds the synthetic patients of this seed."""
    found = json.loads((ward / "dataset.json").read_text(encoding="utf-8")).get("name")
    if found != f"phantoms of seed {seed}":
        raise ConfigError(
            f"{ward}: expected phantoms of seed {seed}, got {found!r}. Take another folder, or "
            f"delete these hospitals first (`wardround demo --fresh` deletes the demo's)."
        )


def phantom(scanner: Scanner, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return one synthetic scan in RAS: intensities and labels, both of `SHAPE`."""
    label = synthesis.tube(SHAPE, 2, rng)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    axes = rng.uniform(0.85, 1.0, (3, 1, 1, 1))
    head = np.square(grid / axes).sum(0) < 1
    air, brain, *structures = scanner.levels
    image = np.where(head, brain, air)
    for value, level in enumerate(structures, start=1):
        image[label == value] = level
    image = gaussian_filter(image * rng.uniform(0.9, 1.1), 0.6)
    return (image + rng.normal(0, scanner.noise, SHAPE)).astype(np.float32), label.astype(np.uint8)


def describe_cases(
    ward: Path,
    rows: Sequence[tuple[str, str]],
    *,
    name: str,
    labels: dict[int, str],
    channel: int | None = None,
    modality: Mapping[str, str] | None = None,
) -> None:
    """Write `dataset.json` and `subjects.csv` for `(case, patient)` rows in the Decathlon's layout."""
    member = "" if channel is None else f"#{channel}"
    pairs = [
        {"image": f"imagesTr/{case}.nii.gz{member}", "label": f"labelsTr/{case}.nii.gz"}
        for case, _ in rows
    ]
    content = {
        "name": name,
        "modality": dict(modality or {"0": "MRI"}),
        "labels": {"0": "background", **{str(k): v for k, v in labels.items()}},
        "numTraining": len(pairs),
        "training": pairs,
    }
    (ward / "dataset.json").write_text(json.dumps(content, indent=1))
    with (ward / "subjects.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "subject", "image", "label"])
        for (case, patient), pair in zip(rows, pairs, strict=True):
            writer.writerow([case, patient, pair["image"], pair["label"]])


def write_policy(ward: Path, policy: Mapping[str, object], comment: str = "") -> None:
    """Write a hospital's `site.yaml`."""
    text = yaml.safe_dump(dict(policy), sort_keys=False, default_flow_style=None)
    (ward / "site.yaml").write_text(comment + text)


def write_public_policy(
    ward: Path, name: str, patients: int, networks: Sequence[str], *, smallest: int
) -> None:
    """Write the `site.yaml` of a hospital made from public data; at least `smallest` patients train."""
    policy: dict[str, object] = {
        "name": name,
        "data": ".",
        "declared_patients": max(smallest, smallest * round(patients / smallest)),
        "min_patients": smallest,
        "min_evaluation_patients": max(3, smallest // 2),
        "budget": {"epsilon": 8.0, "delta": 1.0e-4},
        "networks": list(networks),
        "metrics": "exact",
        "statistics": {"kind": "suppressed", "smallest": smallest},
        "plain_studies": "allow",
        "on_broken_case": "skip",
        "device": {"kind": "cpu", "threads": 1},
    }
    write_policy(ward, policy, comment=PUBLIC)


def _policy(scanner: Scanner) -> dict[str, object]:
    return {
        "name": scanner.name,
        "data": ".",
        "declared_patients": max(20, scanner.patients // 10 * 10),
        "min_patients": 10,
        "min_evaluation_patients": 3,
        "budget": {"epsilon": 8.0, "delta": 1.0e-4},
        "networks": ["UNet", "SegResNet"],
        "metrics": "exact",
        "statistics": {"kind": "suppressed", "smallest": 5},
        "approve": {"join": "auto", "export": "auto"},
        "on_broken_case": "skip",
        "device": {"kind": "cpu", "threads": 1},
        "phantom": True,
    }


def _save(path: Path, values: NDArray[np.generic], orientation: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(orientation))
    turned = nib.orientations.apply_orientation(values, turn)
    nib.save(nib.Nifti1Image(turned, affine @ inv_ornt_aff(turn, values.shape)), path)
