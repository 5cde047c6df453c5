"""Which scans a prediction takes, and where their masks go."""

from pathlib import Path

import numpy as np
import pytest
from scanner import XRAY, write_flat, write_series

from flows.serving.scan_files import check_out, is_folder, masks_of, scans_in
from models.settings.tasks import SegmentationConfig
from sites.yaml_files import ConfigError

VOLUMES = SegmentationConfig(kind="segmentation", dims=3, labels={1: "a"})
FLAT = SegmentationConfig(kind="segmentation", dims=2, labels={1: "a"})
TWO = SegmentationConfig(kind="segmentation", dims=3, labels={1: "a"}, channels=("t1", "t2_flair"))


def names(places: list[Path]) -> list[str]:
    return [place.name for place in places]


def given(*paths: str) -> list[dict[str, Path]]:
    return [{"image": Path(path)} for path in paths]


def test_scans_of_one_name_have_masks_of_their_own() -> None:
    places = masks_of(Path("out"), given("p1/CT", "p2/CT", "x.dcm", "s.npz#images/3"), 3)
    assert places == [Path("out") / f"{n}.nii.gz" for n in ("p1_CT", "p2_CT", "x", "s-images-3")]
    deep = masks_of(Path("out"), given("S1/anat/T1", "S2/anat/T1", "S2/anat/T2"), 3)
    assert names(deep) == ["S1_anat_T1.nii.gz", "S2_anat_T1.nii.gz", "T2.nii.gz"]
    pictures = masks_of(Path("out"), given("d/a.png", "d/a.jpg", "d/b.png"), 2)
    assert names(pictures) == ["a_png.png", "a_jpg.png", "b.png"]


def test_the_mask_of_a_flat_nifti_file_keeps_its_place_and_is_no_picture() -> None:
    assert names(masks_of(Path("out"), given("a.nii.gz", "b.png"), 2)) == ["a.nii.gz", "b.png"]
    with pytest.raises(ConfigError, match=r"expected a name that ends in .nii or .nii.gz"):
        check_out(Path("mask.png"), Path("a.nii.gz"), 2)


def test_a_name_without_an_end_and_a_folder_take_masks_by_the_scans_names(tmp_path: Path) -> None:
    assert is_folder(tmp_path) and is_folder(Path("masks"))
    assert not is_folder(Path("mask.nii.gz")) and not is_folder(Path("mask.txt"))


def test_a_folder_holds_scans_or_series_and_hidden_files_are_none(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.nii.gz", "._a.nii.gz", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    found = scans_in(VOLUMES, [str(tmp_path)])
    assert [each["image"].name for each in found] == ["a.nii.gz", "b.nii.gz"]
    for name in ("s1", "s2"):
        write_series(tmp_path / "dicom" / name)
    series = scans_in(VOLUMES, [str(tmp_path / "dicom")])
    assert [each["image"].name for each in series] == ["s1", "s2"]
    assert scans_in(VOLUMES, [str(tmp_path / "dicom" / "s1")]) == [{"image": tmp_path / "dicom" / "s1"}]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="expected a scan, found none"):
        scans_in(VOLUMES, [str(tmp_path / "empty")])


def test_xrays_of_a_folder_are_a_scan_each_and_a_picture_among_dicom_is_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        write_flat(tmp_path, np.arange(320, dtype=np.uint16).reshape(20, 16), **XRAY)
    assert len(scans_in(FLAT, [str(tmp_path)])) == 2
    (tmp_path / "screenshot.png").write_bytes(b"")
    with pytest.raises(ConfigError, match="expected DICOM files or others, got both"):
        scans_in(FLAT, [str(tmp_path)])


def test_folders_of_channels_are_matched_by_name(tmp_path: Path) -> None:
    for folder in ("t1", "fl"):
        (tmp_path / folder).mkdir()
        for name in ("p", "q"):
            (tmp_path / folder / f"{name}.nii.gz").write_bytes(b"")
    asked = [f"t1={tmp_path / 't1'}", f"t2_flair={tmp_path / 'fl'}"]
    found = scans_in(TWO, asked)
    assert [{name: path.name for name, path in each.items()} for each in found] == [
        {"t1": f"{p}.nii.gz", "t2-flair": f"{p}.nii.gz"} for p in "pq"
    ]
    (tmp_path / "fl" / "q.nii.gz").unlink()
    with pytest.raises(ConfigError, match="q: expected a file of this name for each channel"):
        scans_in(TWO, asked)
    lenient = TWO.model_copy(update={"missing_channel": "zeros"})
    assert [len(each) for each in scans_in(lenient, asked)] == [2, 1]


def test_a_folder_of_nnunet_has_its_channels_by_the_names_of_its_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "imagesTs"
    folder.mkdir()
    for name in ("p_1_0000", "p_1_0001", "p_1_0002", "q_0000", "q_0001", "q_0002"):
        (folder / f"{name}.nii.gz").write_bytes(b"")
    with pytest.raises(
        ConfigError, match=r"expected a dataset.json .* or each of the channels t1, t2-flair"
    ):
        scans_in(TWO, [str(folder)])
    described = tmp_path / "dataset.json"
    described.write_text('{"channel_names": {"0": "T2 FLAIR", "1": "ADC", "2": "T1"}}')
    found = scans_in(TWO, [str(folder)])
    assert [{name: path.name for name, path in each.items()} for each in found] == [
        {"t1": f"{case}_0002.nii.gz", "t2-flair": f"{case}_0000.nii.gz"} for case in ("p_1", "q")
    ]
    assert names(masks_of(Path("out"), found, 3)) == ["p_1.nii.gz", "q.nii.gz"]
    (folder / "q_0002.nii.gz").unlink()
    with pytest.raises(ConfigError, match="q: expected a file of this name for each channel"):
        scans_in(TWO, [str(folder)])
    lenient = TWO.model_copy(update={"missing_channel": "zeros"})
    assert [sorted(each) for each in scans_in(lenient, [str(folder)])] == [
        ["t1", "t2-flair"],
        ["t2-flair"],
    ]
    (folder / "mask.nii.gz").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"mask.nii.gz: expected a name like CASE_0000.nii.gz"):
        scans_in(TWO, [str(folder)])


def test_numbers_of_channels_that_the_study_does_not_name_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "p_0000.nii.gz").write_bytes(b"")
    for names_of, got in (('{"0": "T1", "1": "T2"}', "got t1, t2;"), ('{"0": "T1"}', "got t1;")):
        (tmp_path / "dataset.json").write_text(f'{{"channel_names": {names_of}}}')
        with pytest.raises(ConfigError, match=rf"expected the channels t1, t2-flair, {got}"):
            scans_in(TWO, [str(tmp_path)])
    lenient = TWO.model_copy(update={"missing_channel": "zeros"})
    assert scans_in(lenient, [str(tmp_path)]) == [{"t1": tmp_path / "p_0000.nii.gz"}]
    (tmp_path / "dataset.json").write_text('{"channel_names": ["T1"]}')
    with pytest.raises(ConfigError, match="expected channel_names: {"):
        scans_in(TWO, [str(tmp_path)])
