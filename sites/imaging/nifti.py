"""NIfTI files: voxels in the patient's orientation, and what the header states about their place.

A header may state the place twice, by qform and by sform. The sform is taken if it has a code, else the
qform, as nibabel does; where both have codes and differ, `Placement.other` has the qform's. Units of
metres and micrometres are converted to mm. Axes of one voxel beyond the third are dropped; a file of two
axes becomes one of three with one slice.
"""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from sites.imaging.image import LARGEST_BYTES, Image, Placement, Unreadable, check_size

SHORTEST_MM, LONGEST_MM = 1e-3, 1e3
"""Limits of the side of a voxel; a file with other values is not used."""
SAME_PLACE_MM = 0.1
"""Difference of a corner's place, in mm, below which qform and sform agree: they are rounded."""
TEXTS = ("data_type", "db_name", "descrip", "aux_file", "intent_name")
"""Fields of a NIfTI header that hold free text."""
UNITS_MM = {1: 1000.0, 3: 0.001}
"""Units of the header (its lowest three bits) that are not mm: metres and micrometres, in mm."""


def read_nifti(path: Path, channel: str) -> Image:
    """Return the image of a NIfTI file; `channel` is the number of one of several, from 0, or empty."""
    if path.name.lower().endswith(".gz"):
        _check_gzip(path)
    image = nib.load(path)
    if not channel:
        return from_nifti(image)
    count = image.shape[-1] if len(image.shape) > 3 else 0
    if not (channel.isdecimal() and int(channel) < count):
        raise Unreadable(
            "unreadable", f"expected the number of a channel below {count}, got {channel!r}"
        )
    return from_nifti(image.slicer[..., int(channel)])


def from_nifti(image: nib.Nifti1Image) -> Image:
    """Return nibabel's image with its voxels in RAS+."""
    kind = image.get_data_dtype()
    if kind.kind not in "iufb":
        raise Unreadable("unreadable", "its voxels are complex or in colour")
    check_size(4 * int(np.prod(image.shape)))
    placement = placement_of(image)
    affine = placement.affine
    _check_affine(affine)
    stored = image.dataobj
    scaled = stored.get_scaled(np.float32) if hasattr(stored, "get_scaled") else stored
    values = in_three_axes(np.asarray(scaled, dtype=np.float32))
    turn = io_orientation(affine)  # turning nibabel's image would need a second copy
    voxels = apply_orientation(values, turn)
    turned = affine @ inv_ornt_aff(turn, values.shape[:3])
    spacing_mm = tuple(float(side) for side in voxel_sizes(turned))
    spacing_mm += (1.0,) * (voxels.ndim - len(spacing_mm))
    return Image(
        np.ascontiguousarray(voxels),
        turned,
        spacing_mm,
        tuple(_words(image)),
        turned_deg=_turned_deg(affine) if placement.is_stated else None,
        placement=placement,
    )


def in_three_axes(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return values with axes of one voxel added up to the third, or dropped beyond it."""
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    return values.reshape(values.shape + (1,) * (3 - values.ndim))


def placement_of(image: nib.Nifti1Image) -> Placement:
    """Return the place of an image's voxels in mm, as its header states it."""
    affine = np.asarray(image.affine, dtype=float)
    if not isinstance(image, nib.Nifti1Image):
        return Placement(affine)
    header = image.header
    size = np.diag([*[UNITS_MM.get(int(header["xyzt_units"]) & 7, 1.0)] * 3, 1.0])
    codes = int(header["qform_code"]), int(header["sform_code"])
    other = None
    if all(codes):
        found = _qform(header)
        sides = (*image.shape, 1, 1)[:3]
        corners = np.array([[0, 0, 0, 1], [*(side - 1 for side in sides), 1]]).T
        if found is not None and np.abs(size @ (found - affine) @ corners).max() > SAME_PLACE_MM:
            other = size @ found
    return Placement(size @ affine, any(codes), other)


def _qform(header: nib.Nifti1Header) -> NDArray[np.float64] | None:
    """Return the qform's affine; None if its quaternion is none, which a good sform makes up for."""
    try:
        return np.asarray(header.get_qform(), dtype=float)
    except (ValueError, HeaderDataError):
        return None


def _check_affine(affine: NDArray[np.float64]) -> None:
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise Unreadable("affine", "the affine can't be inverted")
    if not all(SHORTEST_MM <= side <= LONGEST_MM for side in voxel_sizes(affine)):
        limits = f"{SHORTEST_MM:g} to {LONGEST_MM:g} mm"
        raise Unreadable("affine", f"the sides of its voxels are not within {limits}")


def _turned_deg(affine: NDArray[np.float64]) -> float:
    """Return the largest angle between an axis of the voxels and the patient's closest axis."""
    axes = affine[:3, :3]
    cosines = np.abs(axes / np.linalg.norm(axes, axis=0)).max(axis=0)
    return float(np.degrees(np.arccos(np.clip(cosines.min(), 0, 1))))


def _words(image: nib.Nifti1Image) -> list[str]:
    """Return the free text of a NIfTI header and its extensions."""
    header = image.header
    fields = (header[key].tobytes() for key in TEXTS if key in header)
    extensions = (ext.content for ext in getattr(header, "extensions", ()))
    texts = (raw.decode("latin-1").strip("\0 ") for raw in (*fields, *extensions))
    return [text for text in texts if text]


def _check_gzip(path: Path) -> None:
    """Read a gzip file to its end, where its checksum is stored; nibabel does not read that far."""
    size = 0
    with gzip.open(path) as file:
        while part := file.read(2**20):
            size += len(part)
            if size > 2 * LARGEST_BYTES + 2**20:  # values of eight bytes, and a header
                check_size(size)
