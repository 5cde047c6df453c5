"""What an archive exports, planted with names, and what of it reaches a hospital's data."""

import csv
import io
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from nibabel.nifti1 import Nifti1Extension
from PIL import Image, PngImagePlugin
from pydicom.dataset import Dataset
from scanner import CAPTURE, VOLUME, write_series, write_slice

from sites import archive
from sites.archive import Imported, take_in
from sites.dicom import series_in
from sites.documents import ConfigError
from sites.hospital import Hospital
from sites.listing import read_listing

SECRETS = re.compile(rb"MUELLER|ANNA|4711|19560403|KLINIKUM|DR\^WEISS", re.IGNORECASE)


@pytest.fixture
def hospital(tmp_path: Path, small_wards) -> Hospital:
    ward = small_wards(tmp_path / "wards") / "north"
    for name in ("dataset.json", "subjects.csv"):
        (ward / name).unlink()
    (ward / "labels.csv").write_text("value,name\n0,background\n1,head\n2,tail\n")
    return Hospital.open(ward)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """Two patients of an archive, one with two series, among what else an archive has."""
    folder = tmp_path / "export"
    request = Dataset()
    request.RequestedProcedureDescription = "Klinikum, for Anna Mueller"
    named = {"InstitutionName": "Klinikum", "ReferringPhysicianName": "DR^WEISS",
             "AccessionNumber": "4711-77", "RequestAttributesSequence": [request]}  # fmt: skip
    write_series(folder / "MUELLER_ANNA" / "t1", series="1.2.4", **named)
    write_series(folder / "MUELLER_ANNA" / "t2", series="1.2.5", StudyInstanceUID="1.9", **named)
    write_series(folder / "b", series="1.2.6", PatientID="0815", PatientName="ANNA^OTHER")
    write_slice(folder / "b", 0, [0, 0, 0], series="1.9", SOPClassUID=CAPTURE)
    write_slice(folder / "b", 0, [0, 0, 0], series="1.10", PatientID="")
    (folder / "readme.txt").write_text("ANNA")
    return folder


def everything(folder: Path) -> bytes:
    """All that a reader of the data could see: names, bytes, and DICOM's values as text."""
    found = []
    for path in sorted(folder.rglob("*")):
        found.append(str(path.relative_to(folder)).encode())
        if path.is_file():
            data = path.read_bytes()
            found.append(data if not path.name.endswith(".gz") else nib.load(path).header.binaryblock)
    return b"\n".join(found)


def test_no_name_number_or_date_of_an_export_reaches_the_data(hospital, export) -> None:
    assert SECRETS.search(everything(export))
    done = take_in(hospital, export)
    assert (done.cases, done.patients) == (3, 2)
    assert done.left_out == {
        "a file is no DICOM file, or damaged": 1,
        "a file names no patient (PatientID)": 1,
        "a localiser, capture, report or picture without a place": 1,
    }
    told = everything(hospital.data / "images") + (hospital.data / "cases.csv").read_bytes()
    assert not SECRETS.search(told)


def test_the_voxels_and_their_places_stay_and_the_profile_is_stated(hospital, export) -> None:
    take_in(hospital, export)
    before = series_in(export / "b").volume
    cases = read_listing(hospital.data).cases
    volumes = [series_in(hospital.data / case.image).volume for case in cases]
    assert any(
        np.array_equal(v.get_fdata(), before.get_fdata()) and np.allclose(v.affine, before.affine)
        for v in volumes
    )
    for case in cases:
        dataset = pydicom.dcmread(min((hospital.data / case.image).iterdir()))
        assert dataset.PatientIdentityRemoved == "YES"
        assert dataset.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
        assert dataset.PatientID == case.patient
        assert not [e for e in dataset.iterall() if e.tag.is_private]
        assert dataset.file_meta.get("SourceApplicationEntityTitle") is None


def test_two_series_of_a_patient_stay_his_and_uids_stay_linked(hospital, export) -> None:
    take_in(hospital, export)
    cases = read_listing(hospital.data).cases
    by_patient = {p: [c for c in cases if c.patient == p] for p in {c.patient for c in cases}}
    assert sorted(map(len, by_patient.values())) == [1, 2]
    (two,) = [cases for cases in by_patient.values() if len(cases) == 2]
    assert two[0].session != two[1].session
    uids = {
        str(pydicom.dcmread(path).SeriesInstanceUID) for path in (hospital.data / two[0].image).iterdir()
    }
    assert len(uids) == 1
    assert uids.pop().startswith("2.25.")


def test_importing_again_changes_nothing_and_keeps_what_was_written_into_the_list(
    hospital, export
) -> None:
    take_in(hospital, export)
    path = hospital.data / "cases.csv"
    path.write_text(path.read_text().replace("labels/", "drawn/"))
    before = everything(hospital.data)
    assert take_in(hospital, export) == Imported(0, 0, take_in(hospital, export).left_out)
    assert everything(hospital.data) == before


