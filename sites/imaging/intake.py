"""Reading of one case for training, and the checks that look at this case alone.

The result of a check here depends on one case only. A check across cases (`sites.imaging.checks`) may
warn or stop, but never skips a case: one patient's training must not depend on another patient.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.settings.tasks import RGB, ClassificationConfig, RegressionConfig, TaskConfig
from sites.imaging.burned_in_text import may_show_text
from sites.imaging.channels import BadChannel, channels_of, stacked
from sites.imaging.image import Image, Unreadable
from sites.imaging.images import read_image
from sites.imaging.label_maps import EXACT, ROUNDED, BadLabel, label_map_of
from sites.listing.cases import CLASSES, NOTHING, CaseFiles
from sites.policy.severities import Breaking

SMALLEST_SIDE_MM, LARGEST_SIDE_MM = 0.05, 20.0
MOST_TURNED_DEG = 30.0
"""Largest accepted angle: an axis turned further is about as close to another axis of the patient."""


UNLABELLED: NDArray[np.int64] = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Scan:
    """One scan in the closest canonical orientation (RAS+).

    Attributes:
        image: `(C, *spatial)` intensities.
        target: `(*spatial)` labels, `()` the class or the number, or `(C,)` with 1 for each label that
            holds; `UNLABELLED` where the list has no labels.
        spacing_mm: the voxel's sides.
        missing: numbers of the channels that the case lacks, whose place zeros take.
    """

    image: NDArray[np.float32]
    target: NDArray[np.int64] | NDArray[np.float32]
    spacing_mm: tuple[float, ...]
    missing: tuple[int, ...] = ()


@dataclass(frozen=True)
class Finding:
    """A fault that a check found. `text` states its kind and numbers, nothing about the patient."""

    check: str
    text: str


class BrokenCase(Exception):
    """A case can't be used. `case` is its name, for the hospital only; it is not in the message."""

    def __init__(self, case: str, finding: Finding) -> None:
        self.case, self.finding = case, finding
        super().__init__(finding.text)  # without the name: the message may be logged


def read_scan(data: Path, case: CaseFiles, task: TaskConfig) -> Scan:
    """Return the scan of `case`; raise `BrokenCase` with the first fault of `BREAKING`."""
    return read_case(data, case, task)[0]


def read_case(data: Path, case: CaseFiles, task: TaskConfig) -> tuple[Scan, list[Finding]]:
    """Return the scan of `case`, and the findings with which it can still be used.

    Raises:
        BrokenCase: the case has a fault of `BREAKING`.
    """
    images, unlabelled = _read_images(data, case, task)
    image = next(each for each in images if each is not None)
    if task.kind == "regression":
        number = _value(case, task)
        return replace(unlabelled, target=number), list(_odd_channels(images, None))
    if task.kind == "classification":
        classes = _several(case, task) if task.multi_label else _class(case, task)
        return replace(unlabelled, target=classes), list(_odd_channels(images, None))
    try:
        label = label_map_of(data, case, images, task)
    except BadLabel as error:
        raise BrokenCase(case.case, Finding(error.fault, str(error))) from error
    both = replace(image, words=(*image.words, *label.words), notes=(*image.notes, *label.notes))
    others = [each for each in images if each is not None and each is not image]
    findings = list(_odd_channels([both, *others], label.values))
    if EXACT < label.rounding <= ROUNDED:
        findings.append(Finding("rounded_label", f"values were rounded by up to {label.rounding:.2g}"))
    return replace(unlabelled, target=label.values), findings


def read_unlabelled(data: Path, case: CaseFiles, task: TaskConfig) -> tuple[Scan, list[Finding]]:
    """Return the scan of a case of a list without labels; raise `BrokenCase` as `read_case` does."""
    images, scan = _read_images(data, case, task)
    return scan, list(_odd_channels(images, None))


def _read_images(data: Path, case: CaseFiles, task: TaskConfig) -> tuple[list[Image | None], Scan]:
    """Return the image of each channel, None for a missing one, and all of them as a scan."""

    def read(name: str, what: str) -> Image:
        return _read(data, case, case.images[name], what)

    try:
        images = channels_of(case.images, read, task)
        voxels = stacked(images, task)
    except BadChannel as error:
        raise _broken(case, error.fault, str(error)) from error
    if fault := image_fault(voxels, task):
        raise BrokenCase(case.case, fault)
    image = next(each for each in images if each is not None)
    missing = tuple(number for number, each in enumerate(images) if each is None)
    return images, Scan(voxels, UNLABELLED, image.spacing_mm, missing)


def _odd_channels(
    images: Sequence[Image | None], target: NDArray[np.int64] | None
) -> Iterator[Finding]:  # fmt: skip
    """Yield the findings about the channels of a case, each once; the label's with the first."""
    known: set[Finding] = set()
    for image in images:
        if image is None:
            continue
        for finding in _odd(image, target):
            if finding not in known:
                known.add(finding)
                yield finding


def _read(data: Path, case: CaseFiles, name: str, what: str) -> Image:
    try:
        return read_image(data, name)
    except Unreadable as error:
        raise BrokenCase(case.case, Finding(error.fault, f"{what}: {error}")) from error


def _broken(case: CaseFiles, check: Breaking, text: str) -> BrokenCase:
    return BrokenCase(case.case, Finding(check, text))


