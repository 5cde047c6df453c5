"""Reading of one image from disk: NIfTI, DICOM, a picture, or one of the images in an npz file.

Every file, also a damaged or hostile one, gives an `Image` or the error `Unreadable`. Nothing is
unpickled, no file outside the data folder is opened, nothing above `LARGEST_BYTES` is unpacked.
"""

import gzip
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures
from PIL import ImageFile, ImageOps

from sites.imaging.dicom.drawn import drawn_in, on_image
from sites.imaging.dicom.files import (
    SUFFIXES,
    Found,
    UnfitSeries,
    images_in,
    is_captured_radiograph,
    is_dicom,
    is_flat,
    no_scan,
    read_file,
)
from sites.imaging.dicom.flat import flat_image
from sites.imaging.dicom.series import series_of
from sites.imaging.dicom.stack import is_multi_frame, without_copies
from sites.imaging.image import LARGEST_BYTES, Fault, Image, Unreadable, check_size, grey_of
from sites.imaging.nifti import TEXTS, from_nifti, read_nifti
from sites.listing.cases import PICTURES

__all__ = [
    "LARGEST_BYTES",
    "TEXTS",
    "Fault",
    "Image",
    "Unreadable",
    "read_image",
    "read_stack",
]

FORMATS = ("PNG", "JPEG", "TIFF")
"""Formats of pictures, by Pillow's names."""
PHOTOMETRIC, SAMPLE_FORMAT = 262, 339
"""Tags of TIFF."""
COLOURED = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV")
"""Modes of pictures that store colours."""


def read_image(data: Path, name: str, *, is_label: bool = False) -> Image:
    """Return the image `name` of a data folder.

    `file.npz#array/index` is one image of many, `file.nii.gz#1` one channel of several, `folder#T1` the
    DICOM series with this description, `file.dcm#3` a frame of an ultrasound.

    Args:
        is_label: the file is a label image: a picture's palette or its one bit are its values.

    Raises:
        Unreadable: the file can't be used; `fault` is the kind of reason.
    """
    file, _, member = name.partition("#")
    path = _path(data, file)
    with _readable():
        if is_label and path.name.lower().endswith(PICTURES):
            return _read_picture(path, member, is_label=True)
        return _reader_of(path)(path, member)


@contextmanager
def _readable() -> Iterator[None]:
    """Turn any error of a reader into `Unreadable`."""
    try:
        yield
    except Unreadable:
        raise
    except MemoryError as error:
        raise Unreadable("unreadable", "a file needs more memory than is available") from error
    except UnfitSeries as error:
        raise Unreadable("series", str(error)) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Unreadable("unreadable", "a file is cut off or damaged") from error
    except OSError as error:
        why = "can't be opened" if error.errno else "is cut off or damaged"
        raise Unreadable("unreadable", f"a file {why}") from error
    except Exception as error:
        # A damaged file can raise any error of its reader; none may stop the other cases.
        raise Unreadable("unreadable", f"a file can't be read: {type(error).__name__}") from error


def read_label(
    data: Path, name: str, image: Image, names: Mapping[str, int], series: Collection[str] = ()
) -> tuple[Image, bool]:  # fmt: skip
    """Return a label image, and whether its values are those of `names` already.

    DICOM segmentations and structure sets are brought to the grid of their image.

    Args:
        names: the value of each label by its name, as `plain_name` writes it.
        series: UIDs of the DICOM series that labels may refer to.

    Raises:
        Unreadable: as `read_image` does.
    """
    path = _path(data, name.partition("#")[0])
    if path.is_dir() or path.suffix.lower() in SUFFIXES:
        with _readable():
            if drawn := drawn_in(path):
                found = on_image(drawn, image, names, series)
                values = found.values.astype(np.float32)
                label = replace(image, voxels=values, words=(), notes=found.notes, colours=None)
                return label, found.is_named
    return read_image(data, name, is_label=True), False


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
        return _read_folder
    if not path.is_file():
        raise Unreadable("unreadable", "expected a file or a folder, got something else")
    for suffix, reader in _READERS.items():
        if path.name.lower().endswith(suffix):
            return reader
    if is_dicom(path):  # archives write names without an end
        return _read_dicom
    raise Unreadable("unreadable", f"expected a folder or a file of type {', '.join(_READERS)}")


