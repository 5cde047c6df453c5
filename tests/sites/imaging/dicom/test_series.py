"""Folders of DICOM files become volumes with the standard's affine, or an error with the reason."""

from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.pixels import apply_rescale
from pydicom.sr.codedict import codes
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    MRSpectroscopyStorage,
    NuclearMedicineImageStorage,
    OphthalmicTomographyImageStorage,
    RTDoseStorage,
    generate_uid,
)
from scanner import CAPTURE, CORONAL, VOLUME, write_enhanced, write_series, write_slice

from models.settings.tasks import ClassificationConfig
from sites.imaging.dicom.files import UnfitSeries
from sites.imaging.dicom.series import series_in
from sites.imaging.images import Unreadable, read_image
from sites.imaging.intake import read_case, suspicious
from sites.listing.cases import CaseFiles

EMPTY = (
    "AccessionNumber", "StudyDate", "StudyTime", "PatientSex", "StudyID", "ReferringPhysicianName",
    "PatientOrientation", "PositionReferenceIndicator",
)  # fmt: skip


def write_slices(folder: Path, depths: list[float], sheared: float = 0, **changes: object) -> None:
    for number, depth in enumerate(depths):
        write_slice(folder, number, [-5.0, 7 + sheared * depth, depth], **changes)


def cut_off(folder: Path) -> None:
    path = min(folder.iterdir())
    path.write_bytes(path.read_bytes()[:-100])


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
    with pytest.raises(UnfitSeries, match="a slice is missing"):
        series_in(tmp_path / "frames")


def test_files_of_one_frame_each_or_parts_of_a_volume_are_the_volume(tmp_path: Path) -> None:
    """Enhanced files come one to a slice, too, and large ones in parts (concatenations)."""
    write_enhanced(tmp_path / "whole")
    for name, parts in (("single", [(n,) for n in range(6)]), ("halves", [(0, 1, 2), (3, 4, 5)])):
        for part in parts:
            folder = tmp_path / f"{name}-{part[0]}"
            write_enhanced(folder, skip=tuple(set(range(6)) - set(part)))
            (file,) = folder.iterdir()
            (tmp_path / name).mkdir(exist_ok=True)
            file.rename(tmp_path / name / f"{part[0]}.dcm")
    whole, single, halves = (
        nib.as_closest_canonical(series_in(tmp_path / name).volume)
        for name in ("whole", "single", "halves")
    )
    for parted in (single, halves):
        assert np.allclose(parted.affine, whole.affine, atol=1e-4)
        assert np.array_equal(parted.get_fdata(), whole.get_fdata())


