"""One DICOM image without a place in space: an X-ray, a frame of an ultrasound, a photograph.

It is read as a picture is: rows first, as stored. Intensities of grey images follow the rule of
`sites.imaging.dicom.values`; colours become red, green and blue. The sides of its pixels are those at
the patient, else those at the detector, else 1 mm.
"""

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array

from sites.imaging.dicom.files import UnfitSeries, naming
from sites.imaging.dicom.values import inverted, is_inverted, measured
from sites.imaging.image import Image, grey_of

MM_PER_CM = 10.0
CENTIMETRES = 3
"""Code of a unit in a region of an ultrasound image (DICOM PS3.3 C.8.5.5.1.15)."""


def flat_image(dataset: Dataset, frame: str = "") -> Image:
    """Return the image of a file.

    Args:
        frame: the number of one of several frames, from 0.

    Raises:
        UnfitSeries: there are several frames and none is named, or there is no such frame.
    """
    count = int(dataset.get("NumberOfFrames") or 1)
    if count > 1 and not frame:
        raise UnfitSeries(f"the file has {count} frames; name one in the list, as file#0")
    number = int(frame) if frame.isdecimal() else 0
    if frame and not (frame.isdecimal() and number < count):
        raise UnfitSeries(f"expected the number of a frame below {count}, got {frame!r}")
    stored = _frame(dataset, number, count)
    words, shows_text = tuple(naming(dataset)), dataset.get("BurnedInAnnotation") == "YES"
    if stored.ndim == 3:
        colours = np.moveaxis(stored, -1, 0).astype(np.float32)
        voxels, kept = grey_of(colours), colours
    else:
        voxels, kept = measured(stored, dataset), None
        voxels = inverted([voxels])[0] if is_inverted(dataset) else voxels
    sides, notes = _sides_mm(dataset)
    return Image(
        voxels, np.eye(4), sides, words=words, shows_text=shows_text, colours=kept, notes=notes,
        series=str(dataset.get("SeriesInstanceUID") or ""),
    )  # fmt: skip


def colours_of(dataset: Dataset) -> NDArray[np.uint8]:
    """Return the red, green and blue of an image in colour, `([frames], rows, columns, 3)`."""
    count = int(dataset.get("NumberOfFrames") or 1)
    frames = [np.asarray(_frame(dataset, number, count), np.uint8) for number in range(count)]
    return np.stack(frames) if count > 1 else frames[0]


def _frame(dataset: Dataset, number: int, count: int) -> NDArray[np.generic]:
    """Return a frame's stored values `(rows, columns)`, or colours of 8 bits `(rows, columns, 3)`."""
    values = pixel_array(dataset, index=number) if count > 1 else pixel_array(dataset)
    bits = int(dataset.get("BitsStored") or 16)
    if "PALETTE" in str(dataset.get("PhotometricInterpretation")):
        values, bits = apply_color_lut(values, dataset), 16
    if values.ndim == 3 and values.dtype == np.uint16:
        values = (values >> max(bits - 8, 0)).astype(np.uint8)
    return values


def _sides_mm(dataset: Dataset) -> tuple[tuple[float, float], tuple[str, ...]]:
    """Return the sides of a pixel, and a note if an ultrasound shows views of different scales."""
    for key in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        sides = [float(side) for side in dataset.get(key) or ()]
        if len(sides) == 2 and min(sides) > 0:
            return (sides[0], sides[1]), ()
    scales = [
        (abs(float(region.PhysicalDeltaY)) * MM_PER_CM, abs(float(region.PhysicalDeltaX)) * MM_PER_CM)
        for region in dataset.get("SequenceOfUltrasoundRegions") or ()
        if (region.get("PhysicalUnitsXDirection"), region.get("PhysicalUnitsYDirection"))
        in ((CENTIMETRES, CENTIMETRES), (CENTIMETRES, None))
    ]
    if scales and np.allclose(scales, scales[0], rtol=1e-3):
        return scales[0], ()
    if scales:
        return (1.0, 1.0), ("its views have different scales: pixels count as 1 mm",)
    return (1.0, 1.0), ()
