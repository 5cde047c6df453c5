"""Import of exports that contain many names: none of them reaches the hospital's data."""

import csv
import gzip
import io
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from contrasts import make_ward
from dicomanonymizer.simpledicomanonymizer import initialize_actions_2024b
from drawings import box, series, write_seg, write_structures
from nibabel.nifti1 import Nifti1Extension
from PIL import Image, PngImagePlugin
from pydicom._dicom_dict import DicomDictionary
from pydicom.dataset import Dataset
from scanner import (
    CAPTURE,
    COLOURS,
    PHOTO,
    PIXELS,
    VOLUME,
    XRAY,
    write_flat,
    write_series,
    write_slice,
)

from models.settings.tasks import SegmentationConfig
from sites.deidentification import copies
from sites.deidentification.archive_import import Imported, import_export
from sites.deidentification.deidentify import deidentified
from sites.hospital import Hospital
from sites.imaging.dicom.series import series_in
from sites.imaging.images import read_image
from sites.imaging.intake import read_case
from sites.listing.listing import read_listing
from sites.listing.pseudonyms import imported, pseudonym
from sites.yaml_files import ConfigError

SECRETS = re.compile(rb"MUELLER|ANNA|MRN-4711|19560403|KLINIKUM|DR\^WEISS", re.IGNORECASE)


@pytest.fixture
def hospital(tmp_path: Path, small_wards) -> Hospital:
    ward = small_wards(tmp_path / "wards") / "north"
    for name in ("dataset.json", "subjects.csv"):
        (ward / name).unlink()
    (ward / "labels.csv").write_text("value,name\n0,background\n1,head\n2,tail\n")
    return Hospital.open(ward)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """Return an export of two patients, one with two series, and the other files of an archive."""
    folder = tmp_path / "export"
    request = Dataset()
    request.RequestedProcedureDescription = "Klinikum, for Anna Mueller"
    named = {"InstitutionName": "Klinikum", "ReferringPhysicianName": "DR^WEISS",
             "AccessionNumber": "MRN-4711-77", "RequestAttributesSequence": [request]}  # fmt: skip
    write_series(folder / "MUELLER_ANNA" / "t1", series="1.2.4", **named)
    write_series(folder / "MUELLER_ANNA" / "t2", series="1.2.5", StudyInstanceUID="1.9", **named)
    write_series(folder / "b", series="1.2.6", PatientID="0815", PatientName="ANNA^OTHER")
    write_slice(folder / "b", 0, [0, 0, 0], series="1.9", SOPClassUID=CAPTURE)
    write_slice(folder / "b", 0, [0, 0, 0], series="1.10", PatientID="")
    (folder / "readme.txt").write_text("ANNA")
    return folder


def everything(folder: Path) -> bytes:
    """Return all that a reader of the data could see: names, bytes, and DICOM's values as text."""
    found = []
    for path in sorted(folder.rglob("*")):
        found.append(str(path.relative_to(folder)).encode())
        if path.is_file():
            data = path.read_bytes()
            found.append(data if not path.name.endswith(".gz") else nib.load(path).header.binaryblock)
    return b"\n".join(found)


def test_no_name_number_or_date_of_an_export_reaches_the_data(hospital, export) -> None:
    assert SECRETS.search(everything(export))
    done = import_export(hospital, export)
    assert (done.cases, done.patients) == (3, 2)
    assert done.left_out == {
        "a file is not a DICOM file": 1,
        "a file has no PatientID or no SeriesInstanceUID": 1,
        "it is no image of a scan: Secondary Capture Image Storage": 1,
    }
    imported = everything(hospital.data / "images") + (hospital.data / "cases.csv").read_bytes()
    assert not SECRETS.search(imported)


def test_the_voxels_and_their_places_stay_and_the_profile_is_stated(hospital, export) -> None:
    import_export(hospital, export)
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
    import_export(hospital, export)
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
    import_export(hospital, export)
    path = hospital.data / "cases.csv"
    path.write_text(path.read_text().replace("labels/", "drawn/"))
    before = everything(hospital.data)
    assert import_export(hospital, export) == Imported(0, 0, import_export(hospital, export).left_out)
    assert everything(hospital.data) == before


def test_an_interrupted_import_is_finished_by_asking_again(hospital, export, monkeypatch) -> None:
    calls = []

    def fails_late(dataset: Dataset) -> bytes:
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return whole(dataset)

    whole = copies.dicom_bytes
    monkeypatch.setattr(copies, "dicom_bytes", fails_late)
    with pytest.raises(KeyboardInterrupt):
        import_export(hospital, export)
    assert not (hospital.data / "cases.csv").exists()
    monkeypatch.undo()
    assert import_export(hospital, export).cases == 3
    folders = list((hospital.data / "images").iterdir())
    assert [len(list(folder.iterdir())) for folder in folders] == [len(VOLUME)] * 3


