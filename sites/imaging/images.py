"""Reading of one image from disk: NIfTI, a DICOM series, PNG, JPEG, or one of the images in an npz file.

Every file, also a damaged or hostile one, gives an `Image` or the error `Unreadable`. Nothing is
unpickled, no file outside the data folder is opened, nothing above `LARGEST_BYTES` is unpacked.
"""

import gzip
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import IO, Literal

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray
from PIL import Image as Pictures

from sites.imaging.dicom import UnfitSeries, series_in

LARGEST_BYTES = 2**31
"""Largest size of an image as float32, above that of any scan that this package trains on."""
SHORTEST_MM, LONGEST_MM = 1e-3, 1e3
"""Limits of the side of a voxel; a file with other values is not used."""
TEXTS = ("data_type", "db_name", "descrip", "aux_file", "intent_name")
"""Fields of a NIfTI header that hold free text."""

Fault = Literal["missing", "outside", "unreadable", "affine", "series"]


class Unreadable(Exception):
    """A file can't be used. The message contains no file name and nothing that the file holds."""

    def __init__(self, fault: Fault, reason: str) -> None:
        self.fault = fault
        super().__init__(reason)


@dataclass(frozen=True)
class Image:
    """Voxels in the closest canonical orientation (RAS+).

    Attributes:
        voxels: `(*spatial)`.
        affine: `(4, 4)`, voxel to mm; the identity for a plain picture.
        spacing_mm: the voxel's sides, one for each axis of `voxels`.
        words: text in the file beside its voxels, for the search for names.
        shows_text: the file states that text is burned into its pixels.
        turned_deg: the angle between the file's axes and the patient's; None if the file does not state
            it.
    """

    voxels: NDArray[np.float32]
    affine: NDArray[np.float64]
    spacing_mm: tuple[float, ...]
    words: tuple[str, ...] = ()
    shows_text: bool = False
    turned_deg: float | None = 0.0


def read_image(data: Path, name: str) -> Image:
    """Return the image `name` of a data folder.

    `file.npz#array/index` is one image of many, `file.nii.gz#1` one channel of several.

    Raises:
        Unreadable: the file can't be used; `fault` is the kind of reason.
    """
    file, _, member = name.partition("#")
    path = _path(data, file)
    try:
        return _reader_of(path)(path, member)
    except Unreadable:
        raise
    except MemoryError as error:
        raise Unreadable("unreadable", "a file needs more memory than is available") from error
    except UnfitSeries as error:
        raise Unreadable("series", str(error)) from error
    except Exception as error:
        # A damaged file can raise any error of its reader; none may stop the other cases.
        raise Unreadable("unreadable", f"a file can't be read: {type(error).__name__}") from error


def _path(data: Path, file: str) -> Path:
    try:
        path = (data / file).resolve()
        is_there = path.exists()
    except (
        OSError,
        ValueError,
        RuntimeError,
    ):  # a loop of links, or a name that has invalid characters or is too long
        raise Unreadable("missing", "a file is missing") from None
    if not path.is_relative_to(data.resolve()):
        raise Unreadable("outside", "a file is outside the data folder")
    if not is_there:
        raise Unreadable("missing", "a file is missing")
    return path


def _reader_of(path: Path) -> Callable[[Path, str], Image]:
    if path.is_dir():
        return _read_series
    if not path.is_file():
        raise Unreadable("unreadable", "expected a file or a folder, got something else")
    for suffix, reader in _READERS.items():
        if path.name.lower().endswith(suffix):
            return reader
    raise Unreadable("unreadable", f"expected a folder or a file of type {', '.join(_READERS)}")


def _read_nifti(path: Path, channel: str) -> Image:
    if path.name.lower().endswith(".gz"):
        _check_gzip(path)
    image = nib.load(path)
    return _from_nifti(image.slicer[..., int(channel)] if channel else image)


