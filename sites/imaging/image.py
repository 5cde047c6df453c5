"""One image in memory, as the readers of all formats return it."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

LARGEST_BYTES = 2**31
"""Largest size of an image as float32, above that of any scan that this package trains on."""

GREY_WITHIN = 8.0
"""Largest difference of red, green and blue, of 255, in a picture that counts as grey."""

GREY_SHARES = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in a grey value (ITU-R BT.601, as pictures are converted)."""

Fault = Literal["missing", "outside", "unreadable", "affine", "series"]


class Unreadable(Exception):
    """A file can't be used. The message contains no file name and nothing that names the patient."""

    def __init__(self, fault: Fault, reason: str) -> None:
        self.fault = fault
        super().__init__(reason)


@dataclass(frozen=True)
class Placement:
    """What a file states about the place of its voxels in the patient.

    Attributes:
        affine: `(4, 4)`, from the file's own voxels to mm.
        is_stated: False if a NIfTI header has neither a qform nor an sform code.
        other: the affine by the header's qform, if it differs from `affine`, the sform's.
    """

    affine: NDArray[np.float64]
    is_stated: bool = True
    other: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Image:
    """Voxels in the closest canonical orientation (RAS+).

    Attributes:
        voxels: `(*spatial)`; of a picture in colour, its grey values.
        affine: `(4, 4)`, voxel to mm, its first columns those of `voxels`; the identity for a picture.
        spacing_mm: the voxel's sides, one for each axis of `voxels`.
        words: text in the file beside its voxels, for the search for names.
        shows_text: the file states that text is burned into its pixels.
        turned_deg: the angle between the file's axes and the patient's; None if the file does not state
            it.
        placement: what the file states about its place; None for a picture.
        alternating: the number of acquisitions whose slices lie one among another, 0 if none do.
        notes: what was found and not used, such as other series in a folder.
        colours: `(3, *spatial)` red, green and blue where the file stores them; None otherwise.
        series: the UID of a DICOM series; empty for other files.
    """

    voxels: NDArray[np.float32]
    affine: NDArray[np.float64]
    spacing_mm: tuple[float, ...]
    words: tuple[str, ...] = ()
    shows_text: bool = False
    turned_deg: float | None = 0.0
    placement: Placement | None = None
    alternating: int = 0
    notes: tuple[str, ...] = ()
    colours: NDArray[np.float32] | None = None
    series: str = ""

    @property
    def is_coloured(self) -> bool:
        """Whether the file stores colours that differ from grey by more than compression may add."""
        return self.colours is not None and float(np.ptp(self.colours, axis=0).max()) > GREY_WITHIN

    def of_dims(self, dims: int) -> "Image":
        """Return this image with `dims` axes if it has one axis more, of one voxel; else itself."""
        single = [axis for axis, side in enumerate(self.voxels.shape) if side == 1]
        if self.voxels.ndim != dims + 1 or not single:
            return self
        kept = [axis for axis in range(self.voxels.ndim) if axis != single[-1]]
        spacing = tuple(self.spacing_mm[axis] for axis in kept)
        columns = [*kept, single[-1], *range(self.voxels.ndim, 4)]
        affine = self.affine[:, columns] if len(columns) == 4 else self.affine
        return replace(self, voxels=self.voxels.squeeze(single[-1]), spacing_mm=spacing, affine=affine)


def grey_of(colours: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the grey values of colours `(3, *spatial)`."""
    return np.tensordot(np.asarray(GREY_SHARES, np.float32), colours, 1)


def check_size(size: int) -> None:
    """Raise `Unreadable` if an image of `size` bytes is larger than any scan."""
    if size > LARGEST_BYTES:
        raise Unreadable("unreadable", "the unpacked file is larger than any scan")
