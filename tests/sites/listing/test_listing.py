import json
from pathlib import Path

import pytest

from sites.listing.cases import CaseFiles, Listing
from sites.listing.listing import read_listing
from sites.yaml_files import ConfigError


def test_every_case_of_the_decathlon_has_its_patient_and_some_patients_have_two(
    tmp_path: Path, small_wards
) -> None:
    listing = read_listing(small_wards(tmp_path) / "south")
    names = {c.case for c in listing.cases}
    assert len(names) == len(listing.cases) > len({c.patient for c in listing.cases}) == 12
    assert listing.labels == {0: "background", 1: "head", 2: "tail"}


def write_table(data: Path, cases: str, labels: str = "value,name\n0,normal\n1,ill\n") -> Path:
    data.mkdir(exist_ok=True)
    (data / "cases.csv").write_text(cases)
    (data / "labels.csv").write_text(labels)
    return data


def test_a_table_lists_patients_images_labels_and_sessions(tmp_path: Path) -> None:
    rows = "\ufeffpatient,image,label,session\n p1 ,a/1.png,0,baseline\np1,a/2.png,1,\n"
    assert read_listing(write_table(tmp_path, rows)) == Listing(
        cases=(
            CaseFiles("a/1.png", "p1", "a/1.png", "0", "baseline"),
            CaseFiles("a/2.png", "p1", "a/2.png", "1", ""),
        ),
        labels={0: "normal", 1: "ill"},
    )


def make_bids(data: Path, *files: str) -> Path:
    for name in files:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(b"")
    (data / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    (data / "dseg.tsv").write_text("index\tname\n1\thead\n2\ttail\n")
    return data


def test_bids_pairs_each_image_with_the_segmentation_of_its_subject_and_session(tmp_path: Path) -> None:
    listing = read_listing(
        make_bids(
            tmp_path,
            "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
            "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz",
            "sub-02/anat/sub-02_T1w.nii",
            "sub-03/anat/sub-03_T1w.nii.gz",
            "sub-02/func/sub-02_bold.nii.gz",
            "derivatives/manual/sub-01/ses-1/anat/sub-01_ses-1_space-orig_dseg.nii.gz",
            "derivatives/manual/sub-01/ses-2/anat/sub-01_ses-2_dseg.nii.gz",
            "derivatives/manual/sub-02/anat/sub-02_dseg.nii.gz",
        )
    )
    assert listing.labels == {1: "head", 2: "tail"}
    assert [(c.patient, c.session, Path(c.label).name) for c in listing.cases] == [
        ("01", "1", "sub-01_ses-1_space-orig_dseg.nii.gz"),
        ("01", "2", "sub-01_ses-2_dseg.nii.gz"),
        ("02", "", "sub-02_dseg.nii.gz"),
    ]


def test_two_segmentations_of_one_bids_image_are_an_error(tmp_path: Path) -> None:
    data = make_bids(
        tmp_path, "sub-01/anat/sub-01_T1w.nii", "derivatives/a/sub-01/anat/sub-01_dseg.nii",
        "derivatives/b/sub-01/anat/sub-01_dseg.nii",
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"one \*_dseg file for sub-01_T1w.nii, found .* and "):
        read_listing(data)


@pytest.mark.parametrize(
    ("cases", "labels", "message"),
    [
        ("", "value,name\n0,a\n", "expected the columns patient, image, label"),
        ("patient,image\np,i\n", "value,name\n0,a\n", "label is missing"),
        ("patient,image,label\np,,0\n", "value,name\n0,a\n", "line 2 has an empty cell"),
        ("patient,image,label\n", "value,name\n0,a\n", "at least one case"),
        ("patient,image,label\np,i,0\nq,i,0\n", "value,name\n0,a\n", "each image once"),
        ("patient,image,label\np,i,0\n", "value,name\nzero,a\n", "whole numbers"),
        ("patient,image,label\np,i,0\n", "wert,name\n0,a\n", "value is missing"),
    ],
)
def test_a_table_of_another_form_is_an_error_that_says_which(
    cases: str, labels: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_listing(write_table(tmp_path, cases, labels))


def test_no_layout_and_two_layouts_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got none of them"):
        read_listing(tmp_path)
    write_table(tmp_path, "patient,image,label\np,i,0\n")
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"cases\.csv and dataset\.json"):
        read_listing(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b'{"training": 3}', b'{"training": [1]}'])