def test_a_series_with_text_burned_into_its_pixels_is_left_out(hospital, tmp_path: Path) -> None:
    (hospital.data / "labels.csv").unlink()  # the export brings its own
    folder = tmp_path / "export"
    write_series(folder / "a", series="1.2.7", BurnedInAnnotation="YES")
    assert import_export(hospital, folder) == Imported(0, 0, {"text is burned into its pixels": 1})
    assert not list((hospital.data / "images").glob("*"))
    listed(folder, "MRN-4711,a,1")
    assert import_export(hospital, folder) == Imported(0, 0, {"text is burned into its pixels": 1})


def test_no_value_planted_in_any_attribute_of_the_dictionary_is_left(hospital, tmp_path: Path) -> None:
    folder, secret = tmp_path / "export" / "scan", "MUELLER"
    write_series(folder, PatientID="MRN-4711")
    texts = {"PN", "LO", "SH", "ST", "LT", "UT", "UC", "UR", "CS", "AE", "UN", "OB", "OW"}
    nested = Dataset()
    for place in (nested, *(pydicom.dcmread(path) for path in sorted(folder.iterdir()))):
        for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
            if vr not in texts or tag in place or not keyword or tag >> 16 in (0x0000, 0x0002):
                continue
            value = secret.encode() if vr in {"OB", "OW", "UN"} else secret
            place.add_new(tag, vr, value + b" " if vr in {"OB", "OW"} else value)
        block = place.private_block(0x4321, "KLINIKUM", create=True)
        block.add_new(1, "LO", secret)
        if place is not nested:
            for keyword in ("RequestAttributesSequence", "ReferencedImageSequence"):
                setattr(place, keyword, [nested])
            place.ImageType = ["ORIGINAL", "PRIMARY", secret]
            place.PixelData = place.PixelData + b"MUELLER "
            place.preamble = b"MUELLER".ljust(128, b" ")
            place.save_as(folder / f"{place.SOPInstanceUID}.dcm", enforce_file_format=True)
    for path in folder.glob("1.2.3-*"):
        path.unlink()
    assert SECRETS.search(everything(tmp_path / "export"))
    done = import_export(hospital, tmp_path / "export")
    assert done.cases == 1, done
    assert not SECRETS.search(everything(hospital.data / "images"))
    (case,) = read_listing(hospital.data).cases
    kept = series_in(hospital.data / case.image).volume
    assert np.array_equal(np.sort(kept.get_fdata(), axis=None), np.sort(VOLUME, axis=None))
    assert_the_profile_is_kept(hospital.data / case.image, folder)


def assert_the_profile_is_kept(folder: Path, original: Path) -> None:
    """Check a file against dicom-anonymizer's table of the basic profile (edition 2024b)."""
    kept, before = (pydicom.dcmread(min(path.iterdir())) for path in (folder, original))
    for tag, action in initialize_actions_2024b().items():
        if len(tag) > 2 or tag[0] == 0x0002 or tag not in kept:
            continue
        if action.__name__.endswith("UID"):
            assert kept[tag].value != before[tag].value
        else:
            assert kept[tag].value in ("", None, kept.PatientID), kept[tag].keyword


def test_bits_above_those_that_are_stored_are_cleared_and_signs_stay(tmp_path: Path) -> None:
    folder = tmp_path / "scan"
    for number in range(6):
        values = VOLUME[number] - 500
        hidden = (values & 0x0FFF) | (0x5000 if number % 2 else 0)
        write_slice(
            folder, number, [0, 0, 3.0 * number], values=hidden, BitsStored=12, HighBit=11,
        )  # fmt: skip
    for number, path in enumerate(sorted(folder.iterdir())):
        clean = deidentified(pydicom.dcmread(path), "x", lambda text: "ab" * 16)
        assert np.array_equal(clean.pixel_array, VOLUME[number] - 500)


def test_two_patients_whose_series_have_one_number_stay_two(hospital, tmp_path: Path) -> None:
    for name, number in (("a", "1"), ("b", "2")):
        write_series(tmp_path / "export" / name, series="1.2.7", PatientID=number)
    assert import_export(hospital, tmp_path / "export").cases == 2
    cases = read_listing(hospital.data).cases
    assert len({case.image for case in cases}) == len({case.patient for case in cases}) == 2