def _read_folder(path: Path, name: str) -> Image:
    return _from_dicom(images_in(path), name)


def _read_dicom(path: Path, name: str) -> Image:
    """Return the image of one DICOM file: a volume of several frames, or a flat image."""
    dataset = read_file(path)
    if (why := no_scan(dataset)) and not is_captured_radiograph(dataset):
        raise UnfitSeries(f"the file holds no image of a scan: {why}")
    if not is_multi_frame(dataset) and int(dataset.get("NumberOfFrames") or 1) == 1:
        return flat_image(dataset, name)  # also a slice that is listed by itself
    return _from_dicom(Found((dataset,), Counter()), name)


def _from_dicom(found: Found, name: str) -> Image:
    flat = [each for each in found.images if is_flat(each)]
    if flat and len(flat) == len(found.images):
        kept, _ = without_copies(flat)
        if len(kept) > 1:
            raise UnfitSeries(
                f"the folder holds {len(kept)} images without a place in space; list each file by itself"
            )
        return flat_image(kept[0], name)
    placed = tuple(each for each in found.images if not is_flat(each))
    others = found.others + Counter({"image without a position": len(flat)})
    series = series_of(Found(placed, others), name)
    image = from_nifti(series.volume)
    return replace(
        image, words=series.words, shows_text=series.shows_text, notes=series.notes,
        alternating=series.alternating, series=series.uid,
    )  # fmt: skip


def _read_picture(path: Path, page: str, *, is_label: bool = False) -> Image:
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # WeasyPrint 69 sets it for the whole process
    with warnings.catch_warnings():
        warnings.simplefilter("error", Pictures.DecompressionBombWarning)
        # a file object: of a file's name Pillow 13 maps a turned TIFF into memory in a wrong shape
        with path.open("rb") as file, Pictures.open(file, formats=FORMATS) as picture:
            _turn_to(picture, page)
            if any(";16" in str(tile[3]) for tile in picture.tile) and picture.mode[:1] in "RL":
                raise Unreadable("unreadable", "it has 16 bits and colour or transparency")
            stored = _stored_as(picture)  # before EXIF, for which a PNG is loaded
            words = [str(v) for v in picture.info.values() if isinstance(v, str)]
            words += [str(v) for v in picture.getexif().values() if isinstance(v, str)]
            turned = upright(picture)
            found = _plain(
                stored.values(np.asarray(_grey(turned, is_label=is_label)), is_label=is_label),
                tuple(words),
            )
            if is_label or turned.mode not in COLOURED:
                return found
            colours = np.asarray(turned.convert("RGB"), dtype=np.float32)
            return replace(found, colours=np.moveaxis(colours, -1, 0))


def _turn_to(picture: Pictures.Image, page: str) -> None:
    """Go to a page of a picture, by its number from 0; a picture of several needs one named."""
    count = getattr(picture, "n_frames", 1)
    if count > 1 and not page:
        raise Unreadable("unreadable", f"the file has {count} pages; name one in the list, as file#0")
    if page and not (page.isdecimal() and int(page) < count):
        raise Unreadable("unreadable", f"expected the number of a page below {count}, got {page!r}")
    if page:
        picture.seek(int(page))