def test_a_damaged_dataset_json_is_an_error_that_names_it(
    content: bytes, tmp_path: Path, small_wards
) -> None:
    ward = small_wards(tmp_path) / "south"
    (ward / "dataset.json").write_bytes(content)
    with pytest.raises(ConfigError, match="dataset.json: expected (training|a JSON object)"):
        read_listing(ward)


def test_an_image_without_a_patient_is_an_error(tmp_path: Path, small_wards) -> None:
    ward = small_wards(tmp_path) / "south"
    lines = (ward / "subjects.csv").read_text().splitlines()
    (ward / "subjects.csv").write_text("\n".join(lines[:-1]))
    with pytest.raises(ConfigError, match="a subject for each image"):
        read_listing(ward)
    (ward / "subjects.csv").unlink()
    with pytest.raises(ConfigError, match="subjects.csv: no such file"):
        read_listing(ward)


def test_labels_that_are_no_numbers_are_an_error(tmp_path: Path, small_wards) -> None:
    ward = small_wards(tmp_path) / "south"
    content = json.loads((ward / "dataset.json").read_text()) | {"labels": {"x": "head"}}
    (ward / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="labels"):
        read_listing(ward)


def bids(data: Path, subjects: int, suffixes: tuple[str, ...], *labels: str) -> Path:
    files = [f"sub-{n}/anat/sub-{n}_{suffix}.nii.gz" for n in range(subjects) for suffix in suffixes]
    names = [f"sub-{n}_{label}" for n in range(subjects) for label in labels]
    files += [f"derivatives/d/{name.partition('_')[0]}/anat/{name}.nii.gz" for name in names]
    return make_bids(data, *files)


def test_of_several_contrasts_of_bids_one_is_used_for_all_and_it_is_said(tmp_path: Path) -> None:
    data = bids(tmp_path, 3, ("T1w", "T2w", "FLAIR"), "dseg")
    listing = read_listing(data)
    assert [case.image.rpartition("_")[2] for case in listing.cases] == ["T1w.nii.gz"] * 3
    assert listing.notes == (
        "T1w is the channel image, FLAIR, T2w are used by studies that name them; bids.yaml can name "
        "another contrast",
    )
    (data / "bids.yaml").write_text("contrast: FLAIR")
    listing = read_listing(data)
    assert [case.image.rpartition("_")[2] for case in listing.cases] == ["FLAIR.nii.gz"] * 3
    assert listing.notes == ()
    (data / "bids.yaml").write_text("contrast: T2star")
    with pytest.raises(ConfigError, match="expected one of FLAIR, T1w, T2w"):
        read_listing(data)


def test_the_contrast_that_most_subjects_have_is_used(tmp_path: Path) -> None:
    data = bids(tmp_path, 2, ("T1w",), "dseg")
    for n in range(5):
        label = f"derivatives/d/sub-{n}/sub-{n}_dseg.nii.gz"
        make_bids(data, f"sub-{n}/anat/sub-{n}_FLAIR.nii.gz", *([label] if n > 1 else []))
    assert {case.image.rpartition("_")[2] for case in read_listing(data).cases} == {"FLAIR.nii.gz"}


