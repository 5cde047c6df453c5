"""What is wrong or odd in a hospital's data, and what becomes of it: `stop`, `skip` the case, or `warn`.

| check                                    | looks at            | without a word in `site.yaml` |
|------------------------------------------|---------------------|-------------------------------|
| `sites.imaging.intake.BREAKING`          | one case            | as `on_broken_case` says      |
| orientation, spacing, empty_label,       | one case            | warn                          |
| identifying, burned_in                   |                     |                               |
| intensity, duplicate, same_head,         | all cases together  | warn                          |
| both_groups, split                       |                     |                               |

A check across cases never skips one: whether a patient trains must not depend on another's images.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal, get_args

import torch

from sites.imaging.intake import BREAKING, BrokenCase, CaseCheck, Finding
from sites.imaging.listing import CaseFiles
from sites.imaging.profile import Profile
from sites.imaging.reading import Reader, Reading

CohortCheck = Literal["intensity", "duplicate", "same_head", "both_groups", "split"]
Check = CaseCheck | CohortCheck
Severity = Literal["stop", "skip", "warn"]

APART = 3.0
"""Intensity scales that differ by this factor with nothing between are different groups."""
ALIKE = 0.98
"""Correlation of two coarse images from which on they may show one head."""
UNEVEN = 0.25
"""A label's shares in the two groups may differ by this much."""
BLOCK = 1024
"""Images that are compared with all others at a time."""


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
    """A case that was read, with what is odd about it; `reading` is None where it can't be used."""

    files: CaseFiles
    reading: Reading | None
    findings: tuple[Finding, ...]


def read_cases(cases: Iterable[CaseFiles], read: Reader) -> list[CheckedCase]:
    """Return every case as `read` gives it; a broken one has no reading, and the others go on."""
    checked = []
    for files in cases:
        try:
            reading = read(files)
            checked.append(CheckedCase(files, reading, reading.findings))
        except BrokenCase as broken:
            checked.append(CheckedCase(files, None, (broken.finding,)))
    return checked


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
    usable = [(case.files, case.reading.profile) for case in cases if case.reading]
    if not usable:
        return []
    return [
        *_intensity_groups(usable),
        *_copies(usable, evaluates),
        *_uneven_split(usable, evaluates),
    ]


Usable = Sequence[tuple[CaseFiles, Profile]]


def _intensity_groups(usable: Usable) -> Iterator[SharedFinding]:
    """Report the groups into which the images' intensity scales fall apart, such as CT among MR."""
    scaled = sorted(((one.scale, files) for files, one in usable), key=lambda pair: pair[0])
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


def _copies(usable: Usable, evaluates: Callable[[str], bool]) -> Iterator[SharedFinding]:
    """Report images that are there twice, and those of two patients that look like one head."""
    by_content: defaultdict[str, list[int]] = defaultdict(list)
    for i, (_, one) in enumerate(usable):
        by_content[one.content].append(i)
    exact: set[tuple[int, int]] = set()
    for group in by_content.values():
        if len(group) > 1:
            files = tuple(usable[i][0] for i in group)
            yield SharedFinding("duplicate", "the same image more than once", files)
            exact |= set(combinations(group, 2))
    alike = _alike([one.coarse for _, one in usable])
    for a, b in sorted(alike | exact):
        pair = (usable[a][0], usable[b][0])
        if pair[0].patient == pair[1].patient:
            continue
        if (a, b) not in exact:
            yield SharedFinding("same_head", "images of two patients look like one head", pair)
        if evaluates(pair[0].patient) != evaluates(pair[1].patient):
            text = "one head may be in training and in evaluation"
            yield SharedFinding("both_groups", text, pair)


def _uneven_split(usable: Usable, evaluates: Callable[[str], bool]) -> Iterator[SharedFinding]:
    """Report labels that those who train, or those who evaluate, have too little of.

    The split is by hash alone (docs/decisions/0006), so it may come out uneven; that is chance, and only
    more patients help.
    """
    groups: dict[bool, dict[str, set[int]]] = {True: {}, False: {}}
    for files, one in usable:
        held = groups[evaluates(files.patient)].setdefault(files.patient, set())
        held |= {label for label, amount in one.amounts.items() if amount > 0}
    if not all(groups.values()):
        return
    for label in sorted({label for _, one in usable for label in one.amounts}):
        shares = {
            name: sum(label in held for held in groups[name].values()) / len(groups[name])
            for name in groups
        }
        if min(shares.values()) == 0 or abs(shares[True] - shares[False]) > UNEVEN:
            text = f"label {label}: {shares[False]:.0%} of those who train have it, "
            yield SharedFinding("split", f"{text}{shares[True]:.0%} of those who evaluate")


def _alike(coarse: Sequence[torch.Tensor]) -> set[tuple[int, int]]:
    """Return the pairs of images whose coarse versions correlate at `ALIKE` or more."""
    found: set[tuple[int, int]] = set()
    table = torch.stack(list(coarse))
    for start in range(0, len(table), BLOCK):
        alike = table[start : start + BLOCK] @ table.T >= ALIKE
        found |= {(start + i, j) for i, j in alike.nonzero().tolist() if start + i < j}
    return found