@dataclass(frozen=True)
class _Stored:
    """How a file stores grey values that Pillow shows otherwise.

    Attributes:
        scale: the factor by which values of two or four bits are spread over 0 to 255.
        is_white_zero: small values are bright (TIFF 6.0, WhiteIsZero); an image is read as it is shown,
            a label image as it is stored.
        is_signed: whole numbers of eight bits have a sign.
    """

    scale: int
    is_white_zero: bool
    is_signed: bool

    def values(self, shown: NDArray[np.generic], *, is_label: bool) -> NDArray[np.generic]:
        """Return the values of an image, or of a label image, by what Pillow shows of it."""
        if shown.dtype == np.uint8:
            if self.is_signed:
                return shown.view(np.int8)
            if is_label:
                values = shown.astype(np.int64)
                return (255 - values if self.is_white_zero else values) // self.scale
        elif self.is_white_zero and not is_label and shown.dtype == np.uint16:
            return np.iinfo(np.uint16).max - shown
        return shown


def _stored_as(picture: Pictures.Image) -> _Stored:
    tiles = getattr(picture, "tile", ())
    raw = {str(tile[3][0] if isinstance(tile[3], tuple) else tile[3]) for tile in tiles}
    bits = {each.partition(";")[2][:1] for each in raw if each.startswith("L;")}
    tags: Mapping[int, Any] = getattr(picture, "tag_v2", {})
    return _Stored(
        scale={frozenset("2"): 85, frozenset("4"): 17}.get(frozenset(bits), 1),
        is_white_zero=tags.get(PHOTOMETRIC) == 0 and picture.mode != "1",
        is_signed=tags.get(SAMPLE_FORMAT) in (2, (2,)),
    )


def upright(picture: Pictures.Image) -> Pictures.Image:
    """Return a picture turned as its EXIF orientation says, as every viewer shows it."""
    return ImageOps.exif_transpose(picture)


def _grey(picture: Pictures.Image, *, is_label: bool) -> Pictures.Image:
    """Return a picture in grey; of a label image with a palette or one bit, the stored values."""
    if picture.mode.startswith(("I", "F")) or (is_label and picture.mode in ("P", "1")):
        return picture
    return picture.convert("L")


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
    images = _array_of(path, array)
    if not (index.isdecimal() and int(index) < len(images)):
        raise Unreadable("unreadable", f"expected array/number below {len(images)}, got {member!r}")
    image = images[int(index)]
    if image.ndim == 3 and image.shape[-1] == 3 and image.dtype == np.uint8:
        colours = np.moveaxis(image, -1, 0).astype(np.float32)
        return replace(_plain(grey_of(colours)), colours=colours)
    return _plain(image)


def _array_of(path: Path, array: str) -> NDArray[np.generic]:
    with zipfile.ZipFile(path) as archive:
        if f"{array}.npy" not in archive.namelist():
            raise Unreadable("unreadable", f"it has no array {array!r}")
        check_size(archive.getinfo(f"{array}.npy").file_size)
        with archive.open(f"{array}.npy") as header:
            _check_array(header)
    with np.load(path, allow_pickle=False) as arrays:
        images = arrays[array]
        if images.dtype.kind not in "iufb":
            raise Unreadable("unreadable", "its voxels are complex or no numbers")
        if not isinstance(images, np.ndarray) or images.ndim < 3:
            raise Unreadable("unreadable", "the array holds no images")
        return images


def _check_array(file: IO[bytes]) -> None:
    """Check the size that an array's header claims: numpy allocates that memory before it reads."""
    read = np.lib.format.read_array_header_1_0
    if np.lib.format.read_magic(file) != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    check_size(prod(shape) * max(dtype.itemsize, 1))


def _plain(values: NDArray[np.generic], words: tuple[str, ...] = ()) -> Image:
    voxels = np.asarray(values, dtype=np.float32)
    return Image(voxels, np.eye(4), (1.0,) * voxels.ndim, words)


_READERS: Mapping[str, Callable[[Path, str], Image]] = {
    ".nii": read_nifti,
    ".nii.gz": read_nifti,
    **dict.fromkeys(PICTURES, _read_picture),
    ".npz": _read_member,
    **dict.fromkeys(SUFFIXES, _read_dicom),
}
"""The function that reads a file, by the end of the file's name."""