def test_segmentations_of_fmriprep_are_named_until_the_hospital_says_which(tmp_path: Path) -> None:
    kinds = ("dseg", "desc-aseg_dseg", "space-MNI152NLin2009cAsym_dseg")
    data = bids(tmp_path, 2, ("T1w",), *kinds)
    (data / "derivatives" / "d" / "desc-aseg_dseg.tsv").write_text("index\tname\n17\thippocampus\n")
    with pytest.raises(ConfigError, match=r"for sub-0_T1w.nii.gz, found .*desc-aseg_dseg.*bids.yaml"):
        read_listing(data)
    (data / "bids.yaml").write_text("label: desc-aseg")
    listing = read_listing(data)
    assert all(case.label.endswith("desc-aseg_dseg.nii.gz") for case in listing.cases)
    assert listing.labels == {17: "hippocampus"}


def test_bids_without_segmentations_or_names_is_listed_or_says_what_is_missing(tmp_path: Path) -> None:
    bare = bids(tmp_path / "bare", 3, ("T1w",))
    listing = read_listing(bare)
    assert [case.label for case in listing.cases] == [""] * 3
    assert listing.notes == (
        "no image has a *_dseg file: the scans can be surveyed, but not train or evaluate",
    )
    some = bids(tmp_path / "some", 2, ("T1w",), "dseg")
    make_bids(some, "sub-9/anat/sub-9_T1w.nii.gz", "sub-9/anat/._sub-9_T1w.nii.gz")
    assert read_listing(some).notes == ("1 images have no *_dseg file and are not listed",)
    (some / "dseg.tsv").unlink()
    with pytest.raises(ConfigError, match="names of the labels in dseg.tsv"):
        read_listing(some)


