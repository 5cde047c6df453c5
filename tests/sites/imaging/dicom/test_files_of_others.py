"""Files that scanners and other libraries wrote: those that pydicom's package carries for its own tests.

Headers of GE, Toshiba, Philips and Agfa, files of DCMTK and GDCM, several codecs, exports of an archive.
"""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from sites.imaging.images import Unreadable, read_image

FILES = Path(pydicom.__file__).parent / "data" / "test_files"
EXPORTS = FILES / "dicomdirtests"
SYNTAXES = (
    "",
    "_RLE",
    "_bigendian",
    "_expb",
    "_implicit",
    "_jp2klossless",
    "_jpeg_ls_lossless",
    "_padded",
)


def reason(folder: Path, name: str) -> str:
    with pytest.raises(Unreadable) as caught:
        read_image(folder, name)
    return str(caught.value)


def stack_of(names: tuple[str, ...], folder: Path, step_mm: float) -> list[pydicom.Dataset]:
    """Write real slices one behind the other, each as its file encodes it; return them as they are."""
    folder.mkdir()
    written = []
    for number, name in enumerate(names):
        dataset = pydicom.dcmread(FILES / name)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.4"
        along, down = np.array(dataset.ImageOrientationPatient, float).reshape(2, 3)
        dataset.ImagePositionPatient = list(number * step_mm * np.cross(along, down))
        dataset.save_as(folder / f"{number}.dcm")
        written.append(dataset)
    return written


def test_one_slice_in_eight_transfer_syntaxes_is_a_volume_of_eight_equal_slices(tmp_path: Path) -> None:
    names = tuple(f"MR_small{syntax}.dcm" for syntax in SYNTAXES)
    first = stack_of(names, tmp_path / "mr", 2.5)[0]
    image = read_image(tmp_path, "mr")
    assert image.voxels.shape == (64, 64, 8)
    assert image.spacing_mm == pytest.approx((*reversed(first.PixelSpacing), 2.5))
    truth = first.pixel_array.astype(float)
    for number in range(8):
        plane = image.voxels[..., number]
        assert sorted(plane.ravel()) == sorted(truth.ravel())
        assert np.array_equal(plane, image.voxels[..., 0])


def test_a_real_ct_slice_is_in_hounsfield_units(tmp_path: Path) -> None:
    first = stack_of(("CT_small.dcm",) * 4, tmp_path / "ct", 5)[0]
    voxels = read_image(tmp_path, "ct").voxels
    truth = first.pixel_array * float(first.RescaleSlope) + float(first.RescaleIntercept)
    assert (voxels.min(), voxels.max()) == (truth.min(), truth.max()) == (-896, 1167)


def test_exports_of_an_archive_are_read_or_named_with_the_reason() -> None:
    assert read_image(EXPORTS, "98892001/CT5N").voxels.shape == (16, 16, 5)
    assert read_image(EXPORTS, "77654033/CR1").spacing_mm == (0.1, 0.1)
    assert "a gap of 202 mm among slices 1.25 mm apart" in reason(EXPORTS, "77654033/CT2")
    assert "2 x localizer is not used" in reason(EXPORTS, "98892001/CT2N")
    assert "fewer than 4 slices" in reason(EXPORTS, "98892003/MR1")
    assert "'Routine Brain' (4 images), 'SmartScore - Gated 0.5 sec' (5 images)" in reason(EXPORTS, ".")
    assert "50 x CT Image Storage without pixels" in reason(EXPORTS / "TINY_ALPHA", "PT000000")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("MR_truncated.dcm", "cut off: it has fewer pixels than it states"),
        ("image_dfl.dcm", "compressed so that its size can't be known"),
        ("rtdose.dcm", "RT Dose Storage"),
        ("liver_1frame.dcm", "Segmentation Storage"),
        ("SC_ybr_full_422_uncompressed.dcm", "Secondary Capture Image Storage"),
        ("test-SR.dcm", "Comprehensive SR Storage"),
        ("waveform_ecg.dcm", "12-lead ECG Waveform Storage"),
        ("examples_ybr_color.dcm", "30 frames; name one in the list"),
    ],
)
def test_what_is_no_scan_has_its_own_reason(name: str, why: str) -> None:
    assert why in reason(FILES, name)


@pytest.mark.parametrize(
    "name", ["examples_jpeg2k.dcm", "examples_rgb_color.dcm", "examples_palette.dcm"]
)
def test_ultrasound_and_photographs_in_colour_are_what_pydicom_shows(name: str) -> None:
    dataset = pydicom.dcmread(FILES / name)
    colours = read_image(FILES, name).colours
    shown = dataset.pixel_array
    if "PALETTE" in dataset.PhotometricInterpretation:
        shown = pydicom.pixels.apply_color_lut(shown, dataset) >> 8
    assert colours is not None
    assert np.array_equal(colours, np.moveaxis(shown, -1, 0))


def test_each_file_is_an_image_or_has_a_reason_in_words() -> None:
    """No file ends in a bare error, but two whose bytes are no DICOM that can be parsed."""
    unnamed = set()
    for path in sorted(FILES.glob("*.dcm")):
        try:
            read_image(FILES, path.name)
        except Unreadable as error:
            if "can't be read" in str(error):
                unnamed.add(path.name)
    assert unnamed == {"badVR.dcm", "no_meta.dcm"}
