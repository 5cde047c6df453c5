"""Synthetic series, as scanners and archives leave them in a folder."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from sites.dicom import UnfitSeries, series_in
from sites.images import Unreadable, read_image

CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
AXIAL = [1, 0, 0, 0, 1, 0]
CORONAL = [1, 0, 0, 0, 0, -1]
RNG = np.random.default_rng(0)
VOLUME = RNG.integers(0, 1000, (6, 12, 10), dtype=np.int16)  # slices, rows, columns


def write_slice(
    folder: Path, number: int, position: list[float], *, series: str = "1.2.3", values=None,
    orientation=AXIAL, **changes: object,
) -> None:  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    values = VOLUME[number % len(VOLUME)] if values is None else values
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = changes.get("SOPClassUID", MRImageStorage)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    fields = {
        "SOPClassUID": MRImageStorage, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": "MR", "Manufacturer": "Nobody", "PatientName": "MUELLER^ANNA",
        "PatientID": "4711", "PatientBirthDate": "19560403", "SeriesInstanceUID": series,
        "StudyInstanceUID": "1.2", "FrameOfReferenceUID": "1.2.9", "InstanceNumber": number + 1,
        "ImageType": ["ORIGINAL", "PRIMARY", "M"], "ImagePositionPatient": position,
        "ImageOrientationPatient": orientation, "PixelSpacing": [1.5, 0.75], "SliceThickness": 3,
        "Rows": values.shape[0], "Columns": values.shape[1], "BitsAllocated": 16, "BitsStored": 16,
        "HighBit": 15, "PixelRepresentation": 1, "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", "RescaleSlope": 1, "RescaleIntercept": 0,
    }  # fmt: skip
    for name, value in {**fields, **changes}.items():
        setattr(dataset, name, value)
    dataset.PixelData = values.astype(np.int16).tobytes()
    dataset.save_as(
        folder / f"{series}-{number:03d}-{generate_uid()[-6:]}.dcm", enforce_file_format=True
    )


def write_series(folder: Path, skip: tuple[int, ...] = (), **changes: object) -> None:
    for number in range(len(VOLUME)):
        if number not in skip:
            write_slice(folder, number, [-5.0, 7.0, 10.0 + 3 * number], **changes)


def test_a_series_becomes_the_volume_with_the_standards_affine(tmp_path: Path) -> None:
    write_series(tmp_path / "scan")
    image = series_in(tmp_path / "scan")
    # PS3.3 C.7.6.2.1.1, with x and y turned from the patient's left and back to right and front.
    expected = np.array(
        [[-0.75, 0, 0, 5.0], [0, -1.5, 0, -7.0], [0, 0, 3, 10.0], [0, 0, 0, 1.0]]
    )  # columns lie 0.75 mm apart, rows 1.5 mm
    reference = nib.Nifti1Image(VOLUME.transpose(2, 1, 0), expected)
    ours, theirs = (nib.as_closest_canonical(i) for i in (image, reference))
    assert np.allclose(ours.affine, theirs.affine, atol=1e-4)
    assert np.array_equal(ours.get_fdata(), theirs.get_fdata())
    read = read_image(tmp_path, "scan")
    assert read.spacing_mm == pytest.approx((0.75, 1.5, 3.0))


def test_a_ct_is_rescaled_to_hounsfield_units(tmp_path: Path) -> None:
    write_series(
        tmp_path / "ct",
        SOPClassUID=CTImageStorage,
        Modality="CT",
        RescaleSlope=2,
        RescaleIntercept=-1024,
    )
    voxels = read_image(tmp_path, "ct").voxels
    assert voxels.min() == VOLUME.min() * 2 - 1024
    assert voxels.max() == VOLUME.max() * 2 - 1024


def test_localisers_captures_reports_and_shorter_series_are_sorted_out(tmp_path: Path) -> None:
    folder = tmp_path / "scan"
    write_series(folder)
    write_slice(folder, 0, [0, 0, 0], series="1.9", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_slice(folder, 0, [0, 0, 50], series="1.8", SOPClassUID=CAPTURE)
    write_slice(folder, 0, [0, 0, 0], series="1.7", orientation=CORONAL)
    write_slice(folder, 9, [-5, 7, 28], orientation=CORONAL)
    (folder / "readme.txt").write_text("of the archive")
    (folder / "DICOMDIR").write_bytes(b"")
    assert read_image(tmp_path, "scan").voxels.shape == (10, 12, 6)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda f: write_series(f, skip=(2,)), "one may be missing"),
        (lambda f: (write_series(f), write_slice(f, 1, [-5, 7, 13])), "at the same place"),
        (lambda f: (write_series(f), write_series(f, series="1.5")), "several series"),
        (lambda f: write_slice(f, 0, [0, 0, 0], SOPClassUID=CAPTURE), "no slices of a scan"),
        (lambda f: f.mkdir(), "no slices of a scan"),
        (lambda f: [write_slice(f, n, [0, 0, 3 * n]) for n in range(2)], "fewer than four slices"),
    ],
)  # fmt: skip
def test_a_folder_that_makes_no_volume_is_named_with_its_reason(
    make, reason: str, tmp_path: Path
) -> None:
    make(tmp_path / "scan")
    with pytest.raises(UnfitSeries, match=reason):
        series_in(tmp_path / "scan")


def test_a_damaged_slice_is_unreadable_and_nothing_of_the_patient_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    write_series(tmp_path / "scan")
    path = min((tmp_path / "scan").iterdir())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Unreadable) as caught:
        read_image(tmp_path, "scan")
    told = str(caught.value) + caplog.text + "".join(capfd.readouterr())
    assert not any(secret in told for secret in ("MUELLER", "4711", "1956"))


def test_no_attribute_of_the_patient_is_in_what_is_kept(tmp_path: Path) -> None:
    write_series(tmp_path / "scan")
    image = series_in(tmp_path / "scan")
    kept = bytes(image.header.binaryblock) + b"".join(e.get_content() for e in image.header.extensions)
    assert not any(secret in kept for secret in (b"MUELLER", b"4711", b"1956"))
    assert pydicom.dcmread(min((tmp_path / "scan").iterdir())).PatientID == "4711"