def test_an_interrupted_import_is_finished_by_asking_again(hospital, export, monkeypatch) -> None:
    calls = []

    def fails_late(dataset: Dataset) -> bytes:
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return whole(dataset)

    whole = archive.dicom_bytes
    monkeypatch.setattr(archive, "dicom_bytes", fails_late)
    with pytest.raises(KeyboardInterrupt):
        take_in(hospital, export)
    assert not (hospital.data / "cases.csv").exists()
    monkeypatch.undo()
    assert take_in(hospital, export).cases == 3
    folders = list((hospital.data / "images").iterdir())
    assert [len(list(folder.iterdir())) for folder in folders] == [len(VOLUME)] * 3


def test_text_burned_into_the_pixels_and_names_where_no_profile_looks_are_left_out(
    hospital, tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    write_series(folder / "a", series="1.2.7", BurnedInAnnotation="YES")
    write_series(folder / "b", series="1.2.8", ManufacturerModelName="Scanner of Anna Mueller")
    done = take_in(hospital, folder)
    assert done.cases == 0
    assert sorted(done.left_out) == [
        "text is burned into its pixels", "the attribute ManufacturerModelName still names the patient",
    ]  # fmt: skip
    assert not list((hospital.data / "images").glob("[!.]*"))


def test_a_listed_export_is_copied_without_text_and_its_voxels_are_the_same(
    hospital, tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    rng = np.random.default_rng(0)
    values, label = rng.integers(0, 500, (9, 8, 7)).astype(np.int16), np.ones((9, 8, 7), np.uint8)
    for name, array in (("MUELLER_ANNA.nii", values), ("label.nii.gz", label)):
        image = nib.Nifti1Image(array, np.diag([1, 2, 3, 1]))
        image.header["descrip"], image.header["aux_file"] = b"MUELLER^ANNA", b"4711"
        image.header.extensions.append(Nifti1Extension("comment", b"born 19560403"))
        image.header.set_slope_inter(2.0, 5.0)
        nib.save(image, folder / name)
    (folder / "labels.csv").write_text("value,name\n1,head\n")
    lines = ["patient,image,label,session", "4711,MUELLER_ANNA.nii,label.nii.gz,19560403"]
    (folder / "cases.csv").write_text("\n".join([*lines, "4711,gone.nii,label.nii.gz,2"]))
    done = take_in(hospital, folder)
    assert (done.cases, done.left_out) == (1, {"a file is missing": 1})
    (case,) = read_listing(hospital.data).cases
    copy, original = nib.load(hospital.data / case.image), nib.load(folder / "MUELLER_ANNA.nii")
    assert np.array_equal(copy.get_fdata(), original.get_fdata())
    assert np.array_equal(copy.affine, original.affine)
    assert not copy.header.extensions
    assert not SECRETS.search(everything(hospital.data / "images"))
    assert not SECRETS.search((hospital.data / "cases.csv").read_bytes())


def test_pictures_lose_their_text_and_classes_stay(hospital, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    about = PngImagePlugin.PngInfo()
    about.add_text("Comment", "MUELLER^ANNA")
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png", pnginfo=about)
    (folder / "labels.csv").write_text("value,name\n0,well\n1,ill\n")
    (folder / "cases.csv").write_text("patient,image,label\n4711,a.png,1\n")
    take_in(hospital, folder)
    (case,) = read_listing(hospital.data).cases
    assert case.label == "1"
    assert np.array_equal(np.asarray(Image.open(hospital.data / case.image)), pixels)
    assert not SECRETS.search(everything(hospital.data / "images"))


def test_a_patient_who_withdraws_is_excluded_by_his_own_name_or_his_keyed_hash(hospital, export) -> None:
    take_in(hospital, export)
    everybody = {case.patient for case in hospital.cases}
    for name in ("4711", next(p for p in everybody if sum(c.patient == p for c in hospital.cases) == 2)):
        (hospital.folder / "excluded.csv").write_text(f"subject\n{name}\n")
        assert len(hospital.cases) == 1


@pytest.mark.parametrize(
    ("place", "reason"),
    [("nothing", "found none"), ("wards/north/imagesTr", "outside the hospital's own data")],
)
def test_an_export_that_can_not_be_one_is_refused_and_nothing_is_written(
    place: str, reason: str, hospital, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=reason):
        take_in(hospital, tmp_path / place)
    assert not (hospital.data / "cases.csv").exists()


def test_data_that_are_listed_otherwise_are_left_alone(tmp_path: Path, small_wards, export) -> None:
    hospital = Hospital.open(small_wards(tmp_path / "others") / "north")
    with pytest.raises(ConfigError, match=r"listed in cases.csv, or none yet; found dataset.json"):
        take_in(hospital, export)


def test_the_patient_of_a_dicom_case_may_come_from_its_files(tmp_path: Path) -> None:
    write_series(tmp_path / "scan")
    (tmp_path / "labels.csv").write_text("value,name\n1,head\n")
    rows = csv.writer(text := io.StringIO())
    rows.writerows([("image", "label"), ("scan", "scan-label.nii.gz")])
    (tmp_path / "cases.csv").write_text(text.getvalue())
    assert [case.patient for case in read_listing(tmp_path).cases] == ["4711"]
    (tmp_path / "cases.csv").write_text("image,label\nother.nii.gz,l.nii.gz\n")
    with pytest.raises(ConfigError, match="a row has neither"):
        read_listing(tmp_path)