def test_slices_of_acquisitions_that_alternate_are_one_volume_and_said(tmp_path: Path) -> None:
    """Packages of a scan share one series; two scans of a place, half a step apart, may do so too."""
    for number in range(6):
        where = [-5.0, 7.0, 10.0 + 3 * number]
        write_slice(tmp_path / "odd", number, where, AcquisitionNumber=1 + number % 2)
        write_slice(tmp_path / "next", number, where, AcquisitionNumber=1 + number // 3)
        write_slice(tmp_path / "each", number, where, AcquisitionNumber=number)
    text = "slices of 2 acquisitions alternate; they were read as one volume"
    assert ("acquisitions", text) in read_case_of(tmp_path / "odd")
    assert not {"acquisitions"} & {
        check for name in ("next", "each") for check, _ in read_case_of(tmp_path / name)
    }


def test_what_the_files_say_of_the_patient_is_flagged_and_what_was_cleaned_is_not(
    tmp_path: Path,
) -> None:
    write_series(tmp_path / "raw", BurnedInAnnotation="YES")
    write_series(tmp_path / "clean", PatientIdentityRemoved="YES", BurnedInAnnotation="NO")
    raw, clean = (series_in(tmp_path / name) for name in ("raw", "clean"))
    assert suspicious(raw.words) and raw.shows_text
    assert not suspicious(clean.words) and not clean.shows_text


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
        (lambda f: write_series(f, skip=(2,)), "a slice is missing: a gap of 6 mm among slices 3 mm"),
        (lambda f: (write_series(f), write_slice(f, 2, [-5, 7, 13])), "several images are at the same"),
        (lambda f: (write_series(f), write_series(f, series="1.5")), "several series"),
        (lambda f: write_slices(f, [0, 3, 6, 9.5, 12]), "unevenly spaced: 2.5 to 3.5 mm apart"),
        (lambda f: (write_series(f), write_slice(f, 6, [-5, 7, 28], FrameOfReferenceUID="8")), "frames"),
        (lambda f: write_slices(f, [0, 3, 6, 9], sheared=0.06), "sheared by 3.4 degrees"),
        (lambda f: (write_series(f), cut_off(f)), "a file is cut off"),
        (lambda f: write_series(f, SOPClassUID=RTDoseStorage), "6 x RT Dose Storage"),
        (lambda f: write_series(f, SamplesPerPixel=3, PixelData=bytes(720)), "in colour"),
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
    path.write_bytes(path.read_bytes()[132:])  # without the preamble
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


def voxels(folder: Path, name: str = "") -> np.ndarray:
    return nib.as_closest_canonical(series_in(folder, name).volume).get_fdata()


@pytest.mark.parametrize(
    ("photometric", "modality", "is_inverted"),
    [
        ("MONOCHROME1", "CT", False), ("MONOCHROME1", "PT", False), ("MONOCHROME1", "MR", False),
        ("MONOCHROME1", "DX", True), ("MONOCHROME1", "MG", True), ("MONOCHROME2", "DX", False),
    ],
)  # fmt: skip
def test_display_is_not_measurement_but_of_radiographs(
    photometric: str, modality: str, is_inverted: bool, tmp_path: Path
) -> None:
    """Against pydicom's arrays, with a slope for each slice, as PET has; windows change nothing."""
    slopes = [0.5 + 0.25 * n for n in range(6)]
    for number, slope in enumerate(slopes):
        write_slice(
            tmp_path, number, [-5.0, 7.0, 3.0 * number], Modality=modality, RescaleSlope=slope,
            RescaleIntercept=-7, PhotometricInterpretation=photometric, WindowCenter=40, WindowWidth=80,
            PresentationLUTShape="INVERSE",
        )  # fmt: skip
    files = sorted(
        (pydicom.dcmread(path) for path in tmp_path.iterdir()), key=lambda d: d.InstanceNumber
    )
    expected = np.stack([apply_rescale(each.pixel_array, each).T for each in files], axis=-1)
    found = series_in(tmp_path).volume.get_fdata()
    if is_inverted:
        expected = expected.max() + expected.min() - expected  # the same for all slices
    assert np.allclose(found, expected, rtol=1e-6)


def test_directions_that_differ_in_the_sixth_decimal_are_one_series(tmp_path: Path) -> None:
    for n in range(6):
        y = 0.004999 if n < 3 else 0.005001
        turn = [0.9999875, y, 0, -y, 0.9999875, 0]
        write_slice(tmp_path / "a", n, [-5, 7, 3 * n], orientation=turn)
        turn = [0.998212, -0.059771 if n % 2 else -0.0597709, 0, 0.0597709, 0.998212, 0]
        write_slice(tmp_path / "b", n, [-5, 7, 3 * n], orientation=turn)
    for name in "ab":
        assert voxels(tmp_path / name).shape == (10, 12, 6)


def test_positions_that_are_rounded_to_a_tenth_of_a_millimetre_make_the_volume_of_their_line(
    tmp_path: Path,
) -> None:
    depths = [round(0.625 * n, 1) for n in range(40)]
    write_slices(tmp_path / "all", depths)
    volume = series_in(tmp_path / "all").volume
    assert np.linalg.norm(volume.affine[:3, 2]) == pytest.approx(0.625, abs=2e-3)
    write_slices(tmp_path / "less", [depth for n, depth in enumerate(depths) if n != 20])
    with pytest.raises(UnfitSeries, match="a slice is missing"):
        series_in(tmp_path / "less")


@pytest.mark.parametrize("kind", ["RT dose", "without a position", "capture", "copy", "copy elsewhere"])
def test_what_is_not_used_is_said_and_the_scan_is_read(kind: str, tmp_path: Path) -> None:
    write_series(tmp_path)
    whole = voxels(tmp_path)
    if kind == "RT dose":
        write_enhanced(tmp_path / "dose")
        (path,) = (tmp_path / "dose").iterdir()
        dose = pydicom.dcmread(path)
        dose.SOPClassUID = RTDoseStorage
        dose.save_as(path)
    if kind == "without a position":
        write_slice(tmp_path, 1, None)
    if kind == "capture":
        write_slice(tmp_path, 1, [0, 0, 50], SOPClassUID=CAPTURE)
    if kind.startswith("copy"):
        folder = tmp_path / ("more" if "elsewhere" in kind else "")
        folder.mkdir(exist_ok=True)
        (folder / "copy.dcm").write_bytes(min(tmp_path.glob("*.dcm")).read_bytes())
    assert np.array_equal(voxels(tmp_path), whole)
    (note,) = series_in(tmp_path).notes
    said = {"RT dose": "1 x RT Dose Storage", "capture": "1 x Secondary Capture Image Storage"}
    assert note.startswith(
        said.get(kind, "1 copies" if "copy" in kind else "1 x image without a position")
    )
    finding = read_case_of(tmp_path)
    assert ("unused_files", note) in finding


def read_case_of(folder: Path) -> list[tuple[str, str]]:
    task = ClassificationConfig(kind="classification", dims=3, labels={0: "well", 1: "ill"})
    _, found = read_case(folder.parent, CaseFiles("c", "p", folder.name, "0"), task)
    return [(each.check, each.text) for each in found]


@pytest.mark.parametrize(
    "changes",
    [
        {"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED"]}, {"FrameOfReferenceUID": ""},
        {"SOPClassUID": OphthalmicTomographyImageStorage, "Modality": "OPT"},
    ],
)  # fmt: skip
def test_what_is_a_scan_is_read(changes: dict[str, object], tmp_path: Path) -> None:
    write_series(tmp_path, **changes)
    assert voxels(tmp_path).shape == (10, 12, 6)