def test_a_list_without_a_column_of_labels_is_one_of_scans_to_survey(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("patient,image\np,a.nii\nq,b.nii\n")
    listing = read_listing(tmp_path)
    assert listing.is_unlabelled and len(listing.cases) == 2
    assert listing.notes == (
        "cases.csv has no column of labels, and there is no labels.csv: the scans can be surveyed, "
        "but not train or evaluate",
    )
    (tmp_path / "labels.csv").write_text("value,name\n1,lesion\n")
    with pytest.raises(ConfigError, match="label is missing"):
        read_listing(tmp_path)
    (tmp_path / "cases.csv").write_text("patient,image,label\np,a.nii,\nq,b.nii,\n")
    with pytest.raises(ConfigError, match="line 2 has an empty cell"):
        read_listing(tmp_path)


def test_names_in_a_list_may_begin_with_the_folder_itself(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(
        '{"labels": {"0": "b", "1": "l"}, "training": [{"image": "./i/a.nii", "label": "./l/a.nii"}]}'
    )
    (tmp_path / "subjects.csv").write_text("image,subject\n./i/a.nii,p\n")
    (case,) = read_listing(tmp_path).cases
    assert (case.image, case.label, case.patient) == ("i/a.nii", "l/a.nii", "p")


def test_a_mask_of_another_acquisition_or_space_is_no_mask_of_an_image(tmp_path: Path) -> None:
    """sub-1 has a mask of the image with contrast agent alone, sub-2 one in a template's space."""
    data = make_bids(
        tmp_path, "sub-1/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_ce-GD_T1w.nii.gz",
        "derivatives/d/sub-1/sub-1_ce-GD_dseg.nii.gz", "sub-2/anat/sub-2_T1w.nii.gz",
        "derivatives/d/sub-2/sub-2_space-MNI152_dseg.nii.gz", "sub-3/anat/sub-3_T1w.nii.gz",
        "derivatives/d/sub-3/sub-3_space-T1w_dseg.nii.gz", "sub-3/anat/sub-3_T1w.nii.gz.json",
    )  # fmt: skip
    listing = read_listing(data)
    assert [case.image for case in listing.cases] == ["sub-3/anat/sub-3_T1w.nii.gz"]
    assert listing.notes[1:] == ("2 images have no *_dseg file and are not listed",)
    (data / "bids.yaml").write_text("contrast: ce-GD_T1w")
    listing = read_listing(data)
    assert [case.image for case in listing.cases] == ["sub-1/anat/sub-1_ce-GD_T1w.nii.gz"]
    assert listing.cases[0].images["t1w"] == "sub-1/anat/sub-1_T1w.nii.gz"


def test_what_a_bids_set_has_beside_the_listed_images_is_said(tmp_path: Path) -> None:
    data = bids(tmp_path, 3, ("T1w",), "dseg")
    make_bids(
        data, "sub-7/anat/sub-7_FLAIR.nii.gz", "sub-0/anat/sub-0_run-2_T1w.nii.gz",
        "derivatives/d/sub-0/anat/sub-0_run-2_dseg.nii.gz",
    )  # fmt: skip
    notes = read_listing(data).notes
    assert "1 subjects have no T1w image and are not listed" in notes
    assert "1 sessions have several T1w images; each is a case of its own" in notes
    other = bids(tmp_path / "other", 2, ("T1w", "FLAIR"), "space-FLAIR_dseg")
    assert (
        read_listing(other)
        .notes[-1]
        .startswith("no image has a *_dseg file on its own grid, but on those of FLAIR (bids.yaml")
    )


def test_the_names_of_bids_labels_are_those_of_the_tables_nearest_to_them(tmp_path: Path) -> None:
    data = bids(tmp_path, 2, ("T1w",), "desc-manual_dseg")
    (data / "derivatives" / "auto").mkdir(parents=True)
    (data / "derivatives" / "auto" / "dseg.tsv").write_text("index\tname\n1\tlesion\n")
    (data / "derivatives" / "d" / "desc-manual_dseg.tsv").write_text("index\tname\n1\tventricle\n")
    (data / "bids.yaml").write_text("label: desc-manual")
    assert read_listing(data).labels == {1: "ventricle"}
    (data / "bids.yaml").unlink()
    assert read_listing(data).labels == {1: "ventricle"}
    make_bids(data, "sub-5/anat/sub-5_T1w.nii.gz", "derivatives/auto/sub-5/anat/sub-5_dseg.nii.gz")
    with pytest.raises(ConfigError, match=r"one meaning of each label; derivatives/auto/dseg.tsv and"):
        read_listing(data)


def test_spreadsheets_leave_blanks_in_headings_and_empty_rows_behind(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("value, name\n1,lesion\n")
    (tmp_path / "cases.csv").write_text("patient, image, label\np,a.nii,l.nii\n,,\n")
    (case,) = read_listing(tmp_path).cases
    assert (case.patient, case.image, case.label) == ("p", "a.nii", "l.nii")


def test_columns_of_a_table_are_channels_and_an_empty_cell_is_one_that_is_missing(
    tmp_path: Path,
) -> None:
    rows = "patient,image_T1w,image_T2 FLAIR,label\np1,a.nii,b.nii,l.nii\np2,,c.nii,m.nii\n"
    one, two = read_listing(write_table(tmp_path, rows)).cases
    assert one.images == {"t1w": "a.nii", "t2-flair": "b.nii"} and one.image == "a.nii"
    assert two.images == {"t2-flair": "c.nii"} and two.image == "c.nii"
    assert two.files == ["c.nii", "m.nii"]


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("patient,image,image_date,label", "p,a,b,0", None),
        ("patient,image_t1,image_T1,label", "p,a,b,0", "two columns mean the same"),
        ("patient,image_t1,image_t2,label", "p,,,0", "an image in one of image_t1, image_t2"),
        ("patient,image_t1,image_t2,label", "p,a,a,0", None),
    ],
)
def test_columns_of_channels_that_are_unclear_are_an_error(
    header: str, row: str, message: str | None, tmp_path: Path
) -> None:
    data = write_table(tmp_path, f"{header}\n{row}\n")
    if message is None:
        (case,) = read_listing(data).cases  # one file for two channels of a case is no mistake
        assert case.image == "a"
        return
    with pytest.raises(ConfigError, match=message):
        read_listing(data)


def test_one_file_is_no_image_of_two_cases(tmp_path: Path) -> None:
    rows = "patient,image_t1,image_t2,label\np,a,b,0\nq,c,b,1\n"
    with pytest.raises(ConfigError, match="b is listed twice"):
        read_listing(write_table(tmp_path, rows))


def test_the_modalities_of_a_decathlon_set_are_channels_of_its_4d_files(
    tmp_path: Path, small_wards
) -> None:
    ward = small_wards(tmp_path) / "south"
    content = json.loads((ward / "dataset.json").read_text())
    content["modality"] = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    (ward / "dataset.json").write_text(json.dumps(content))
    case = read_listing(ward).cases[0]
    file = content["training"][0]["image"]
    assert case.images == {
        "flair": f"{file}#0", "t1w": f"{file}#1", "t1gd": f"{file}#2", "t2w": f"{file}#3",
    }  # fmt: skip


def nnunet(data: Path, labels: object, order: object = None, **more: object) -> Path:
    for name in ("a_0000", "a_0001", "b_0000", "b_0001", "c_0001"):
        (data / "imagesTr").mkdir(parents=True, exist_ok=True)
        (data / "imagesTr" / f"{name}.nii.gz").write_bytes(b"")
    for name in "abc":
        (data / "labelsTr").mkdir(exist_ok=True)
        (data / "labelsTr" / f"{name}.nii.gz").write_bytes(b"")
    content = {
        "channel_names": {"0": "T2", "1": "ADC"}, "labels": labels, "numTraining": 3,
        "file_ending": ".nii.gz", **({"regions_class_order": order} if order else {}), **more,
    }  # fmt: skip
    (data / "dataset.json").write_text(json.dumps(content))
    return data


def test_a_raw_folder_of_nnunet_is_listed_with_its_channels_and_labels(tmp_path: Path) -> None:
    listing = read_listing(nnunet(tmp_path, {"background": 0, "PZ": 1, "TZ": 2}))
    assert listing.labels == {0: "background", 1: "PZ", 2: "TZ"}
    assert [case.images for case in listing.cases] == [
        {"t2": "imagesTr/a_0000.nii.gz", "adc": "imagesTr/a_0001.nii.gz"},
        {"t2": "imagesTr/b_0000.nii.gz", "adc": "imagesTr/b_0001.nii.gz"},
        {"adc": "imagesTr/c_0001.nii.gz"},
    ]
    assert [case.label for case in listing.cases] == [f"labelsTr/{c}.nii.gz" for c in "abc"]
    assert "each case counts as a patient of its own" in listing.notes[0]
    (tmp_path / "subjects.csv").write_text("case,subject\na,anna\nb,anna\nc,carl\n")
    listing = read_listing(tmp_path)
    assert [case.patient for case in listing.cases] == ["anna", "anna", "carl"]
    assert listing.notes == ()
    (tmp_path / "subjects.csv").write_text("case,subject\na,anna\n")
    with pytest.raises(ConfigError, match="a subject for each case; b has none"):
        read_listing(tmp_path)


def test_the_regions_of_nnunet_have_the_values_by_which_they_are_written(tmp_path: Path) -> None:
    regions = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}
    listing = read_listing(nnunet(tmp_path, regions, [1, 2, 3]))
    assert listing.labels == {0: "background", 1: "whole", 2: "core", 3: "enhancing"}
    with pytest.raises(ConfigError, match="regions_class_order where labels are regions"):
        read_listing(nnunet(tmp_path, regions))


