"""Stacks of DICOM images: those of a folder that belong together, and the one that is the scan.

A stack is the images of one series with the same size and, within a tolerance, the same direction and
pixel spacing: scanners write each slice's direction cosines with a rounding of their own. Exact copies
are dropped. If a folder holds several stacks, the list names one; nothing is chosen by its length.
Multi-frame files of one series are parts of one stack (concatenations, DICOM PS3.3 C.7.6.16.2.2.4,
https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.7.6.16.2.2.4.html).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from sites.imaging.dicom.files import Found, UnfitSeries, pixels_of

SAME_DIRECTION = 0.01
"""Largest difference of direction cosines within a stack, half a degree; others differ by more."""
FEWEST_SLICES = 4


@dataclass
class Stack:
    """Images of one series that lie one behind the other."""

    images: list[Dataset] = field(default_factory=list)

    @property
    def count(self) -> int:
        """The number of slices."""
        return sum(int(each.get("NumberOfFrames") or 1) for each in self.images)

    @property
    def description(self) -> str:
        """The series' description; its number if it has none."""
        first = self.images[0]
        words = " ".join(str(first.get("SeriesDescription") or "").split())
        return words or f"series {first.get('SeriesNumber') or 'without a number'}"

    def takes(self, image: Dataset) -> bool:
        """Return whether an image belongs to this stack."""
        first = self.images[0]
        if is_multi_frame(image) != is_multi_frame(first):
            return False
        keys = ("SeriesInstanceUID", "Rows", "Columns")
        if any(str(image.get(key)) != str(first.get(key)) for key in keys):
            return False
        return bool(
            np.abs(direction(image) - direction(first)).max() <= SAME_DIRECTION
            and np.allclose(_pixel_spacing(image), _pixel_spacing(first), rtol=1e-3)
        )


def is_multi_frame(image: Dataset) -> bool:
    """Return whether a file holds several frames, each with its own place."""
    return "PerFrameFunctionalGroupsSequence" in image


def direction(image: Dataset) -> NDArray[np.float64]:
    """Return the direction cosines of an image's, or its first frame's, rows and columns, `(6,)`."""
    plane = first_group(image, "PlaneOrientationSequence") if is_multi_frame(image) else image
    found = np.asarray([float(value) for value in plane.ImageOrientationPatient])
    lengths = [float(np.linalg.norm(part)) for part in (found[:3], found[3:])]
    if not all(0.9 < length < 1.1 for length in lengths):
        raise UnfitSeries("an image's direction cosines are none")
    return found


def _pixel_spacing(image: Dataset) -> NDArray[np.float64]:
    measures = first_group(image, "PixelMeasuresSequence") if is_multi_frame(image) else image
    return np.asarray([float(value) for value in measures.get("PixelSpacing") or (1, 1)])


def first_group(image: Dataset, name: str) -> Dataset:
    """Return a functional group of a multi-frame file's first frame, or the one that all share."""
    shared = image.get("SharedFunctionalGroupsSequence") or [Dataset()]
    return group_of(image.PerFrameFunctionalGroupsSequence[0], shared[0], name)


def group_of(own: Dataset, shared: Dataset, name: str) -> Dataset:
    """Return a frame's functional group, its own or the shared one; raise `UnfitSeries` without one."""
    for groups in (own, shared):
        if groups.get(name):
            item: Dataset = groups[name].value[0]
            return item
    raise UnfitSeries("a frame does not state its position, direction or pixel spacing")


def stack_in(found: Found, name: str = "") -> tuple[list[Dataset], list[str]]:
    """Return the images of a folder's one stack, or of the named one, and what else is there.

    Args:
        name: the description of a series, as the list gives it after `#`; case does not matter.

    Raises:
        UnfitSeries: there is no stack, several and none is named, or it has too few slices; its files
            belong to several patients.
    """
    images, copies = without_copies(found.images)
    stacks = stacks_of(images)
    notes = [f"{copies} copies of other files are not used"] if copies else []
    notes += [f"{count} x {kind} is not used" for kind, count in sorted(found.others.items())]
    stack = _chosen(stacks, name, notes)
    if len({str(each.get("PatientID", "")) for each in stack.images}) > 1:
        raise UnfitSeries("the files belong to several patients")
    left = sum(each.count for each in stacks if each is not stack)
    if left:
        notes.append(f"{left} images of other series or directions are not used")
    return stack.images, notes


def _chosen(stacks: list[Stack], name: str, others: Sequence[str]) -> Stack:
    long = [each for each in stacks if each.count >= FEWEST_SLICES]
    if name:
        long = [each for each in long if each.description.casefold() == name.casefold()]
    if len(long) == 1:
        return long[0]
    if long:
        known = ", ".join(sorted(f"{each.description!r} ({each.count} images)" for each in long))
        hint = "name one in the list, as folder#description" if not name else "give each its own folder"
        raise UnfitSeries(f"the folder holds several series: {known}; {hint}")
    if name:
        raise UnfitSeries(f"the folder holds no series with the description {name!r}")
    if stacks:
        raise UnfitSeries(f"there are fewer than {FEWEST_SLICES} slices of one series and direction")
    also = f": {', '.join(others)}" if others else ""
    raise UnfitSeries(f"the folder holds no images of a scan{also}")


def stacks_of(images: Sequence[Dataset]) -> list[Stack]:
    """Return images grouped into stacks."""
    stacks: list[Stack] = []
    for image in images:
        stack = next((each for each in stacks if each.takes(image)), None)
        if stack is None:
            stacks.append(stack := Stack())
        stack.images.append(image)
    return stacks


def without_copies(images: Sequence[Dataset]) -> tuple[list[Dataset], int]:
    """Return images without exact copies, and the number of copies.

    Raises:
        UnfitSeries: two files have one SOP instance UID, and different pixels.
    """
    kept: dict[str, Dataset] = {}
    for number, image in enumerate(images):
        uid = str(image.get("SOPInstanceUID") or number)
        if uid not in kept:
            kept[uid] = image
        elif pixels_of(image) != pixels_of(kept[uid]):
            raise UnfitSeries("two files have the same SOP instance UID, and different pixels")
    return list(kept.values()), len(images) - len(kept)