def test_one_odd_file_stops_no_other(hospital, export) -> None:
    good = import_export(hospital, export).cases
    write_series(export / "odd", series="1.2.99", PatientID="1")
    for number, path in enumerate(sorted((export / "odd").iterdir())):
        dataset = pydicom.dcmread(path)
        if number == 0:
            del dataset.SOPClassUID
        elif number == 1:
            del dataset.BitsStored
        dataset.save_as(path)
    (export / "odd" / "half.dcm").write_bytes((export / "odd" / path.name).read_bytes()[:400])
    for name in ("cases.csv",):
        (hospital.data / name).unlink()
    assert import_export(hospital, export).cases == good


def test_a_series_that_has_grown_since_is_replaced(hospital, tmp_path: Path) -> None:
    write_series(tmp_path / "export", skip=(4, 5))
    import_export(hospital, tmp_path / "export")
    for number in (4, 5):
        write_slice(tmp_path / "export", number, [-5.0, 7.0, 10.0 + 3 * number])
    assert import_export(hospital, tmp_path / "export").cases == 0
    (case,) = read_listing(hospital.data).cases
    assert series_in(hospital.data / case.image).volume.shape[0] in (6, 10, 12)
    assert len(list((hospital.data / case.image).iterdir())) == 6


def listed(folder: Path, *rows: str, labels: str = "0,well\n1,ill\n") -> None:
    (folder / "labels.csv").write_text(f"value,name\n{labels}")
    (folder / "cases.csv").write_text("\n".join(["patient,image,label", *rows]))


def test_a_label_file_that_is_missing_is_no_class_and_its_name_stays_outside(
    hospital, tmp_path: Path
) -> None:
    (hospital.data / "labels.csv").unlink()  # the export brings its own
    folder = tmp_path / "export"
    folder.mkdir()
    nib.save(nib.Nifti1Image(np.ones((5, 5, 5), np.uint8), np.eye(4)), folder / "a.nii")
    listed(folder, "MRN-4711,a.nii,MUELLER_ANNA_seg.nii.gz")
    assert import_export(hospital, folder) == Imported(0, 0, {"a file is missing": 1})
    assert not (hospital.data / "cases.csv").exists()


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nothing_hides_in_a_nifti_file_behind_its_voxels_or_in_an_old_field(
    kind: type, suffix: str, hospital, tmp_path: Path
) -> None:
    (hospital.data / "labels.csv").unlink()  # the export brings its own
    folder = tmp_path / "export"
    folder.mkdir()
    image = kind(VOLUME, np.diag([1, 2, 3, 1]))
    image.header["descrip"] = b"MUELLER^ANNA"
    image.set_sform(None, 0)
    for field in ("srow_x", "srow_y", "srow_z"):  # without a code they state nothing
        image.header[field] = np.frombuffer(b"MUELLER^ANNA-MRN", np.float32)
    for field in ("intent_p1", "cal_max", "toffset", "slice_duration"):
        image.header[field] = np.frombuffer(
            b"ANNA-MRN"[: image.header[field].nbytes], image.header[field].dtype
        )[0]
    image.header["pixdim"][5:7] = np.frombuffer(b"ANNA" * 4, image.header["pixdim"].dtype)[:2]
    if kind is nib.Nifti1Image:
        image.header["data_type"], image.header["db_name"] = b"ANNA", b"MRN-4711"
    image.header.extensions.append(Nifti1Extension(2, pydicom_bytes()))
    nib.save(image, folder / f"a{suffix}")
    raw = (folder / f"a{suffix}").read_bytes()
    raw = gzip.compress(gzip.decompress(raw) + b"MUELLER") if suffix == ".nii.gz" else raw + b"MUELLER"
    (folder / f"a{suffix}").write_bytes(raw)
    listed(folder, f"MRN-4711,a{suffix},1")
    assert import_export(hospital, folder).cases == 1
    (case,) = read_listing(hospital.data).cases
    content = gzip.decompress((hospital.data / case.image).read_bytes())
    assert not SECRETS.search(content)
    assert np.array_equal(nib.load(hospital.data / case.image).get_fdata(), VOLUME)


def pydicom_bytes() -> bytes:
    dataset = Dataset()
    dataset.PatientName = "MUELLER^ANNA"
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, implicit_vr=False, little_endian=True)
    return file.getvalue()