def test_contrasts_of_a_bids_subject_are_channels_of_one_case(tmp_path: Path) -> None:
    data = bids(tmp_path, 2, ("T1w", "T2w", "FLAIR"), "dseg")
    listing = read_listing(data)
    assert len(listing.cases) == 2
    places = {name: f"sub-0/anat/sub-0_{name}.nii.gz" for name in ("T1w", "T2w", "FLAIR")}
    assert listing.cases[0].images == {
        "image": places["T1w"], "t1w": places["T1w"], "t2w": places["T2w"], "flair": places["FLAIR"],
    }  # fmt: skip
    assert listing.channels == {"image", "t1w", "t2w", "flair"}


def test_a_mask_of_bids_is_named_by_its_entity(tmp_path: Path) -> None:
    data = bids(tmp_path, 2, ("FLAIR",), "label-lesion_mask")
    (data / "bids.yaml").write_text("segmentation: mask")
    listing = read_listing(data)
    assert dict(listing.structures) == {"lesion": None}
    assert [Path(case.label).name for case in listing.cases] == [
        "sub-0_label-lesion_mask.nii.gz", "sub-1_label-lesion_mask.nii.gz",
    ]  # fmt: skip


def test_masks_and_probabilities_of_several_structures_are_one_label_of_bids(tmp_path: Path) -> None:
    data = bids(tmp_path, 2, ("T1w",), "label-GM_probseg", "label-WM_probseg")
    make_bids(
        data, "sub-7/anat/sub-7_T1w.nii.gz", "derivatives/d/sub-7/anat/sub-7_label-GM_probseg.nii.gz"
    )
    (data / "bids.yaml").write_text("segmentation: probseg")
    listing = read_listing(data)
    assert dict(listing.structures) == {"gm": None, "wm": None}
    assert [dict(case.masks).keys() for case in listing.cases] == [{"gm", "wm"}] * 2
    assert listing.notes == ("1 images have no *_probseg file of each of gm, wm and are not listed",)
    (data / "bids.yaml").write_text("segmentation: probseg\nlabel: label-GM")
    assert [dict(case.masks).keys() for case in read_listing(data).cases] == [{"gm"}] * 3
    make_bids(data, "derivatives/e/sub-0/anat/sub-0_label-GM_probseg.nii.gz")
    with pytest.raises(ConfigError, match=r"expected one \*_probseg file of gm for sub-0_T1w.nii.gz"):
        read_listing(data)


