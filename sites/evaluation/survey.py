"""Survey of a hospital's scans before a study starts: shares of its patients in public bins.

| histogram                                     | bins                                        |
|-----------------------------------------------|---------------------------------------------|
| `scans`                                       | number of scans: 1, 2, 3, 4 or more         |
| `spacing_mm/finest`, `spacing_mm/coarsest`    | the shortest and the longest side of voxels |
| `intensity`, or `intensity/<channel>`         | the share of voxels in each bin             |
| `volume_ml/<label>` of a segmentation         | from 0 to 1000 ml and more                  |
| `class` of a classification                   | each class                                  |
| `value/<name>` of a regression                | ten equal parts of the study's range        |
| `class/<label>` where several labels may hold | the label does not hold, or it does         |

A patient adds one to each histogram, divided among its bins if their scans differ, and less where a
channel or the label is missing: non-negative numbers with a sum of at most 1, so with an L2 norm of at
most 1. The policy (`statistics`) decides what is published.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from models.settings.tasks import TaskConfig
from privacy.accounting import PrivacyEvent
from privacy.noise.noised import Noised, noised_sums
from privacy.noise.source import NoiseSource
from sites.cohort import Patient
from sites.imaging.profile import INTENSITY_EDGES, Profile

MOST_SCANS = 4
VALUE_BINS = 10
SPACING_EDGES_MM = (0.5, 0.8, 1.2, 2.0, 4.0)
VOLUME_EDGES_ML = (1e-9, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)

Histogram = NDArray[np.float64]
Told = dict[str, list[float | None]]
"""By histogram: the share of the patients in each bin, None if it is not published."""


def histograms_of(patient: Patient, task: TaskConfig) -> dict[str, Histogram]:
    """Return the numbers that one patient adds to each histogram: from 0 to 1, at most 1 together."""
    each = [_of_scan(scan.profile, task) for scan in patient.scans]
    scans = np.eye(MOST_SCANS)[min(len(each), MOST_SCANS) - 1]
    return {"scans": scans, **{name: np.mean([one[name] for one in each], axis=0) for name in each[0]}}


def _of_scan(profile: Profile, task: TaskConfig) -> dict[str, Histogram]:
    found = {
        **{
            name: np.asarray(shares)
            for name, shares in zip(_intensities(task), profile.intensities, strict=True)
        },
        "spacing_mm/finest": _one(SPACING_EDGES_MM, min(profile.spacing_mm)),
        "spacing_mm/coarsest": _one(SPACING_EDGES_MM, max(profile.spacing_mm)),
    }
    if not profile.is_labelled:
        return found | {name: np.zeros(count) for name, count in _label_bins(task).items()}
    amounts = {name: profile.amounts.get(value, 0.0) for value, name in task.labels.items()}
    if task.kind == "segmentation":
        return found | {f"volume_ml/{n}": _one(VOLUME_EDGES_ML, ml) for n, ml in amounts.items()}
    if task.kind == "regression":
        edges = np.linspace(task.low, task.high, VALUE_BINS + 1)[1:-1].tolist()
        return found | {f"value/{task.name}": _one(edges, profile.value or 0.0)}
    if task.multi_label:
        return found | {f"class/{name}": _one((0.5,), holds) for name, holds in amounts.items()}
    return found | {"class": np.asarray(list(amounts.values()))}


def _one(edges: Sequence[float], value: float) -> Histogram:
    return np.asarray(np.eye(len(edges) + 1)[bisect_right(edges, value)])


def bins(task: TaskConfig) -> dict[str, int]:
    """Return the number of bins of each histogram of a task.

    >>> from models.settings.tasks import ClassificationConfig
    >>> task = ClassificationConfig(kind="classification", dims=2, labels={0: "well", 1: "ill"})
    >>> bins(task)["class"], bins(task)["scans"]
    (2, 4)
    """
    return {
        "scans": MOST_SCANS,
        **dict.fromkeys(_intensities(task), len(INTENSITY_EDGES) + 1),
        "spacing_mm/finest": len(SPACING_EDGES_MM) + 1,
        "spacing_mm/coarsest": len(SPACING_EDGES_MM) + 1,
        **_label_bins(task),
    }


def _intensities(task: TaskConfig) -> list[str]:
    several = len(task.input_names) > 1
    return [f"intensity/{name}" for name in task.input_names] if several else ["intensity"]


def _label_bins(task: TaskConfig) -> dict[str, int]:
    if task.kind == "segmentation":
        return {f"volume_ml/{name}": len(VOLUME_EDGES_ML) + 1 for name in task.labels.values()}
    if task.kind == "regression":
        return {f"value/{task.name}": VALUE_BINS}
    if task.multi_label:
        return {f"class/{name}": 2 for name in task.labels.values()}
    return {"class": len(task.labels)}  # one histogram: the last class follows from the others


def _tables(patients: Sequence[Patient], task: TaskConfig) -> dict[str, Histogram]:
    """Return each histogram's table: a row for each patient, a column for each bin."""
    added = [histograms_of(patient, task) for patient in patients]
    return {
        name: np.array([each[name] for each in added]).reshape(-1, count)
        for name, count in bins(task).items()
    }