def test_names_of_labels_may_hold_commas(hospital, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    (hospital.data / "labels.csv").unlink()
    nib.save(nib.Nifti1Image(VOLUME, np.eye(4)), folder / "a.nii")
    listed(folder, "MRN-4711,a.nii,0", labels='0,"ventricle, left"\n')
    import_export(hospital, folder)
    assert read_listing(hospital.data).labels == {0: "ventricle, left"}


def test_a_patient_listed_by_name_and_imported_is_one_patient(hospital, export) -> None:
    nib.save(nib.Nifti1Image(VOLUME, np.eye(4)), hospital.data / "old.nii.gz")
    listed(hospital.data, "MRN-4711,old.nii.gz,1")
    import_export(hospital, export)
    cases = hospital.cases
    assert len(cases) == 4
    assert len({case.patient for case in cases}) == 2
    assert len(hospital.eligible.training | hospital.eligible.evaluation) == 2
    (hospital.folder / "excluded.csv").write_text("subject\nMRN-4711\n")
    assert len(hospital.cases) == 1


def test_a_listed_export_is_copied_without_text_and_its_voxels_are_the_same(
    hospital, tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    rng = np.random.default_rng(0)
    values, label = rng.integers(0, 500, (9, 8, 7)).astype(np.int16), np.ones((9, 8, 7), np.uint8)
    for name, array in (("MUELLER_ANNA.nii", values), ("label.nii.gz", label)):
        image = nib.Nifti1Image(array, np.diag([1, 2, 3, 1]))
        image.header["descrip"], image.header["aux_file"] = b"MUELLER^ANNA", b"MRN-4711"
        image.header.extensions.append(Nifti1Extension("comment", b"born 19560403"))
        image.header.set_slope_inter(2.0, 5.0)
        nib.save(image, folder / name)
    (folder / "labels.csv").write_text("value,name\n1,head\n")
    lines = ["patient,image,label,session", "MRN-4711,MUELLER_ANNA.nii,label.nii.gz,19560403"]
    (folder / "cases.csv").write_text("\n".join([*lines, "MRN-4711,gone.nii,label.nii.gz,2"]))
    done = import_export(hospital, folder)
    assert (done.cases, done.left_out) == (1, {"a file is missing": 1})
    (case,) = read_listing(hospital.data).cases
    copy, original = nib.load(hospital.data / case.image), nib.load(folder / "MUELLER_ANNA.nii")
    assert np.array_equal(copy.get_fdata(), original.get_fdata())
    assert np.array_equal(copy.affine, original.affine)
    assert not copy.header.extensions
    assert not SECRETS.search(everything(hospital.data / "images"))
    assert not SECRETS.search((hospital.data / "cases.csv").read_bytes())


def test_pictures_lose_their_text_and_classes_stay(hospital, tmp_path: Path) -> None:
    (hospital.data / "labels.csv").unlink()  # the export brings its own
    folder = tmp_path / "export"
    folder.mkdir()
    about = PngImagePlugin.PngInfo()
    about.add_text("Comment", "MUELLER^ANNA")
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png", pnginfo=about)
    (folder / "labels.csv").write_text("value,name\n0,well\n1,ill\n")
    (folder / "cases.csv").write_text("patient,image,label\nMRN-4711,a.png,1\n")
    import_export(hospital, folder)
    (case,) = read_listing(hospital.data).cases
    assert case.label == "1"
    assert np.array_equal(np.asarray(Image.open(hospital.data / case.image)), pixels)
    assert not SECRETS.search(everything(hospital.data / "images"))


def test_a_patient_who_withdraws_is_excluded_by_his_own_name_or_his_keyed_hash(hospital, export) -> None:
    import_export(hospital, export)
    everybody = {case.patient for case in hospital.cases}
    twice = next(p for p in everybody if sum(c.patient == p for c in hospital.cases) == 2)
    for name in ("MRN-4711", twice):
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
        import_export(hospital, tmp_path / place)
    assert not (hospital.data / "cases.csv").exists()


def test_data_that_are_listed_otherwise_are_left_alone(tmp_path: Path, small_wards, export) -> None:
    hospital = Hospital.open(small_wards(tmp_path / "others") / "north")
    with pytest.raises(ConfigError, match=r"listed in cases.csv, or no data; found dataset.json"):
        import_export(hospital, export)


def test_only_an_import_takes_a_missing_patient_from_dicom_files(hospital, tmp_path: Path) -> None:
    """A hospital's own list names each patient: no order may depend on what a file holds."""
    export = tmp_path / "export"
    write_series(export / "scan")
    (export / "labels.csv").write_text("value,name\n1,head\n")
    (hospital.data / "labels.csv").unlink()
    (export / "cases.csv").write_text("image,label\nscan,1\n")
    with pytest.raises(ConfigError, match="patient is missing"):
        read_listing(export)
    assert import_export(hospital, export).patients == 1
    (case,) = read_listing(hospital.data).cases
    assert case.patient == imported(pseudonym(hospital.pseudonym_key, "MRN-4711"))
    (export / "cases.csv").write_text("image,label\nother.nii.gz,l.nii.gz\n")
    with pytest.raises(ConfigError, match="other.nii.gz has neither"):
        import_export(hospital, export)


def test_a_corrected_export_replaces_what_was_imported_and_says_so(hospital, tmp_path: Path) -> None:
    (hospital.data / "labels.csv").unlink()  # the export brings its own
    folder = tmp_path / "export"
    folder.mkdir()
    for name, values in (("a", VOLUME), ("b", VOLUME)):
        nib.save(nib.Nifti1Image(values, np.eye(4)), folder / f"{name}.nii")
    listed(folder, "MRN-1,a.nii,1", "MRN-2,b.nii,1")
    assert import_export(hospital, folder).replaced == 0
    before = {case.image for case in read_listing(hospital.data).cases}
    nib.save(nib.Nifti1Image(VOLUME + 7, np.eye(4)), folder / "b.nii")
    done = import_export(hospital, folder)
    assert (done.cases, done.replaced) == (0, 1)
    assert {case.image for case in read_listing(hospital.data).cases} == before
    contents = [nib.load(hospital.data / image).get_fdata().max() for image in before]
    assert sorted(contents) == [VOLUME.max(), VOLUME.max() + 7]
    assert import_export(hospital, folder).replaced == 0


def test_a_corrected_series_replaces_the_imported_one_and_a_part_of_it_does_not(
    hospital, tmp_path: Path
) -> None:
    write_series(tmp_path / "first", series="1.2.4")
    import_export(hospital, tmp_path / "first")
    (case,) = read_listing(hospital.data).cases
    for path in sorted((tmp_path / "first").glob("*.dcm"))[3:]:
        path.unlink()
    assert import_export(hospital, tmp_path / "first").replaced == 0
    assert series_in(hospital.data / case.image).volume.shape[2] == 6
    write_series(tmp_path / "second", series="1.2.4", RescaleIntercept=100)
    done = import_export(hospital, tmp_path / "second")
    assert (done.cases, done.replaced) == (0, 1)
    assert series_in(hospital.data / case.image).volume.get_fdata().min() == VOLUME.min() + 100


def test_what_is_left_out_is_named_and_series_are_told_apart_by_numbers(
    hospital, tmp_path: Path
) -> None:
    write_series(tmp_path / "e" / "t1", series="1.2.4", RepetitionTime=500, EchoTime=10)
    write_series(tmp_path / "e" / "flair", series="1.2.5", RepetitionTime=9000, InversionTime=2500)
    write_slice(tmp_path / "e", 0, [0, 0, 0], series="1.9", SOPClassUID=CAPTURE)
    done = import_export(hospital, tmp_path / "e")
    (reason,) = done.left_out
    assert reason == "it is no image of a scan: Secondary Capture Image Storage"
    assert done.named[reason][0].startswith("1.9-000-")
    with (hospital.data / "cases.csv").open() as file:
        assert {row["series"] for row in csv.DictReader(file)} == {
            "MR TR=500 TE=10",
            "MR TR=9000 TI=2500",
        }


def test_one_channel_of_several_is_imported_with_its_file(hospital, tmp_path: Path) -> None:
    (hospital.data / "labels.csv").unlink()  # the export brings its own
    folder = tmp_path / "export"
    folder.mkdir()
    nib.save(nib.Nifti1Image(np.stack([VOLUME, VOLUME * 2], -1), np.eye(4)), folder / "a.nii.gz")
    listed(folder, "MRN-1,a.nii.gz#1,1")
    assert import_export(hospital, folder).cases == 1
    (case,) = read_listing(hospital.data).cases
    assert case.image.endswith(".nii.gz#1")
    assert read_image(hospital.data, case.image).voxels.max() == 2 * VOLUME.max()


def test_folders_of_one_series_that_a_list_tells_apart_stay_two(hospital, tmp_path: Path) -> None:
    """Two echoes, which a person has split because a folder of both was refused."""
    for name, time in (("echo1", 10), ("echo2", 80)):
        write_series(tmp_path / "e" / name, series="1.2.4", EchoTime=time, RescaleIntercept=time)
    (hospital.data / "labels.csv").unlink()
    listed(tmp_path / "e", "MRN-1,echo1,1", "MRN-1,echo2,1")
    done = import_export(hospital, tmp_path / "e")
    assert (done.cases, done.replaced) == (2, 0)
    images = [case.image for case in read_listing(hospital.data).cases]
    least = {series_in(hospital.data / image).volume.get_fdata().min() for image in images}
    assert least == {VOLUME.min() + 10, VOLUME.min() + 80}


def test_a_series_with_a_palette_is_left_out_with_its_reason(hospital, tmp_path: Path) -> None:
    write_series(tmp_path / "e", PhotometricInterpretation="PALETTE COLOR")
    assert import_export(hospital, tmp_path / "e").left_out == {
        "it is in colour, or has a palette of colours": 1
    }


def test_a_list_of_several_classes_stays_one_and_loses_no_label(hospital, tmp_path: Path) -> None:
    (hospital.data / "labels.csv").unlink()
    folder = tmp_path / "export"
    folder.mkdir()
    for name in "ab":
        nib.save(nib.Nifti1Image(VOLUME + ord(name), np.eye(4)), folder / f"{name}.nii")
    (folder / "labels.csv").write_text("value,name\n0,mass\n1,nodule\n")
    (folder / "cases.csv").write_text("patient,image,labels\nMRN-1,a.nii,0;1\nMRN-2,b.nii,none\n")
    assert import_export(hospital, folder).cases == 2
    write_series(tmp_path / "later", series="1.2.9")
    assert import_export(hospital, tmp_path / "later").cases == 1
    listing = read_listing(hospital.data)
    assert listing.has_several
    assert [case.label for case in listing.cases][:2] == ["0;1", "none"]
    (folder / "cases.csv").write_text("patient,image,label\nMRN-3,a.nii,1\n")
    before = (hospital.data / "cases.csv").read_bytes()
    with pytest.raises(
        ConfigError, match="expected the column label as in the export, found the column labels"
    ):
        import_export(hospital, folder)
    assert (hospital.data / "cases.csv").read_bytes() == before


def test_scans_without_labels_are_imported_as_such(hospital, tmp_path: Path) -> None:
    export = tmp_path / "export"
    export.mkdir()
    for name in "ab":
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), export / f"{name}.nii.gz")
    (export / "cases.csv").write_text("patient,image\nMueller,a.nii.gz\nMeier,b.nii.gz\n")
    with pytest.raises(ConfigError, match=r"labels.csv: expected no table of labels"):
        import_export(hospital, export)
    (hospital.data / "labels.csv").unlink()
    assert import_export(hospital, export).cases == 2
    assert read_listing(hospital.data).is_unlabelled
    (export / "labels.csv").write_text("value,name\n1,lesion\n")
    (export / "cases.csv").write_text("patient,image,label\nMueller,a.nii.gz,b.nii.gz\n")
    with pytest.raises(
        ConfigError, match="the column label as in the export, found no column of labels"
    ):
        import_export(hospital, export)