def test_a_column_for_each_structure_names_its_masks(tmp_path: Path) -> None:
    table = "patient,image,label_Left kidney,label_right_kidney\np,a.nii,./l.nii,r.nii\n"
    (tmp_path / "cases.csv").write_text(table)
    listing = read_listing(tmp_path)
    assert listing.cases[0].masks == (("left-kidney", "l.nii"), ("right-kidney", "r.nii"))
    mapped = listing.mapped({"ct": "image"}, {"left kidney": 1, "right_kidney": 1})
    assert dict(mapped.structures) == {"left-kidney": 1, "right-kidney": 1}
    assert mapped.cases[0].label_names == (("left-kidney", 1), ("right-kidney", 1))
    assert mapped.cases[0].images["ct"] == "a.nii"
    with pytest.raises(
        ConfigError, match="names of the list's masks .left-kidney, right-kidney.*'liver'"
    ):
        listing.mapped({}, {"liver": 1})
    (tmp_path / "cases.csv").write_text(table.replace("r.nii", ""))
    with pytest.raises(ConfigError, match="line 2 has an empty cell"):
        read_listing(tmp_path)


def test_a_list_is_read_in_the_terms_of_studies(tmp_path: Path) -> None:
    rows = "patient,image_T1w,label\np1,a.nii,l.nii\n"
    labels = "value,name\n0,background\n1,necrosis\n4,Enhancing tumour\n"
    listing = read_listing(write_table(tmp_path, rows, labels))
    mapped = listing.mapped({"t1": "T1w", "image": "T1w"}, {"enhancing tumour": 3})
    (case,) = mapped.cases
    assert case.images == {"t1w": "a.nii", "t1": "a.nii", "image": "a.nii"}
    with pytest.raises(ConfigError, match=r"channels: flair: .*the list's channels \(t1w\), got 'FLAR'"):
        listing.mapped({"flair": "FLAR"}, {})
    lacking = listing.mapped({"t1": "T1w", "flair": "FLAIR"}, {})  # it has nothing else
    assert set(lacking.cases[0].images) == {"t1w", "t1"}
    swapped = CaseFiles("c", "p", "a", "", channels=(("t1", "a"),))
    other = CaseFiles("d", "p", "b", "", channels=(("t1c", "b"),))
    only, _ = Listing((swapped, other), {}).mapped({"t1": "t1c", "t1c": "t1"}, {}).cases
    assert only.images == {"t1c": "a"}  # it has no channel that the hospital calls t1c
    assert case.label_map == ((4, 3),)
    assert mapped.labels == {0: "background", 1: "necrosis", 3: ""}
    assert listing.mapped({}, {4: 3}).cases[0].label_map == ((4, 3),)
    with pytest.raises(ConfigError, match=r"names of the list's labels .*necrosis.*, got 'oedema'"):
        listing.mapped({}, {"oedema": 2})