def _from_nifti(image: nib.Nifti1Image) -> Image:
    shape, affine = image.shape, np.asarray(image.affine, dtype=float)
    _check_size(prod(shape) * max(image.get_data_dtype().itemsize, 4))
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise Unreadable("affine", "the affine can't be inverted")
    sides = voxel_sizes(affine)
    if not all(SHORTEST_MM <= side <= LONGEST_MM for side in sides):
        limits = f"{SHORTEST_MM:g} to {LONGEST_MM:g} mm"
        raise Unreadable("affine", f"the sides of its voxels are not within {limits}")
    stored = image.dataobj
    scaled = stored.get_scaled(np.float32) if hasattr(stored, "get_scaled") else stored
    turn = io_orientation(affine)  # turning nibabel's image would need a second copy
    voxels = apply_orientation(np.asarray(scaled, dtype=np.float32), turn)
    turned = affine @ inv_ornt_aff(turn, shape[:3])
    spacing_mm = tuple(float(side) for side in voxel_sizes(turned))[: voxels.ndim]
    if voxels.ndim > len(spacing_mm):
        spacing_mm += (1.0,) * (voxels.ndim - len(spacing_mm))
    voxels, words = np.ascontiguousarray(voxels), tuple(_words(image))
    return Image(voxels, turned, spacing_mm, words, turned_deg=_turned_deg(image))


def _turned_deg(image: nib.Nifti1Image) -> float | None:
    """Return the largest angle between an axis of the voxels and the patient's closest axis.

    None if a NIfTI header states no orientation: qform_code and sform_code are 0.
    """
    if isinstance(image, nib.Nifti1Image) and not (
        int(image.header["qform_code"]) or int(image.header["sform_code"])
    ):
        return None
    axes = np.asarray(image.affine, dtype=float)[:3, :3]
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
            _check_size(size)


def _check_size(size: int) -> None:
    if size > LARGEST_BYTES:
        raise Unreadable("unreadable", "the unpacked file is larger than any scan")


def _read_series(path: Path, _: str) -> Image:
    series = series_in(path)
    image = _from_nifti(series.volume)
    return replace(image, words=series.words, shows_text=series.shows_text)


def _read_picture(path: Path, _: str) -> Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Pictures.DecompressionBombWarning)
        with Pictures.open(path, formats=("PNG", "JPEG")) as picture:
            words = [str(v) for v in picture.info.values() if isinstance(v, str)]
            words += [str(v) for v in picture.getexif().values() if isinstance(v, str)]
            grey = picture if picture.mode.startswith(("I", "F")) else picture.convert("L")
            return _plain(np.asarray(grey), tuple(words))


def read_stack(path: Path, array: str) -> NDArray[np.float32]:
    """Return an array of an npz file that holds many images: `(N, *spatial)`.

    Raises:
        Unreadable: the array does not exist, or can't be read.
    """
    try:
        return np.asarray(_array_of(path, array), dtype=np.float32)
    except Unreadable:
        raise
    except Exception as error:  # as in read_image
        raise Unreadable("unreadable", f"a file can't be read: {type(error).__name__}") from error


def _read_member(path: Path, member: str) -> Image:
    array, _, index = member.partition("/")
    return _plain(_array_of(path, array)[int(index)])


def _array_of(path: Path, array: str) -> NDArray[np.generic]:
    with zipfile.ZipFile(path) as archive:
        _check_size(archive.getinfo(f"{array}.npy").file_size)
        with archive.open(f"{array}.npy") as header:
            _check_array(header)
    with np.load(path, allow_pickle=False) as arrays:
        images = arrays[array]
        if not isinstance(images, np.ndarray) or images.ndim < 3:
            raise Unreadable("unreadable", "the array holds no images")
        return images


def _check_array(file: IO[bytes]) -> None:
    """Check the size that an array's header claims: numpy allocates that memory before it reads."""
    read = np.lib.format.read_array_header_1_0
    if np.lib.format.read_magic(file) != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    _check_size(prod(shape) * max(dtype.itemsize, 1))


def _plain(values: NDArray[np.generic], words: tuple[str, ...] = ()) -> Image:
    voxels = np.asarray(values, dtype=np.float32)
    return Image(voxels, np.eye(4), (1.0,) * voxels.ndim, words)


_READERS: Mapping[str, Callable[[Path, str], Image]] = {
    ".nii": _read_nifti,
    ".nii.gz": _read_nifti,
    ".png": _read_picture,
    ".jpg": _read_picture,
    ".jpeg": _read_picture,
    ".npz": _read_member,
}
"""The function that reads a file, by the end of the file's name."""
