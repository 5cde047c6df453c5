"""What is wrong or odd in a hospital's data, and what becomes of it: `stop`, `skip` the case, or `warn`.

| check                                    | looks at            | without a word in `site.yaml` |
|------------------------------------------|---------------------|-------------------------------|
| `sites.intake.BREAKING`                  | one case            | as `on_broken_case` says      |
| spacing, empty_label, identifying        | one case            | warn                          |
| intensity, duplicate, same_head,         | all cases together  | warn                          |
| both_groups                              |                     |                               |

A check across cases never skips one: whether a patient trains must not depend on another's images.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import combinations, pairwise
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.objectives import TaskConfig
from sites.intake import BREAKING, BrokenCase, CaseCheck, Finding, Scan, read_case
from sites.listing import CaseFiles

CohortCheck = Literal["intensity", "duplicate", "same_head", "both_groups"]
Check = CaseCheck | CohortCheck
Severity = Literal["stop", "skip", "warn"]

APART = 3.0
"""Intensity scales that differ by this factor with nothing between are different groups."""
ALIKE = 0.98
"""Correlation of two coarse images from which on they may show one head."""
COARSE = 12


def severities(
    chosen: Mapping[Check, Severity], on_broken_case: Literal["skip", "stop"]
) -> dict[str, Severity]:
    """Return what becomes of each finding; `chosen` overrides the defaults.

    Raises:
        ValueError: a broken case is to be used all the same, or a check across cases to skip one.
    """
    defaults: dict[str, Severity] = dict.fromkeys(get_args(CaseCheck), "warn")
    defaults |= dict.fromkeys(BREAKING, on_broken_case)
    defaults |= dict.fromkeys(get_args(CohortCheck), "warn")
    for check, severity in chosen.items():
        if check in BREAKING and severity == "warn":
            raise ValueError(f"{check}: expected skip or stop, got warn: such a case can't train.")
        if check in get_args(CohortCheck) and severity == "skip":
            raise ValueError(
                f"{check}: expected warn or stop, got skip: whether a patient trains must not depend "
                f"on another's images."
            )
    defaults.update(chosen.items())
    return defaults


@dataclass(frozen=True)
class CheckedCase:
    """A case that was read, with what is odd about it; `scan` is None where it can't be used."""

    files: CaseFiles
    scan: Scan | None
    findings: tuple[Finding, ...]


def read_cases(
    cases: Iterable[CaseFiles], read: Callable[[CaseFiles], tuple[Scan, list[Finding]]]
) -> list[CheckedCase]:
    """Return every case as `read` gives it; a broken one has no scan, and the others go on."""
    checked = []
    for files in cases:
        try:
            scan, findings = read(files)
            checked.append(CheckedCase(files, scan, tuple(findings)))
        except BrokenCase as broken:
            checked.append(CheckedCase(files, None, (broken.finding,)))
    return checked


def reader(data: Path, task: TaskConfig) -> Callable[[CaseFiles], tuple[Scan, list[Finding]]]:
    """Return what reads the cases of a data folder for a task."""
    return lambda files: read_case(data, files, task)


@dataclass(frozen=True)
class SharedFinding:
    """What a check found in some cases together; `cases` are few, or none where it is about most."""

    check: CohortCheck
    text: str
    cases: tuple[CaseFiles, ...] = ()


def check_together(
    cases: Sequence[CheckedCase], evaluates: Callable[[str], bool]
) -> list[SharedFinding]:
    """Return what is odd about the usable cases together.

    Args:
        evaluates: whether a patient is one of those who evaluate.
    """
    usable = [(case.files, case.scan.image) for case in cases if case.scan]
    if not usable:
        return []
    return [*_intensity_groups(usable), *_copies(usable, evaluates)]


Images = Sequence[tuple[CaseFiles, NDArray[np.float32]]]


def _intensity_groups(usable: Images) -> Iterator[SharedFinding]:
    """Report the groups into which the images' intensity scales fall apart, such as CT among MR."""
    scaled = sorted(((_scale(image), files) for files, image in usable), key=lambda pair: pair[0])
    groups = [[scaled[0]]]
    for before, this in pairwise(scaled):
        if this[0] > APART * before[0]:
            groups.append([])
        groups[-1].append(this)
    for group in groups if len(groups) > 1 else ():
        low, high = group[0][0], group[-1][0]
        text = f"{len(group)} images with a range of intensities of {low:.3g} to {high:.3g}"
        few = len(group) <= len(usable) // 10
        yield SharedFinding("intensity", text, tuple(files for _, files in group) if few else ())


def _scale(image: NDArray[np.float32]) -> float:
    low, high = np.percentile(image, [1, 99])
    return max(float(high - low), 1e-30)


def _copies(usable: Images, evaluates: Callable[[str], bool]) -> Iterator[SharedFinding]:
    """Report images that are there twice, and those of two patients that look like one head."""
    by_content: defaultdict[str, list[int]] = defaultdict(list)
    for i, (_, image) in enumerate(usable):
        by_content[sha256(image.tobytes()).hexdigest()].append(i)
    exact: set[tuple[int, int]] = set()
    for group in by_content.values():
        if len(group) > 1:
            files = tuple(usable[i][0] for i in group)
            yield SharedFinding("duplicate", "the same image more than once", files)
            exact |= set(combinations(group, 2))
    alike = _alike([image for _, image in usable])
    for a, b in sorted(alike | exact):
        pair = (usable[a][0], usable[b][0])
        if pair[0].patient == pair[1].patient:
            continue
        if (a, b) not in exact:
            yield SharedFinding("same_head", "images of two patients look like one head", pair)
        if evaluates(pair[0].patient) != evaluates(pair[1].patient):
            text = "one head may be in training and in evaluation"
            yield SharedFinding("both_groups", text, pair)


def _alike(images: Sequence[NDArray[np.float32]]) -> set[tuple[int, int]]:
    """Return the pairs of images whose coarse versions correlate at `ALIKE` or more."""
    coarse = torch.stack([_coarse(image) for image in images])
    return {(i, j) for i, j in (coarse @ coarse.T >= ALIKE).triu(1).nonzero().tolist()}


def _coarse(image: NDArray[np.float32]) -> torch.Tensor:
    """Return the image on a small grid as a vector of mean 0 and norm 1."""
    pool = nn.AdaptiveAvgPool3d(COARSE) if image.ndim == 3 else nn.AdaptiveAvgPool2d(COARSE)
    flat: torch.Tensor = pool(torch.from_numpy(np.ascontiguousarray(image))[None, None]).flatten()
    centred = flat - flat.mean()
    unit: torch.Tensor = centred / centred.norm().clamp(min=1e-12)
    return unit