def test_of_several_series_the_list_names_one_and_nothing_is_chosen_by_length(tmp_path: Path) -> None:
    write_slices(tmp_path / "d", [3 * n for n in range(6)], series="1.1", SeriesDescription="T1 axial")
    write_slices(tmp_path / "d", [3 * n for n in range(5)], series="1.2", SeriesDescription="FLAIR")
    with pytest.raises(UnfitSeries, match=r"'FLAIR' \(5 images\), 'T1 axial' \(6 images\); name one"):
        series_in(tmp_path / "d")
    assert read_image(tmp_path, "d#t1 AXIAL").voxels.shape == (10, 12, 6)
    assert read_image(tmp_path, "d#FLAIR").voxels.shape == (10, 12, 5)
    (note,) = read_image(tmp_path, "d#FLAIR").notes
    assert note == "6 images of other series or directions are not used"
    with pytest.raises(Unreadable, match="no series with the description 'T2'"):
        read_image(tmp_path, "d#T2")


def test_a_tilted_gantrys_shear_stays_in_the_affine(tmp_path: Path) -> None:
    """Each slice's first voxel is where its file says: 100 slices at 1 degree end 5 mm off."""
    shear = np.tan(np.radians(1))
    write_slices(tmp_path, [3.0 * n for n in range(100)], sheared=shear)
    affine = np.diag([-1, -1, 1, 1]) @ series_in(tmp_path).volume.affine
    for number in (0, 50, 99):
        place = affine @ [0, 0, number, 1]
        assert np.allclose(place[:3], [-5, 7 + shear * 3 * number, 3 * number], atol=1e-3)


@pytest.mark.parametrize("is_signed", [True, False])
def test_unused_bits_of_frames_are_no_intensities(is_signed: bool, tmp_path: Path) -> None:
    """12 of 16 bits are stored; an overlay or nothing is in the others, and a sign is at bit 11."""
    write_enhanced(tmp_path / "frames")
    (path,) = (tmp_path / "frames").iterdir()
    dataset = pydicom.dcmread(path)
    values = VOLUME[[3, 0, 5, 1, 4, 2]] - (500 if is_signed else 0)
    stored = (values.astype(np.int16).view(np.uint16) & 0x0FFF) | (0 if is_signed else 0x8000)
    dataset.PixelData, dataset.BitsStored, dataset.HighBit = stored.tobytes(), 12, 11
    dataset.PixelRepresentation = int(is_signed)
    dataset.save_as(path)
    truth = (VOLUME.transpose(2, 1, 0) - (500 if is_signed else 0)) * 2 + 10
    reference = nib.Nifti1Image(truth.astype(np.float32), series_in(tmp_path / "frames").volume.affine)
    assert np.array_equal(voxels(tmp_path / "frames"), nib.as_closest_canonical(reference).get_fdata())


@pytest.mark.parametrize("content", [b"", bytes(2000), b"DICM"])
def test_a_damaged_file_among_images_is_no_file_of_another_kind(content: bytes, tmp_path: Path) -> None:
    write_series(tmp_path)
    max(tmp_path.iterdir()).write_bytes(content)
    with pytest.raises(UnfitSeries, match="a file is cut off or damaged"):
        series_in(tmp_path)