def test_masks_of_structures_are_imported_each_under_its_name(hospital, tmp_path: Path) -> None:
    export = tmp_path / "export"
    export.mkdir()
    (hospital.data / "labels.csv").unlink()
    for name in ("a", "liver", "spleen"):
        values = np.zeros((4, 4, 4), np.float32)
        values[len(name) % 4] = 1
        nib.save(nib.Nifti1Image(values, np.eye(4)), export / f"{name}.nii.gz")
    table = "patient,image,label_liver,label_Spleen\nMueller,a.nii.gz,liver.nii.gz,spleen.nii.gz\n"
    (export / "cases.csv").write_text(table)
    assert import_export(hospital, export).cases == 1
    assert import_export(hospital, export).cases == 0
    listing = read_listing(hospital.data)
    assert set(listing.structures) == {"liver", "spleen"}
    for name, file in listing.cases[0].masks:
        assert name not in file
        assert np.array_equal(
            nib.load(hospital.data / file).get_fdata(), nib.load(export / f"{name}.nii.gz").get_fdata()
        )
    (export / "cases.csv").write_text(table.replace("label_liver", "label_kidney"))
    with pytest.raises(
        ConfigError, match=r"that the list has \(label_liver, label_spleen\), found label_ki"
    ):
        import_export(hospital, export)


