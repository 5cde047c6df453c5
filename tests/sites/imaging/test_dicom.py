"""Folders of DICOM files become volumes with the standard's affine, or an error with the reason."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian
from scanner import CAPTURE, CORONAL, VOLUME, write_enhanced, write_series, write_slice

from sites.imaging.dicom import UnfitSeries, patient_in, series_in
from sites.imaging.images import Unreadable, read_image
from sites.imaging.intake import suspicious


def rename_patient(path: Path) -> None:
    dataset = pydicom.dcmread(path)
    dataset.PatientID = "0815"
    dataset.save_as(path)


def test_a_multi_frame_file_is_the_same_volume_as_a_series_of_its_slices(tmp_path: Path) -> None:
    write_series(tmp_path / "slices", RescaleSlope=2, RescaleIntercept=10)
    write_enhanced(tmp_path / "frames")
    series, frames = (
        nib.as_closest_canonical(series_in(tmp_path / name).volume) for name in ("slices", "frames")
    )
    assert np.allclose(series.affine, frames.affine, atol=1e-4)
    assert np.array_equal(series.get_fdata(), frames.get_fdata())


def test_a_frame_that_is_missing_makes_no_volume(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "frames", skip=(2,))
    with pytest.raises(UnfitSeries, match="one may be missing"):
        series_in(tmp_path / "frames")


def test_what_the_files_say_of_the_patient_is_flagged_and_what_was_cleaned_is_not(
    tmp_path: Path,
) -> None:
    write_series(tmp_path / "raw", BurnedInAnnotation="YES")
    write_series(tmp_path / "clean", PatientIdentityRemoved="YES", BurnedInAnnotation="NO")
    raw, clean = (series_in(tmp_path / name) for name in ("raw", "clean"))
    assert suspicious(raw.words) and raw.shows_text
    assert not suspicious(clean.words) and not clean.shows_text
    assert patient_in(tmp_path / "raw") == "MRN-4711"
    assert not patient_in(tmp_path / "clean" / "nothing")


def test_a_series_becomes_the_volume_with_the_standards_affine(tmp_path: Path) -> None:
    write_series(tmp_path / "scan")
    image = series_in(tmp_path / "scan").volume
    # DICOM PS3.3 C.7.6.2.1.1, with x and y turned from the patient's left and back to right and front:
    # https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.7.6.2.html
    expected = np.array(
        [[-0.75, 0, 0, 5.0], [0, -1.5, 0, -7.0], [0, 0, 3, 10.0], [0, 0, 0, 1.0]]
    )  # columns are 0.75 mm apart, rows 1.5 mm
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
        (lambda f: write_slice(f, 0, [0, 0, 0], SOPClassUID=CAPTURE), "no images of a scan"),
        (lambda f: (write_series(f), [rename_patient(p) for p in sorted(f.iterdir())[:2]]), "patients"),
        (lambda f: f.mkdir(), "no images of a scan"),
        (lambda f: [write_slice(f, n, [0, 0, 3 * n]) for n in range(2)], "fewer than 4 slices"),
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
    output = str(caught.value) + caplog.text + "".join(capfd.readouterr())
    assert not any(secret in output for secret in ("MUELLER", "MRN-4711", "19560403"))


def test_no_attribute_of_the_patient_is_in_what_is_kept(tmp_path: Path) -> None:
    write_series(tmp_path / "scan")
    image = series_in(tmp_path / "scan").volume
    kept = bytes(image.header.binaryblock) + b"".join(e.get_content() for e in image.header.extensions)
    assert not any(secret in kept for secret in (b"MUELLER", b"MRN-4711", b"19560403"))
    assert pydicom.dcmread(min((tmp_path / "scan").iterdir())).PatientID == "MRN-4711"


def test_a_file_that_unpacks_to_more_than_it_says_is_refused_before_it_is_read(tmp_path: Path) -> None:
    write_series(tmp_path / "scan")
    path = min((tmp_path / "scan").iterdir())
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path)
    with pytest.raises(UnfitSeries, match="size can't be known"):
        series_in(tmp_path / "scan")


def test_rows_and_frames_that_no_scan_has_are_refused(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "frames")
    (path,) = (tmp_path / "frames").iterdir()
    dataset = pydicom.dcmread(path)
    dataset.Rows = dataset.Columns = 60_000
    dataset.save_as(path)
    with pytest.raises(UnfitSeries, match="larger than any scan"):
        series_in(tmp_path / "frames")
