"""Listed cases as training and the checks use them: read, checked one by one, prepared for a network."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from models.settings.images import Patches, PreprocessingConfig
from models.settings.tasks import TaskConfig
from sites.imaging.intake import BrokenCase, Finding, read_case, read_unlabelled
from sites.imaging.preprocessing import Prepared, Unfit, fixed_pair, prepare
from sites.imaging.profile import Profile, profile_of
from sites.listing.cases import CaseFiles


@dataclass(frozen=True)
class Reading:
    """A usable case: the scan's summary, its findings, and the function that loads the prepared scan."""

    profile: Profile
    findings: tuple[Finding, ...]
    load: Callable[[], Prepared]


Reader = Callable[[CaseFiles], Reading]


def reader(data: Path, task: TaskConfig, config: PreprocessingConfig) -> Reader:
    """Return a function that reads a data folder's cases; it raises `BrokenCase` as `read_case` does."""

    def read(case: CaseFiles) -> Reading:
        profile, findings, prepared = read_and_prepare(data, case, task, config)
        return Reading(profile, findings, lambda: prepared)

    return read


def unlabelled_reader(data: Path, task: TaskConfig) -> Reader:
    """Return a function that reads the images of a list without labels, for a survey or a check."""

    def read(case: CaseFiles) -> Reading:
        def load() -> Prepared:
            raise BrokenCase(case.case, Finding("missing", "the list has no labels"))

        scan, findings = read_unlabelled(data, case, task)
        return Reading(profile_of(scan), tuple(findings), load)

    return read


def _odd(prepared: Prepared, config: PreprocessingConfig) -> Iterator[Finding]:
    """Yield the findings about a scan as a network sees it."""
    for number, channel in enumerate(prepared.image):
        if number not in prepared.missing and float(channel.max()) == float(channel.min()):
            yield Finding("constant_channel", f"channel {number} is constant after preparation")
    if prepared.is_map:
        target = prepared.target if isinstance(config.fit, Patches) else fixed_pair(prepared, config)[1]
        before, after = (set(torch.unique(each).tolist()) for each in (prepared.truth, target))
        gone = before - after
        if gone:
            named = ", ".join(str(label) for label in sorted(gone))
            yield Finding("vanished_label", f"at the study's spacing and shape label {named} vanishes")


def read_and_prepare(
    data: Path, case: CaseFiles, task: TaskConfig, config: PreprocessingConfig
) -> tuple[Profile, tuple[Finding, ...], Prepared]:
    """Return a case's summary, its findings, and its scan prepared for a network.

    Raises:
        BrokenCase: the case can't be used.
    """
    scan, findings = read_case(data, case, task)
    try:
        prepared = prepare(scan, config)
        return profile_of(scan), (*findings, *_odd(prepared, config)), prepared
    except Unfit as error:
        raise BrokenCase(case.case, Finding("unfit", str(error))) from error
    except (RuntimeError, ValueError, IndexError, MemoryError) as error:
        # A scan that a transform can't process is one broken case; it must not stop the others.
        text = f"the image can't be prepared as the study asks: {type(error).__name__}"
        raise BrokenCase(case.case, Finding("unfit", text)) from error