def test_a_file_that_ends_before_its_pixels_is_cut_off(tmp_path: Path) -> None:
    write_series(tmp_path)
    path = max(tmp_path.iterdir())
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.save_as(path)
    with pytest.raises(UnfitSeries, match="cut off before its pixels"):
        series_in(tmp_path)


def test_slices_beside_their_line_or_of_other_pixels_make_no_volume(tmp_path: Path) -> None:
    for number in range(12):
        write_slice(tmp_path / "a", number, [-5.0 + 25 * (number == 7), 7.0, 3.0 * number])
    with pytest.raises(UnfitSeries, match="displaced in their plane"):
        series_in(tmp_path / "a")
    write_series(tmp_path / "b", RescaleSlope="")
    with pytest.raises(UnfitSeries, match="rescale slope or intercept is no number"):
        series_in(tmp_path / "b")
    write_series(tmp_path / "c", NumberOfFrames=2, PixelData=bytes(480))
    with pytest.raises(UnfitSeries, match="several frames does not state the place of each"):
        series_in(tmp_path / "c")


def test_stations_of_one_depth_and_directions_that_are_none_have_their_own_words(tmp_path: Path) -> None:
    for number in range(6):
        write_slice(tmp_path / "spine", number, [0.0, 300.0 * (number % 2), 10.0 + 3 * (number // 2)])
    with pytest.raises(
        UnfitSeries, match="images of one depth lie 300 mm apart, as of several stations"
    ):
        series_in(tmp_path / "spine")
    write_slices(tmp_path / "zero", [0, 3, 6, 9], orientation=[0] * 6)
    with pytest.raises(UnfitSeries, match="an image's direction cosines are none"):
        series_in(tmp_path / "zero")


def test_a_spectrum_beside_a_scan_is_not_used_and_no_damage(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    write_slice(tmp_path / "a", 0, [0, 0, 0], series="1.5", SOPClassUID=MRSpectroscopyStorage)
    (path,) = (p for p in (tmp_path / "a").iterdir() if p.name.startswith("1.5"))
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.save_as(path)
    assert series_in(tmp_path / "a").notes == ("1 x MR Spectroscopy Storage is not used",)


def test_a_nuclear_medicine_reconstruction_has_its_slices_along_the_normal_of_the_first(
    tmp_path: Path,
) -> None:
    write_series(tmp_path / "slices")
    first = Dataset()
    first.ImagePositionPatient, first.ImageOrientationPatient = [-5.0, 7.0, 10.0], [1, 0, 0, 0, 1, 0]
    write_slice(
        tmp_path / "nm", 0, [0, 0, 0], SOPClassUID=NuclearMedicineImageStorage, Modality="NM",
        ImageType=["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"], NumberOfFrames=6,
        SpacingBetweenSlices=3, DetectorInformationSequence=[first], PixelData=VOLUME.tobytes(),
    )  # fmt: skip
    (path,) = (tmp_path / "nm").iterdir()
    dataset = pydicom.dcmread(path)
    del dataset.ImagePositionPatient, dataset.ImageOrientationPatient
    dataset.save_as(path)
    one, other = (series_in(tmp_path / name).volume for name in ("nm", "slices"))
    assert np.array_equal(one.get_fdata(), other.get_fdata())
    assert np.allclose(one.affine, other.affine)


def test_a_map_of_floats_is_read_as_it_is(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    images = [pydicom.dcmread(path) for path in (tmp_path / "a").iterdir()]
    for each in images:
        for name in EMPTY:
            setattr(each, name, "")
    images.sort(key=lambda each: float(each.ImagePositionPatient[2]))
    mapping = hd.pm.RealWorldValueMapping("1", "adc", codes.UCUM.NoUnits, (0.0, 1e5), 0, 1)
    made = hd.pm.ParametricMap(
        images, VOLUME.astype(np.float32) / 8, generate_uid(), 1, generate_uid(), 1, "m", "x", "1", "1",
        contains_recognizable_visual_features=False, real_world_value_mappings=[mapping],
        window_center=100, window_width=10,
    )  # fmt: skip
    made.save_as(tmp_path / "adc.dcm")
    found, plain = read_image(tmp_path, "adc.dcm"), read_image(tmp_path, "a")
    assert np.allclose(found.voxels, plain.voxels / 8) and np.allclose(found.affine, plain.affine)