def test_a_single_channel_has_its_name_beside_image(tmp_path: Path) -> None:
    data = nnunet(tmp_path / "n", {"background": 0, "PZ": 1}, channel_names={"0": "T1"})
    (data / "labelsTr" / "c.nii.gz").unlink()
    assert set(read_listing(data).cases[0].images) == {"image", "t1"}
    (tmp_path / "dataset.json").write_text(
        '{"labels": {"1": "l"}, "modality": {"0": "T2"}, '
        '"training": [{"image": "a.nii", "label": "b.nii"}]}'
    )
    (tmp_path / "subjects.csv").write_text("image,subject\na.nii,p\n")
    assert read_listing(tmp_path).cases[0].images == {"image": "a.nii", "t2": "a.nii"}


def test_colours_that_nnunet_counts_as_channels_of_one_picture_are_one_image(tmp_path: Path) -> None:
    channels = {"0": "R", "1": "G", "2": "B"}
    data = nnunet(tmp_path, {"background": 0, "disc": 1}, channel_names=channels, file_ending=".png")
    for name in ("imagesTr/d_0000.png", "labelsTr/d.png", "labelsTr/._d.png"):
        (data / name).touch()
    (case,) = read_listing(data).cases
    assert (case.case, case.images) == ("d", {"image": "imagesTr/d_0000.png"})


def test_classes_that_a_spreadsheet_wrote_as_floats_are_classes(tmp_path: Path) -> None:
    rows = "patient,image,label\np1,a.nii,1.0\np2,b.nii,0.0\n"
    listing = read_listing(write_table(tmp_path, rows))
    assert listing.has_classes and [case.label for case in listing.cases] == ["1", "0"]


def test_two_channels_of_one_name_are_an_error(tmp_path: Path) -> None:
    data = nnunet(tmp_path, {"background": 0, "PZ": 1}, channel_names={"0": "T1", "1": "t1"})
    with pytest.raises(ConfigError, match="two channels have one name"):
        read_listing(data)


def test_the_label_ignore_of_nnunet_is_no_label(tmp_path: Path) -> None:
    listing = read_listing(nnunet(tmp_path, {"background": 0, "PZ": 1, "ignore": 2}))
    assert listing.labels == {0: "background", 1: "PZ"}
    assert any("the label ignore" in note for note in listing.notes)


def test_a_contrast_belongs_to_one_image_of_a_session(tmp_path: Path) -> None:
    data = make_bids(
        tmp_path, "sub-1/anat/sub-1_run-1_T1w.nii.gz", "sub-1/anat/sub-1_run-2_T1w.nii.gz",
        "sub-1/anat/sub-1_FLAIR.nii.gz", "derivatives/d/sub-1/anat/sub-1_run-1_dseg.nii.gz",
        "derivatives/d/sub-1/anat/sub-1_run-2_dseg.nii.gz",
    )  # fmt: skip
    assert [set(case.images) for case in read_listing(data).cases] == [{"image", "t1w"}] * 2
