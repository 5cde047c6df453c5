"""Checks of a hospital's data: case by case, and all cases together."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import torch

from sites.imaging.intake import BrokenCase, Finding
from sites.imaging.profile import Profile
from sites.imaging.reading import Reader, Reading
from sites.listing.cases import CaseFiles
from sites.policy.severities import CohortCheck

APART = 3.0
"""Neighbouring intensity scales that differ by more than this factor belong to different groups."""
ALIKE = 0.98
"""Smallest correlation of two coarse images that may show one head."""
UNEVEN = 0.25
"""Largest accepted difference between a label's shares in training and in evaluation."""
BLOCK = 1024
"""Number of images that are compared with all others at a time."""


@dataclass(frozen=True)
class CheckedCase:
    """A case with the findings about it; `reading` is None if the case can't be used."""

    files: CaseFiles
    reading: Reading | None
    findings: tuple[Finding, ...]


def read_cases(cases: Iterable[CaseFiles], read: Reader) -> list[CheckedCase]:
    """Return every case with its reading; a broken case has none and does not stop the others."""
    return [_checked(files, read) for files in cases]


def _checked(files: CaseFiles, read: Reader) -> CheckedCase:
    try:
        reading = read(files)
    except BrokenCase as broken:
        return CheckedCase(files, None, (broken.finding,))
    except Exception as error:  # an error that leaves this loop could be seen from outside
        text = f"an error in reading it: {type(error).__name__}"
        return CheckedCase(files, None, (Finding("unreadable", text),))
    return CheckedCase(files, reading, reading.findings)


@dataclass(frozen=True)
class SharedFinding:
    """A finding about several cases together; `cases` is empty if the finding is about many."""

    check: CohortCheck
    text: str
    cases: tuple[CaseFiles, ...] = ()


def check_together(
    cases: Sequence[CheckedCase], evaluates: Callable[[str], bool]
) -> list[SharedFinding]:
    """Return the findings about the usable cases together.

    Args:
        evaluates: returns True for an evaluation patient.
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
    """Report separate groups of intensity scales among the images, such as CT among MR."""
    scaled = sorted(((one.scale, files) for files, one in usable), key=lambda pair: pair[0])
    groups = [[scaled[0]]]
    for before, this in pairwise(scaled):
        if this[0] > APART * before[0]:
            groups.append([])
        groups[-1].append(this)
    for group in groups if len(groups) > 1 else ():
        low, high = group[0][0], group[-1][0]
        text = f"{len(group)} images whose range of intensities is {low:.3g} to {high:.3g} wide"
        few = len(group) <= len(usable) // 10
        yield SharedFinding("intensity", text, tuple(files for _, files in group) if few else ())


def _copies(usable: Usable, evaluates: Callable[[str], bool]) -> Iterator[SharedFinding]:
    """Report images that occur more than once, and images of two patients that look like one head."""
    by_content: defaultdict[str, list[int]] = defaultdict(list)
    for i, (_, one) in enumerate(usable):
        by_content[one.content].append(i)
    exact: set[tuple[int, int]] = set()
    for group in by_content.values():
        if len(group) > 1:
            files = tuple(usable[i][0] for i in group)
            labels = {tuple(sorted(usable[i][1].amounts.items())) for i in group}
            other = ", with different labels" if len(labels) > 1 else ""
            yield SharedFinding("duplicate", f"the same image occurs more than once{other}", files)
            exact |= set(combinations(group, 2))
    volumes = [
        i for i, (_, one) in enumerate(usable) if len(one.shape) == 3
    ]  # of pictures, all look alike
    coarse = [usable[i][1].coarse for i in volumes]
    alike = {(volumes[a], volumes[b]) for a, b in _alike(coarse)} if coarse else set()
    for a, b in sorted(alike | exact):
        pair = (usable[a][0], usable[b][0])
        if pair[0].patient == pair[1].patient:
            continue
        if (a, b) not in exact:
            yield SharedFinding("same_head", "images of two patients look like one head", pair)
        if evaluates(pair[0].patient) != evaluates(pair[1].patient):
            text = "one head may be in both training and evaluation"
            yield SharedFinding("both_groups", text, pair)


def _uneven_split(usable: Usable, evaluates: Callable[[str], bool]) -> Iterator[SharedFinding]:
    """Report labels that one of the two groups lacks, or has much more often than the other.

    The split is by hash alone (docs/decisions/0006), so it may be uneven by chance; only more patients
    help.
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
            text = f"label {label}: {shares[False]:.0%} of the training patients have it, "
            yield SharedFinding("split", f"{text}{shares[True]:.0%} of the evaluation patients")


def _alike(coarse: Sequence[torch.Tensor]) -> set[tuple[int, int]]:
    """Return the pairs of images whose coarse versions correlate at `ALIKE` or more."""
    found: set[tuple[int, int]] = set()
    table = torch.stack(list(coarse))
    for start in range(0, len(table), BLOCK):
        alike = table[start : start + BLOCK] @ table.T >= ALIKE
        found |= {(start + i, j) for i, j in alike.nonzero().tolist() if start + i < j}
    return found
