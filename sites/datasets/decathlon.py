"""Hospitals made from one public set in the Decathlon's layout, divided by patient, never by scan.

Source: Antonelli et al. 2022, The Medical Segmentation Decathlon,
https://doi.org/10.1038/s41467-022-30695-9.
"""

import csv
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sites.datasets.phantoms import describe_cases, write_public_policy
from sites.imaging.images import Unreadable, read_image
from sites.yaml_files import ConfigError

Skew = Literal["patients", "intensity", "size", "labels"]
"""Difference between the hospitals: their number of patients, or the kind of patients (`_ORDERS`)."""


def make_hospitals(
    source: Path,
    out: Path,
    hospitals: int,
    seed: int,
    channel: int | None = None,
    skew: Skew = "patients",
) -> list[Path]:
    """Return the folders of `hospitals` hospitals under `out`, made from the set in `source`.

    If its images have several channels (prostate: T2 and ADC), `channel` is the one that is listed;
    without it studies name the set's modalities as channels.
    With the skew `patients`, patients are assigned at random; the first hospital gets most, the last
    about a third as many. With another skew, the hospitals have the same size, and patients are sorted
    by the value that the skew names. An existing hospital folder stays as it is.

    Raises:
        ConfigError: `source` is not a Decathlon folder or has too few patients, or a scan can't be read.
    """
    labels, modality, scans_of = _scans_by_patient(source)
    if hospitals < 1 or len(scans_of) < 10 * hospitals:
        raise ConfigError(
            f"{source}: expected at least 10 patients for each of {hospitals} hospitals, "
            f"got {len(scans_of)} patients. Ask for fewer hospitals."
        )
    order = np.random.default_rng(seed).permutation(sorted(scans_of)).tolist()
    weights = [1.5 * hospitals - k if skew == "patients" else 1.0 for k in range(hospitals)]
    if skew != "patients":
        order.sort(key=lambda patient: _value(source, scans_of[patient][0], channel, skew))
    shares = np.cumsum(weights)
    cuts = np.round(shares / shares[-1] * len(order)).astype(int)
    dealt = [part.tolist() for part in np.split(np.array(order), cuts[:-1])]
    return [
        _make(
            source,
            out / f"hospital-{k}",
            labels,
            [(p, scans_of[p]) for p in patients],
            channel,
            modality,
        )
        for k, patients in enumerate(dealt, start=1)
    ]


_ORDERS: Mapping[Skew, Callable[[NDArray[np.float32], NDArray[np.float32]], float]] = {
    "intensity": lambda image, label: float(np.ptp(np.percentile(image, [1, 99]))),
    "size": lambda image, label: float(image.size),
    "labels": lambda image, label: float((label == 1).sum() / max((label > 0).sum(), 1)),
}
"""Value by which patients are sorted: range of intensities, number of voxels, share of label 1."""


def _value(source: Path, case: str, channel: int | None, skew: Skew) -> float:
    member = "" if channel is None else f"#{channel}"
    try:
        image = read_image(source, f"imagesTr/{case}.nii.gz{member}")
        label = read_image(source, f"labelsTr/{case}.nii.gz")
    except Unreadable as error:
        raise ConfigError(f"{source}: {case}: expected a scan with its label: {error}.") from error
    return _ORDERS[skew](image.voxels, label.voxels)


def _scans_by_patient(source: Path) -> tuple[dict[int, str], dict[str, str], dict[str, list[str]]]:
    """Return a set's labels, its modalities, and each patient's scans."""
    try:
        described = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
        cases = [Path(pair["image"]).name.removesuffix(".nii.gz") for pair in described["training"]]
        labels = {int(k): str(v).lower() for k, v in described["labels"].items() if int(k) > 0}
        modality = {str(k): str(v) for k, v in described.get("modality", {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{source}: expected a Decathlon folder with dataset.json, got {error!r}."
        ) from None
    subject_of = _subjects(source)
    scans_of: dict[str, list[str]] = {}
    for case in cases:
        scans_of.setdefault(subject_of.get(case) or _inferred_subject(case), []).append(case)
    return labels, modality, scans_of


def _subjects(source: Path) -> dict[str, str]:
    path = source / "subjects.csv"
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["id"]: row["subject"] for row in csv.DictReader(file)}


def _inferred_subject(case: str) -> str:
    """Return the patient of a scan: hippocampus scans 2k-1 and 2k look like the two sides of one head.

    >>> _inferred_subject("hippocampus_007") == _inferred_subject("hippocampus_008")
    True
    >>> _inferred_subject("prostate_07")
    'prostate_07'
    """
    number = re.fullmatch(r"hippocampus_(\d+)", case)
    return f"subject_{(int(number[1]) + 1) // 2:03d}" if number else case


def _make(
    source: Path,
    ward: Path,
    labels: dict[int, str],
    patients: list[tuple[str, list[str]]],
    channel: int | None,
    modality: Mapping[str, str],
) -> Path:
    if ward.exists():
        return ward
    partial = ward.with_name(f".{ward.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    rows = [(case, patient) for patient, cases in patients for case in sorted(cases)]
    for kind in ("imagesTr", "labelsTr"):
        (partial / kind).mkdir(parents=True)
        for case, _ in rows:
            shutil.copyfile(source / kind / f"{case}.nii.gz", partial / kind / f"{case}.nii.gz")
    name = f"{source.name} at {ward.name}"
    kept = modality if channel is None else None  # one channel is the hospital's one image
    describe_cases(partial, rows, name=name, labels=labels, channel=channel, modality=kept)
    write_public_policy(partial, ward.name, len(patients), ["UNet", "SegResNet"], smallest=5)
    partial.rename(ward)
    return ward
