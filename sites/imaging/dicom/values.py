"""Intensities of DICOM images. Display is not measurement.

They are stored values after Rescale Slope and Intercept or a Modality LUT, of each slice or frame.
Windows (VOI), presentation look-up tables, MONOCHROME1 and real-world value maps change nothing, except
that MONOCHROME1 inverts radiographs (`RADIOGRAPHS`), whose values are no measurement.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.processing import apply_modality_lut

from sites.imaging.dicom.files import RADIOGRAPHS, UnfitSeries


def measured(stored: NDArray[np.generic], transform: Dataset) -> NDArray[np.float32]:
    """Return stored values after the rescale or the modality look-up table that a data set states."""
    try:
        return np.asarray(apply_modality_lut(stored, transform), dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise UnfitSeries("the rescale slope or intercept is no number") from error


def is_inverted(dataset: Dataset) -> bool:
    """Return whether small values of an image are bright and say nothing else."""
    is_monochrome1 = dataset.get("PhotometricInterpretation") == "MONOCHROME1"
    return is_monochrome1 and dataset.get("Modality") in RADIOGRAPHS


def inverted(images: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Return images with bright and dark exchanged, about the same value in all of them."""
    both = max(each.max() for each in images) + min(each.min() for each in images)
    return [both - each for each in images]
