"""A model on an image of its own, as a person asks for it, and as a MONAI bundle does."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from homes import moved
from PIL import Image
from scanner import XRAY, write_flat, write_series, write_slice
from typer.testing import CliRunner

import wardround
from flows import served_model
from flows.cli.main import app
from flows.runs.run import Run
from flows.servers.environment import mlflow_server
from flows.servers.loopback import running
from flows.serving import bundle, prediction
from models import params as P
from models.checkpoints import to_bytes
from models.files import sha256_of
from models.settings.tasks import SegmentationConfig
from sites.imaging.intake import read_case
from sites.listing.cases import CaseFiles
from sites.yaml_files import ConfigError


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    copied = moved(finished, tmp_path / "home")
    monkeypatch.chdir(copied.home.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # a run's model needs no server
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return copied


def call(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def bundled(folder: Path, image: Path) -> str:
    """Execute a bundle in a fresh process; return what it printed."""
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    done = subprocess.run(
        [*command, "--bundle_root", ".", "--image", str(image)],
        cwd=folder, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def scan_of(ward: Path) -> Path:
    return min((ward / "imagesTr").glob("*.nii.gz"))


def test_a_mask_lies_on_the_images_own_grid_and_the_bundle_says_the_same(run: Run) -> None:
    image = scan_of(run.home.folder / "wards" / "south")  # PIR on disk
    assert call("predict", run.name, image, "-o", "mask.nii.gz").exit_code == 0
    mask, original = nib.load("mask.nii.gz"), nib.load(image)
    assert mask.shape == original.shape and np.array_equal(mask.affine, original.affine)
    assert call("export-bundle", run.name, "bundle").exit_code == 0
    bundled(Path("bundle"), image.resolve())
    (found,) = Path("bundle/output").glob("*.nii.gz")
    other = nib.load(found)
    assert np.allclose(other.affine, original.affine)
    assert np.array_equal(np.asarray(other.dataobj).squeeze(), np.asarray(mask.dataobj))
    assert not [p for p in Path("bundle").rglob("*") if p.suffix in (".pt", ".pth", ".pkl")]
    assert call("export-bundle", run.name, "bundle").exit_code == 2  # it has files in it
    assert call("predict", "bundle", image, "-o", "again.nii.gz").exit_code == 0
    assert np.array_equal(np.asarray(nib.load("again.nii.gz").dataobj), np.asarray(mask.dataobj))


def test_a_model_is_loaded_in_five_lines_from_a_run_and_from_a_bundle(run: Run) -> None:
    image = nib.load(scan_of(run.home.folder / "wards" / "north")).get_fdata(dtype=np.float32)
    assert call("export-bundle", run.name, "bundle").exit_code == 0
    ways = [wardround.load_model(named) for named in (run.name, "bundle")]
    answers = [way.probabilities(image, spacing_mm=(1.0, 1.0, 1.0)) for way in ways]
    assert answers[0].shape == (3, *image.shape)
    assert torch.equal(*answers)
    assert type(ways[0].network).__module__.startswith("monai.")


def test_monai_verifies_a_bundles_metadata_and_finds_its_network(run: Run, tmp_path: Path) -> None:
    from monai.bundle import ConfigParser, verify_metadata

    assert call("export-bundle", run.name, "bundle").exit_code == 0
    # what MONAI's schema asks for, without its download: where it lies already nothing is fetched
    asked = ("version", "monai_version", "pytorch_version", "numpy_version", "task", "description",
             "authors", "copyright", "network_data_format", "required_packages_version")  # fmt: skip
    schema = {
        "type": "object",
        "required": list(asked),
        "properties": {"schema": {"pattern": "^https://.*json$"}},
    }
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    verify_metadata("bundle/configs/metadata.json", filepath=str(tmp_path / "schema.json"))
    parser = ConfigParser()
    parser.read_config("bundle/configs/inference.json")
    built = parser.get_parsed_content("network_def")
    assert type(built).__name__ == run.study.network.name


@pytest.mark.parametrize(
    "preprocessing",
    [
        {"spacing_mm": [1.5, 1.5, 2.5], "crop": "foreground"},
        pytest.param(
            {"fit": {"kind": "patches", "overlap": 0.5}, "intensity": {"kind": "percentiles"}},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"fit": "resize", "intensity": {"kind": "window", "centre": 300, "width": 400}},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["spacing and crop", "patches", "resize"],
)
def test_the_bundle_prepares_an_image_as_the_hospitals_do(
    tmp_path: Path, study_with, preprocessing: dict[str, object]
) -> None:
    study = study_with(preprocessing={"shape": [16, 16, 16], **preprocessing})
    torch.manual_seed(1)
    network = study.network.build(study.task.dims, study.task.out_channels)
    model = served_model.ServedModel(study, network.eval())
    rng = np.random.default_rng(0)
    voxels = np.cumsum(rng.normal(300, 60, (21, 18, 23)), axis=0).astype(np.float32) / 10
    affine = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -3], [0, 0, 2.0, 7], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "scan.nii.gz")
    mask = prediction.mask_of(model, {"image": tmp_path / "scan.nii.gz"}).nifti
    weights = to_bytes(P.of(network))
    bundle.write(model, weights, sha256_of(weights), tmp_path / "bundle")
    bundled(tmp_path / "bundle", tmp_path / "scan.nii.gz")
    (found,) = (tmp_path / "bundle" / "output").glob("*.nii.gz")
    own, other = np.asarray(mask.dataobj), np.asarray(nib.load(found).dataobj).squeeze()
    assert len(np.unique(own)) > 1
    assert np.mean(own != other) < 2e-3  # a voxel on a border may be rounded otherwise


@pytest.mark.slow
def test_a_classifiers_bundle_tells_the_same_probabilities(tmp_path: Path, study_with) -> None:
    study = study_with(
        task={"kind": "classification", "dims": 2, "labels": {0: "well", 1: "ill"}},
        network={"name": "resnet10", "width": 8}, preprocessing={"shape": [32, 32]},
        distillation=None, export="weights", promotion=None,
    )  # fmt: skip
    network = study.network.build(2, 2)
    model = served_model.ServedModel(study, network.eval())
    picture = np.random.default_rng(0).integers(0, 255, (40, 36)).astype(np.uint8)
    nib.save(nib.Nifti1Image(np.stack([picture, picture], -1), np.eye(4)), tmp_path / "deep.nii.gz")
    Image.fromarray(picture).save(tmp_path / "flat.png")
    with pytest.raises(ConfigError, match="expected 2 dimensions, got 3"):
        prediction.classes_of(model, {"image": tmp_path / "deep.nii.gz"})
    said = prediction.classes_of(model, {"image": tmp_path / "flat.png"})
    assert sum(said.values()) == pytest.approx(1)
    weights = to_bytes(P.of(network))
    bundle.write(model, weights, sha256_of(weights), tmp_path / "bundle")
    printed = bundled(tmp_path / "bundle", tmp_path / "flat.png")
    (line,) = [line for line in printed.splitlines() if line.startswith("{")]
    assert json.loads(line) == pytest.approx(said, abs=1e-5)


def test_bad_input_is_one_message_and_nothing_is_written(run: Run) -> None:
    image = scan_of(run.home.folder / "wards" / "east")
    Path("broken.nii.gz").write_bytes(image.read_bytes()[:200])
    Path("kept.nii.gz").write_bytes(image.read_bytes())
    Path("other.nii").write_bytes(b"somebody's")
    voxels = np.asarray(nib.load(image).dataobj, np.float32)
    for name, changed in (
        ("flat", np.full_like(voxels, 7)), ("four", voxels[..., None] * [1, 2]),
        ("hole", np.where(np.arange(voxels.size).reshape(voxels.shape) == 99, np.nan, voxels)),
    ):  # fmt: skip
        nib.save(nib.Nifti1Image(changed.astype(np.float32), np.eye(4)), f"{name}.nii.gz")
    for arguments, message in (
        ((f"{run.name}:9", image, "-o", "mask.nii.gz"), "expected a recorded round"),
        ((run.name, "nothing.nii.gz", "-o", "mask.nii.gz"), "a file is missing"),
        ((run.name, "broken.nii.gz", "-o", "mask.nii.gz"), "broken.nii.gz"),
        ((run.name, image, "-o", "mask.png"), "ends in .nii or .nii.gz"),
        ((run.name, image), "makes a mask; name its file"),
        ((run.name, "hole.nii.gz", "-o", "mask.nii.gz"), "the image is empty, or has NaN or infinite"),
        ((run.name, "flat.nii.gz", "-o", "mask.nii.gz"), "the image is constant"),
        ((run.name, "four.nii.gz", "-o", "mask.nii.gz"), "expected 3 dimensions, got 4"),
        ((run.name, "kept.nii.gz", "-o", "kept.nii.gz"), "and it exists"),
        ((run.name, image, "-o", "other.nii"), "other.nii: expected the name of a new file"),
    ):
        result = call("predict", *arguments)
        assert result.exit_code == 2 and message in result.stderr, result.output
    assert not Path("mask.nii.gz").exists() and not Path("mask.png").exists()
    assert Path("kept.nii.gz").read_bytes() == image.read_bytes()
    assert Path("other.nii").read_bytes() == b"somebody's"


def test_a_name_that_nothing_has_is_told_from_a_store_that_can_not_be_asked(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("predict", "no-such-run", scan_of(run.home.folder / "wards" / "east"), "-o", "mask.nii.gz")
    result = call(*asked)
    assert result.exit_code == 4 and "MLflow did not return version candidate" in result.stderr
    with running(mlflow_server(run.home)) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        result = call(*asked)
    assert result.exit_code == 2 and "expected a model's folder" in result.stderr


def test_a_model_whose_weights_were_changed_is_not_used(run: Run) -> None:
    record = run.records()[-1]
    Path("model").mkdir()
    served_model.write(Path("model"), run.study, run.model(record))
    path = Path("model") / served_model.WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    result = call("predict", "model", scan_of(Path("wards/east")), "-o", "mask.nii.gz")
    assert result.exit_code == 1 and "sha256" in result.stderr


def model_of_threshold(folder: Path, study_with, dims: int) -> Path:
    """Write an untrained model of a study of so many dimensions; return its folder."""
    study = study_with(
        task={"kind": "segmentation", "dims": dims, "labels": {1: "a", 2: "b"}},
        preprocessing={"shape": [16] * dims}, distillation=None, export="weights",
    )  # fmt: skip
    torch.manual_seed(0)
    folder.mkdir()
    served_model.write(folder, study, P.of(study.network.build(dims, study.task.out_channels)))
    return folder


@pytest.mark.parametrize(
    ("shape", "dims"),
    [((20, 18, 12), 3), ((20, 18, 12, 1), 3), ((20, 18), 2), ((20, 18, 1), 2), ((20, 18, 1, 1), 2)],
)
def test_a_mask_has_its_images_shape_both_places_their_codes_and_units(
    shape: tuple[int, ...], dims: int, tmp_path: Path, study_with
) -> None:
    """As after a registration: qform and sform differ by a rotation, and viewers go by either."""
    model = model_of_threshold(tmp_path / "model", study_with, dims)
    rng = np.random.default_rng(0)
    qform = np.array([[0, -2.0, 0, 9], [1.5, 0, 0, -12], [0, 0, 3, 5], [0, 0, 0, 1]])
    c, s = np.cos(0.2), np.sin(0.2)
    sform = np.array([[c, -s, 0, 12], [s, c, 0, -4], [0, 0, 1, 3], [0, 0, 0, 1]]) @ qform
    image = nib.Nifti1Image(rng.normal(size=shape).astype(np.float32), sform)
    image.set_qform(qform, 1)
    image.set_sform(sform, 4)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "scan.nii.gz")
    done = call("predict", model, tmp_path / "scan.nii.gz", "-o", tmp_path / "mask.nii.gz")
    assert done.exit_code == 0, done.output
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert mask.shape == shape
    for field in ("qform_code", "sform_code", "xyzt_units"):
        assert mask.header[field] == image.header[field]
    assert np.allclose(mask.get_sform(), image.get_sform(), atol=1e-5)
    assert np.allclose(mask.get_qform(), image.get_qform(), atol=1e-5)
    assert len(np.unique(np.asarray(mask.dataobj))) > 1


def test_a_mask_of_a_link_and_of_one_image_of_many_is_made(tmp_path: Path, study_with) -> None:
    """Data sets of DataLad hold links into a store."""
    model = model_of_threshold(tmp_path / "model", study_with, 3)
    values = np.random.default_rng(0).normal(size=(2, 20, 18, 12)).astype(np.float32)
    (tmp_path / "store").mkdir()
    (tmp_path / "set").mkdir()
    nib.save(nib.Nifti1Image(values[0], np.eye(4)), tmp_path / "store" / "key.nii.gz")
    (tmp_path / "set" / "scan.nii.gz").symlink_to("../store/key.nii.gz")
    np.savez(tmp_path / "many.npz", images=values)
    for number, scan in enumerate(("set/scan.nii.gz", "many.npz#images/0")):
        out = tmp_path / f"{number}.nii.gz"
        done = call("predict", model, tmp_path / scan, "-o", out)
        assert done.exit_code == 0, done.output
    first, second = (np.asarray(nib.load(tmp_path / f"{n}.nii.gz").dataobj) for n in range(2))
    assert np.array_equal(first, second)


def test_the_mask_of_a_dicom_series_is_a_segmentation_with_the_models_name_and_version(
    tmp_path: Path, study_with
) -> None:
    model = model_of_threshold(tmp_path / "model", study_with, 3)
    write_series(tmp_path / "series")
    done = call("predict", model, tmp_path / "series", "-o", tmp_path / "mask.nii.gz")
    assert done.exit_code == 0, done.output
    mask = np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj)
    assert len(np.unique(mask)) > 1
    segmentation = pydicom.dcmread(tmp_path / "mask.dcm")
    (algorithm,) = segmentation.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
    described = json.loads((tmp_path / "model" / "model.json").read_text())
    assert algorithm.AlgorithmName == described["study"]["name"]
    assert algorithm.AlgorithmVersion == described["sha256"]
    assert segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3"
    case = CaseFiles("c", "p", "series", "mask.dcm")
    labels = described["study"]["task"]["labels"]
    task = SegmentationConfig(kind="segmentation", dims=3, labels={int(k): v for k, v in labels.items()})
    scan, _ = read_case(tmp_path, case, task)  # as a hospital reads what its radiologists drew
    assert np.array_equal(scan.target, mask)


def test_a_series_whose_directions_differ_by_rounding_has_a_segmentation_too(
    tmp_path: Path, study_with
) -> None:
    model = model_of_threshold(tmp_path / "model", study_with, 3)
    for number in range(6):
        turn = [1, 2e-6 * number, 0, 0, 1, 0]
        write_slice(tmp_path / "series", number, [-5.0, 7.0, 10.0 + 3 * number], orientation=turn)
    done = call("predict", model, tmp_path / "series", "-o", tmp_path / "mask.nii.gz")
    assert done.exit_code == 0, done.output
    mask = np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj)
    task = SegmentationConfig(kind="segmentation", dims=3, labels={1: "a", 2: "b"})
    scan, _ = read_case(tmp_path, CaseFiles("c", "p", "series", "mask.dcm"), task)
    assert np.array_equal(scan.target, mask)


def test_several_scans_and_a_folder_of_them_are_predicted_in_one_go(tmp_path: Path, study_with) -> None:
    model = model_of_threshold(tmp_path / "model", study_with, 3)
    values = np.random.default_rng(0).normal(size=(3, 20, 18, 12)).astype(np.float32)
    (tmp_path / "scans").mkdir()
    for number, each in enumerate(values):
        nib.save(nib.Nifti1Image(each, np.eye(4)), tmp_path / "scans" / f"{number}.nii.gz")
    done = call("predict", model, tmp_path / "scans", "-o", tmp_path / "masks")
    assert done.exit_code == 0, done.output
    assert sorted(p.name for p in (tmp_path / "masks").iterdir()) == [f"{n}.nii.gz" for n in range(3)]
    (tmp_path / "scans" / "1.nii.gz").write_bytes(b"")
    done = call("predict", model, tmp_path / "scans", "-o", tmp_path / "others")
    assert done.exit_code == 2 and "1.nii.gz" in done.output
    assert len(list((tmp_path / "others").iterdir())) == 2


def test_the_mask_of_a_picture_is_a_picture(tmp_path: Path, study_with) -> None:
    model = model_of_threshold(tmp_path / "model", study_with, 2)
    picture = np.random.default_rng(0).integers(0, 255, (40, 32), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    done = call("predict", model, tmp_path / "a.png", "-o", tmp_path / "mask.png")
    assert done.exit_code == 0, done.output
    mask = np.asarray(Image.open(tmp_path / "mask.png"))
    assert mask.shape == picture.shape and set(np.unique(mask)) <= {0, 1, 2} and mask.any()
    done = call("predict", model, tmp_path / "a.png", "-o", tmp_path / "mask.jpg")
    assert done.exit_code == 2 and ".nii or .nii.gz or .png" in done.output


def test_a_tilted_series_and_an_xray_have_a_segmentation_too(tmp_path: Path, study_with) -> None:
    volumes = model_of_threshold(tmp_path / "volumes", study_with, 3)
    for number in range(6):
        place = [-5.0, round(7 + 3 * number * np.tan(np.radians(1)), 4), 10.0 + 3 * number]
        write_slice(tmp_path / "tilted", number, place)
    flat = model_of_threshold(tmp_path / "flat", study_with, 2)
    pixels = np.random.default_rng(0).integers(0, 4000, (40, 32)).astype(np.uint16)
    write_flat(tmp_path / "xray", pixels, **XRAY)
    for model, scan, out, dims in ((volumes, "tilted", "t.nii.gz", 3), (flat, "xray", "x.png", 2)):
        done = call("predict", model, tmp_path / scan, "-o", tmp_path / out)
        assert done.exit_code == 0, done.output
        assert "no DICOM Segmentation" not in done.output
        seg = f"{out[0]}.dcm"
        dataset = pydicom.dcmread(tmp_path / seg)
        names = [each.SegmentLabel for each in dataset.SegmentSequence]
        task = SegmentationConfig(kind="segmentation", dims=dims, labels=dict(enumerate(names, start=1)))
        found, _ = read_case(tmp_path, CaseFiles("c", "p", scan, seg), task)
        path = tmp_path / out
        mask = np.asarray(Image.open(path) if dims == 2 else nib.load(path).dataobj)
        assert mask.any() and np.array_equal(found.target > 0, mask > 0)