def test_every_channel_of_a_case_is_imported_under_its_name(hospital, tmp_path: Path) -> None:
    ward = make_ward(tmp_path / "export", {"t1": "T1w", "flair": "FLAIR"}, 3, 0)
    (ward / "site.yaml").unlink()
    assert import_export(hospital, ward).cases == 3
    before = sorted(read_listing(ward).cases, key=lambda case: case.image)
    cases = read_listing(hospital.data).cases
    assert [set(case.images) for case in cases] == [{"t1w", "flair"}] * 3
    for case, original in zip(cases, before, strict=True):
        for channel, file in case.images.items():
            own = nib.load(hospital.data / file).get_fdata()
            assert np.array_equal(own, nib.load(ward / original.images[channel]).get_fdata())
    assert import_export(hospital, ward).cases == 0
    write_series(tmp_path / "other" / "a")
    with pytest.raises(ConfigError, match="a list has one or the other"):
        import_export(hospital, tmp_path / "other")


def test_each_view_of_an_xray_is_a_case_of_its_own(hospital, tmp_path: Path) -> None:
    for number in range(2):
        write_flat(tmp_path / "export", PIXELS + number, **XRAY, SOPInstanceUID=f"1.2.{number}")
    assert import_export(hospital, tmp_path / "export").cases == 2
    found = [read_image(hospital.data, case.image).voxels for case in read_listing(hospital.data).cases]
    assert sorted(each[0, 0] for each in found) == [PIXELS[0, 0], PIXELS[0, 0] + 1]