def suppressed(patients: Sequence[Patient], task: TaskConfig, *, smallest: int) -> Told:
    """Return the shares of the patients in bins with at least `smallest` patients; other bins are None.

    Shares are rounded to 0.05, so they do not reveal the exact number of patients. But two surveys may
    reveal a patient who was added or removed between them: only `noised` protects against that.

    If fewer than `smallest` patients together are in the left-out bins, anybody who knows the total can
    compute their share, so the next smallest bins are left out as well.
    """
    published: Told = {}
    for name, table in _tables(patients, task).items():
        share, kept = table.sum(0) / max(len(table), 1), _kept(table, smallest)
        published[name] = [
            round(0.05 * round(float(value) / 0.05), 2) if keep else None
            for value, keep in zip(share, kept, strict=True)
        ]
    return published


def _kept(table: Histogram, smallest: int) -> NDArray[np.bool_]:
    """Return the mask of the bins of a histogram's table that are published."""
    members = (table > 0).sum(0)
    kept: NDArray[np.bool_] = members >= smallest
    while kept.any() and 0 < (table[:, ~kept] > 0).any(1).sum() < smallest:
        kept[np.where(kept)[0][members[kept].argmin()]] = False
    return kept


def noised(
    patients: Sequence[Patient],
    task: TaskConfig,
    *,
    declared: int,
    event: PrivacyEvent,
    noise: NoiseSource,
) -> Told:
    """Return every share with the noise that `event` states, on the grid of `privacy.noise.noised`.

    Guarantees: setting a patient's numbers to zero changes each of h histograms by at most 1 in L2, and
    all of them together by at most sqrt(h); the divisor is the declared number of patients.
    """
    sums = noised_sums(rows_of(patients, task), event, sensitivity(task), noise)
    return noised_shares(sums, task, declared)


def rows_of(patients: Sequence[Patient], task: TaskConfig) -> Histogram:
    """Return what each patient adds to all histograms, one after the other: `(P, D)`."""
    return np.concatenate(list(_tables(patients, task).values()), axis=1)


def sensitivity(task: TaskConfig) -> float:
    """Return the largest L2 norm of a patient's row of `rows_of`."""
    return float(len(bins(task)) ** 0.5)


def noised_shares(sums: Noised, task: TaskConfig, declared: int) -> Told:
    """Return shares by histogram, by noised sums over a declared number of patients."""
    shares, published = sums.shares(declared), Told()
    for name, count in bins(task).items():
        published[name], shares = [*shares[:count]], shares[count:]
    return published


def drift(before: Mapping[str, Sequence[float | None]], now: Told) -> dict[str, float]:
    """Return the change of each histogram: the total variation distance, from 0 to 1.

    Bins that are None in either survey are ignored; a histogram with fewer than two common bins is left
    out.

    >>> drift({"scans": [0.5, 0.5, None]}, {"scans": [0.25, 0.75, 0.1]})
    {'scans': 0.25}
    """
    moved = {}
    for name in before.keys() & now.keys():
        pairs = [
            (a, b)
            for a, b in zip(before[name], now[name], strict=False)
            if a is not None and b is not None
        ]
        sums = [sum(side) for side in zip(*pairs, strict=True)]
        if len(pairs) > 1 and all(sums):
            moved[name] = sum(abs(a / sums[0] - b / sums[1]) for a, b in pairs) / 2
    return dict(sorted(moved.items()))