def image_fault(image: NDArray[np.float32], task: TaskConfig) -> Finding | None:
    """Return the fault that excludes an image `(C, *spatial)` from training and prediction, or None."""
    if image.ndim != task.dims + 1:
        return Finding("dimensions", f"expected {task.dims} dimensions, got {image.ndim - 1}")
    if len(image) != task.in_channels:
        return Finding("channel", f"expected {task.in_channels} channels, got {len(image)}")
    if not image.size or not np.isfinite(image).all():
        return Finding("not_finite", "the image is empty, or has NaN or infinite voxels")
    may_lack = task.missing_channel == "zeros" and bool(image.any())
    groups = image[None] if task.channels == RGB else image
    for name, each in zip(task.channel_names, groups, strict=True):
        low, high = float(each.min()), float(each.max())
        is_flat = high - low <= 1e-5 * max(abs(low), abs(high))  # less may be float32 rounding
        if is_flat and (each.any() or not may_lack):
            return Finding("constant", _named(task, name, "is constant"))
    return None


def _named(task: TaskConfig, channel: str, fault: str) -> str:
    return f"the image {fault}" if len(task.channel_names) == 1 else f"the channel {channel} {fault}"


def _value(case: CaseFiles, task: RegressionConfig) -> NDArray[np.float32]:
    try:
        value = float(case.label)
    except ValueError:
        value = float("nan")
    if not task.low <= value <= task.high:
        text = f"expected a number from {task.low:g} to {task.high:g}, the study's range"
        raise _broken(case, "label_values", text)
    return np.asarray(value, dtype=np.float32)


def _class(case: CaseFiles, task: ClassificationConfig) -> NDArray[np.int64]:
    return np.asarray(_one_of(case, case.label, task), dtype=np.int64)


def _several(case: CaseFiles, task: ClassificationConfig) -> NDArray[np.int64]:
    """Return `(C,)` with 1 for each label that holds: `0;2` in the list, `none` if no label holds."""
    target = np.zeros(len(task.labels), dtype=np.int64)
    for label in case.label.split(";") if case.label != NOTHING else ():
        target[_one_of(case, label.strip(), task)] = 1
    return target


def _one_of(case: CaseFiles, label: str, task: ClassificationConfig) -> int:
    if label.isdecimal():
        label = str(dict(case.label_map).get(int(label), int(label)))
    if not label.isdecimal() or int(label) not in task.labels:
        text = "the label is not one of the study's classes"
        if not task.multi_label and CLASSES.fullmatch(label):
            text += "; a list whose cases may have several classes names the column `labels`"
        raise _broken(case, "label_values", text)
    return int(label)


def _odd(image: Image, target: NDArray[np.int64] | None) -> Iterator[Finding]:
    sides = image.spacing_mm
    if not all(SMALLEST_SIDE_MM <= side <= LARGEST_SIDE_MM for side in sides):
        found = " x ".join(f"{side:g}" for side in sides)
        limits = f"{SMALLEST_SIDE_MM:g} to {LARGEST_SIDE_MM:g} mm"
        yield Finding("spacing", f"expected voxels with sides of {limits}, got {found} mm")
    if image.placement and image.placement.other is not None:
        yield Finding("places", "qform and sform differ; the sform was taken")
    for note in image.notes:
        yield Finding("unused_files", note)
    if image.alternating:
        text = f"slices of {image.alternating} acquisitions alternate; they were read as one volume"
        yield Finding("acquisitions", text)
    if image.turned_deg is None:
        yield Finding("orientation", "the file does not state the patient's orientation")
    elif image.turned_deg > MOST_TURNED_DEG:
        yield Finding("orientation", f"turned by {image.turned_deg:.0f} degrees from the patient's axes")
    if target is not None and not target.any():
        yield Finding("empty_label", "the label is empty")
    if suspicious(image.words):
        yield Finding("identifying", "text in a file's header may contain a name or a date of birth")
    if image.shows_text or may_show_text(image.voxels):
        yield Finding("burned_in", "the pixels may show text")


def suspicious(words: tuple[str, ...]) -> bool:
    r"""Return whether header text may contain a person's name or a date.

    >>> suspicious(("FSL5.0", "5.0.10", "Siemens, Erlangen", "TE=2.5;Time=132145.230"))
    False
    >>> names = ("MUELLER^ANNA", "Mueller, Anna", "MUELLER, ANNA", "M\xfcller, Anna")
    >>> dates = ("19560403", "30-May-2013", "04.03.1956", "12/31/1956", "May 30, 2013", "1956:04:03")
    >>> [suspicious((text,)) for text in (*names, *dates)].count(True)
    10
    """
    return any(_is_suspicious(text) for text in words)


_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_YEAR = r"(?:19|20)\d\d"
_DATE = re.compile(
    rf"(?<!\d){_YEAR}([-./:]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])(?!\d(?!\d{{5}}))"
    rf"|(?<!\d){_YEAR}[-./:](?:0?[1-9]|1[0-2])[-./:](?:0?[1-9]|[12]\d|3[01])(?!\d)"
    rf"|(?<!\d)[0-3]?\d[-./ ](?:[0-3]?\d|{_MONTH})[-./ ]{_YEAR}(?!\d)"
    rf"|\b{_MONTH}\.? [0-3]?\d,? {_YEAR}(?!\d)",
    re.IGNORECASE,
)
"""A year, month and day in any order, also before a time of day."""
_NAME = re.compile(r"[^\W\d_]{2,}\^[^\W\d_]+|\b[^\W\d_][^\W\d_'-]+, ?[^\W\d_]{2,}\b")
"""Family name and given name, as DICOM or people write them."""
_KEY = re.compile(r"patient|birth|\bname\b|\bdob\b|\bmrn\b", re.IGNORECASE)
_NO_NAMES = re.compile(
    "siemens|philips|toshiba|canon|hitachi|medical|warped|linear|nearest|spline", re.IGNORECASE
)
"""Words of makers and programs that stand before a comma as names do."""


def _is_suspicious(text: str) -> bool:
    name = _NAME.search(text)
    has_name = name is not None and not name[0][:1].islower() and not _NO_NAMES.search(name[0])
    return bool(has_name or _DATE.search(text) or _KEY.search(text))