def test_a_channel_that_comes_later_joins_its_case(hospital, tmp_path: Path) -> None:
    ward = make_ward(tmp_path / "export", {"t1": "T1w", "flair": "FLAIR"}, 3, 0)
    (ward / "site.yaml").unlink()
    whole = (ward / "cases.csv").read_text()
    rows = [dict(row) for row in csv.DictReader(io.StringIO(whole))]
    with (ward / "cases.csv").open("w", newline="") as file:
        kept = ["patient", "label", "image_T1w"]
        writer = csv.DictWriter(file, kept, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    assert import_export(hospital, ward).cases == 3
    (ward / "cases.csv").write_text(whole)
    assert import_export(hospital, ward).cases == 0
    assert [set(case.images) for case in read_listing(hospital.data).cases] == [{"t1w", "flair"}] * 3


def test_a_damaged_channel_leaves_the_case_with_the_others(hospital, tmp_path: Path) -> None:
    ward = make_ward(tmp_path / "export", {"t1": "T1w", "flair": "FLAIR"}, 2, 0)
    (ward / "site.yaml").unlink()
    (ward / "images" / "1_flair.nii.gz").write_bytes(b"")
    done = import_export(hospital, ward)
    assert done.cases == 2 and sum(done.left_out.values()) == 1
    assert sorted(len(case.images) for case in read_listing(hospital.data).cases) == [1, 2]


def test_a_bids_set_of_one_contrast_keeps_its_one_image(hospital, tmp_path: Path) -> None:
    export = tmp_path / "export"
    for number in range(2):
        place = Path(f"sub-{number}") / "anat"
        for name, folder in (("T1w", export), ("dseg", export / "derivatives" / "d")):
            (folder / place).mkdir(parents=True)
            values = np.random.default_rng(number).integers(0, 3, (9, 9, 9)).astype(np.int16)
            nib.save(nib.Nifti1Image(values, np.eye(4)), folder / place / f"sub-{number}_{name}.nii.gz")
    (export / "dataset_description.json").write_text("{}")
    (export / "dseg.tsv").write_text("index\tname\n1\thead\n2\ttail\n")
    assert import_export(hospital, export).cases == 2
    assert (hospital.data / "cases.csv").read_text().startswith("patient,image,label")


def test_what_a_picture_or_a_page_holds_is_imported_or_named(hospital, tmp_path: Path) -> None:
    (hospital.data / "labels.csv").unlink()  # the export brings its own
    export = tmp_path / "export"
    export.mkdir()
    eye = np.eye(9, 7, dtype=np.uint8)
    pages = [Image.fromarray(40 * n + eye) for n in range(3)]
    pages[0].save(export / "many.tif", save_all=True, append_images=pages[1:])
    Image.fromarray(np.eye(9, 7, dtype=np.float32)).save(export / "float.tif")
    Image.new("CMYK", (7, 9), (10, 200, 30, 40)).save(export / "print.jpg")
    rows = [("a", "many.tif#2"), ("b", "float.tif"), ("c", "print.jpg")]
    lines = [f"{patient},{name},1" for patient, name in rows]
    (export / "cases.csv").write_text("\n".join(["patient,image,label", *lines]))
    (export / "labels.csv").write_text("value,name\n0,well\n1,ill\n")
    done = import_export(hospital, export)
    assert done.cases == 2
    assert done.left_out == {
        "a picture of 32 bits or of numbers with a sign is not imported; convert it to NIfTI "
        "beforehand": 1
    }
    found = {c.patient: read_image(hospital.data, c.image) for c in read_listing(hospital.data).cases}
    assert min(image.voxels.max() for image in found.values()) == 81


def test_pixel_sides_colours_and_rare_modalities_are_imported(hospital, tmp_path: Path) -> None:
    region = Dataset()
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX = region.PhysicalDeltaY = 0.02
    given = {
        "DX": (PIXELS, XRAY), "OP": (PIXELS, {**XRAY, "Modality": "OP"}), "XC": (COLOURS, PHOTO),
        "US": (PIXELS, {**XRAY, "Modality": "US", "ImagerPixelSpacing": None,
                        "SequenceOfUltrasoundRegions": [region]}),
    }  # fmt: skip
    before = {}
    for number, (name, (values, fields)) in enumerate(given.items()):
        path = write_flat(tmp_path / "e" / name, values, **{**fields, "PatientID": name,
                          "SeriesInstanceUID": f"1.3.{number}"})  # fmt: skip
        before[name] = read_image(tmp_path / "e", f"{name}/{path.name}")
    assert import_export(hospital, tmp_path / "e").cases == 4
    names = {imported(pseudonym(hospital.pseudonym_key, name)): name for name in given}
    for case in read_listing(hospital.data).cases:
        due, found = before[names[case.patient]], read_image(hospital.data, case.image)
        assert np.array_equal(found.voxels, due.voxels) and found.spacing_mm == due.spacing_mm
        assert (found.colours is None) == (due.colours is None)


def test_an_export_whose_labels_mean_something_else_is_refused(hospital, tmp_path: Path) -> None:
    (hospital.data / "labels.csv").unlink()
    for name, labels in (
        ("a", "1,liver\n2,spleen\n"),
        ("b", "1,spleen\n2,liver\n"),
        ("c", "3,kidney\n"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        values = np.full((4, 4, 4), ord(name), np.float32)
        nib.save(nib.Nifti1Image(values, np.eye(4)), folder / "i.nii.gz")
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), folder / "l.nii.gz")
        (folder / "cases.csv").write_text("patient,image,label\np" + name + ",i.nii.gz,l.nii.gz\n")
        (folder / "labels.csv").write_text("value,name\n" + labels)
    assert import_export(hospital, tmp_path / "a").cases == 1
    listed = (hospital.data / "cases.csv").read_bytes()
    with pytest.raises(ConfigError, match="in the export label 1 is spleen"):
        import_export(hospital, tmp_path / "b")
    assert (hospital.data / "cases.csv").read_bytes() == listed
    assert import_export(hospital, tmp_path / "c").cases == 1
    assert read_listing(hospital.data).labels == {1: "liver", 2: "spleen", 3: "kidney"}


def test_a_class_that_differs_from_the_lists_is_said(hospital, tmp_path: Path) -> None:
    (hospital.data / "labels.csv").unlink()
    Image.fromarray(np.arange(80, dtype=np.uint8).reshape(8, 10)).save(tmp_path / "a.png")
    export = tmp_path / "export"
    export.mkdir()
    (tmp_path / "a.png").rename(export / "a.png")
    (export / "labels.csv").write_text("value,name\n0,benign\n1,malignant\n")
    for value in "01":
        (export / "cases.csv").write_text(f"patient,image,label\np,a.png,{value}\n")
        done = import_export(hospital, export)
    (why,) = done.left_out
    assert why.startswith("its class or value differs from the list's, which stays")
    assert read_listing(hospital.data).cases[0].label == "0"


@pytest.mark.parametrize("kind", ["seg", "rt"])
def test_labels_drawn_in_dicom_are_imported_as_images_on_the_grid_of_their_scan(
    kind: str, hospital, tmp_path: Path
) -> None:
    (hospital.data / "labels.csv").unlink()
    export = tmp_path / "export"
    images = series(export / "ct")
    if kind == "seg":
        write_seg(export / "seg.dcm", images)
    else:
        write_structures(export / "rt.dcm", {"Head": [box((1.5, 7.5), (2.5, 6.5), n) for n in (1, 2)]})
    (export / "cases.csv").write_text(f"patient,image,label\nMUELLER,ct,{kind}.dcm\n")
    (export / "labels.csv").write_text("value,name\n1,head\n2,tail\n")
    task = SegmentationConfig(kind="segmentation", dims=3, labels={1: "head", 2: "tail"})
    before, _ = read_case(export, read_listing(export).cases[0], task)
    assert before.target.any()
    assert import_export(hospital, export).cases == 1
    (case,) = read_listing(hospital.data).cases
    assert case.label.endswith(".nii.gz")
    after, _ = read_case(hospital.data, case, task)
    assert np.array_equal(after.target, before.target) and np.array_equal(after.image, before.image)
    assert not SECRETS.search(everything(hospital.data))
    assert import_export(hospital, export) == Imported(0, 0, {})
