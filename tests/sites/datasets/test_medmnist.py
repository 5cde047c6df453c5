from pathlib import Path

import numpy as np
import pytest

from models.settings.tasks import ClassificationConfig
from sites.datasets.medmnist import make_hospitals
from sites.datasets.public_sets import PICTURES
from sites.hospital import Hospital
from sites.imaging.intake import read_scan
from sites.listing.listing import read_listing
from sites.yaml_files import ConfigError

PNEUMONIA = PICTURES["pneumonia"]
TASK = ClassificationConfig(kind="classification", dims=2, labels=dict(PNEUMONIA.labels))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (600, 28, 28), dtype=np.uint8)
    labels = (np.arange(600) % 3 > 0).astype(np.uint8)[:, None]
    np.savez_compressed(tmp_path / "set.npz", train_images=images, train_labels=labels)
    return tmp_path / "set.npz"


def shares(wards: list[Path]) -> list[float]:
    classes = [[int(c.label) for c in read_listing(ward).cases] for ward in wards]
    return [float(np.mean(values)) for values in classes]


def test_every_picture_of_the_training_part_is_dealt_to_one_hospital(
    source: Path, tmp_path: Path
) -> None:
    wards = make_hospitals(source, tmp_path / "wards", 3, PNEUMONIA, skew=1.0, seed=1)
    listings = [read_listing(ward) for ward in wards]
    patients = [case.patient for listing in listings for case in listing.cases]
    assert len(patients) == len(set(patients)) == 600
    assert all(listing.labels == PNEUMONIA.labels for listing in listings)
    arrays = np.load(source)
    for ward, listing in zip(wards, listings, strict=True):
        assert Hospital.open(ward).policy.plain_studies == "allow"
        scan = read_scan(ward, listing.cases[0], TASK)
        number = int(listing.cases[0].patient.removeprefix("patient-"))
        assert np.array_equal(scan.image, arrays["train_images"][number][None])
        assert scan.target == arrays["train_labels"][number]


def test_a_small_concentration_makes_hospitals_unlike(source: Path, tmp_path: Path) -> None:
    alike = shares(make_hospitals(source, tmp_path / "a", 3, PNEUMONIA, skew=1000.0, seed=0))
    unlike = shares(make_hospitals(source, tmp_path / "b", 3, PNEUMONIA, skew=0.3, seed=2))
    assert np.ptp(alike) < 0.15
    assert np.ptp(unlike) > 0.3


def test_the_same_seed_deals_the_same_and_what_is_there_stays(source: Path, tmp_path: Path) -> None:
    first, again, other = (
        make_hospitals(source, tmp_path / name, 3, PNEUMONIA, skew=1.0, seed=seed)
        for name, seed in (("a", 1), ("c", 1), ("d", 3))
    )
    lists = [[(ward / "cases.csv").read_text() for ward in wards] for wards in (first, again, other)]
    assert lists[0] == lists[1] != lists[2]
    make_hospitals(source, tmp_path / "a", 3, PNEUMONIA, skew=1.0, seed=3)
    assert [(ward / "cases.csv").read_text() for ward in first] == lists[0]


@pytest.mark.parametrize("content", [b"", b"PK", None])
def test_a_file_that_is_no_such_set_is_an_error_that_names_it(
    content: bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / "other.npz"
    if content is None:
        np.savez(path, train_images=np.zeros((3, 8)), train_labels=np.array([0, 1, 5]))
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"other\.npz: expected"):
        make_hospitals(path, tmp_path / "wards", 2, PNEUMONIA, skew=1.0, seed=0)


def test_hospitals_that_would_be_too_small_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 20 patients for each of 40"):
        make_hospitals(source, tmp_path / "wards", 40, PNEUMONIA, skew=0.1, seed=0)
    assert not (tmp_path / "wards").exists()


def test_several_labels_of_a_picture_and_none_are_listed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((400, 14)) < 0.1).astype(np.uint8)
    images = rng.integers(0, 255, (400, 28, 28), dtype=np.uint8)
    np.savez_compressed(tmp_path / "chest.npz", train_images=images, train_labels=labels)
    wards = make_hospitals(
        tmp_path / "chest.npz", tmp_path / "wards", 2, PICTURES["chest"], skew=5.0, seed=0
    )
    task = ClassificationConfig(
        kind="classification", dims=2, labels=dict(PICTURES["chest"].labels), multi_label=True
    )
    seen = 0
    for ward in wards:
        for case in read_listing(ward).cases:
            number = int(case.patient.removeprefix("patient-"))
            assert read_scan(ward, case, task).target.tolist() == labels[number].tolist()
            seen += 1
    assert seen == 400


def test_volumes_become_nifti(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (60, 28, 28, 28), dtype=np.uint8)
    labels = (np.arange(60) % 2)[:, None]
    np.savez_compressed(tmp_path / "set.npz", train_images=images, train_labels=labels)
    (ward,) = make_hospitals(
        tmp_path / "set.npz", tmp_path / "wards", 1, PICTURES["nodule3d"], skew=5.0, seed=0
    )
    task = ClassificationConfig(kind="classification", dims=3, labels=dict(PICTURES["nodule3d"].labels))
    case = read_listing(ward).cases[7]
    scan = read_scan(ward, case, task)
    assert np.array_equal(scan.image, images[int(case.patient.removeprefix("patient-"))][None])
    assert scan.target == int(case.label)


def test_a_set_in_colour_becomes_hospitals_with_pictures_in_colour(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (300, 28, 28, 3), dtype=np.uint8)
    labels = (np.arange(300) % 7).astype(np.uint8)[:, None]
    np.savez_compressed(tmp_path / "set.npz", train_images=images, train_labels=labels)
    derma = PICTURES["derma"]
    (ward, _) = make_hospitals(tmp_path / "set.npz", tmp_path / "wards", 2, derma, skew=10, seed=0)
    case = read_listing(ward).cases[0]
    task = ClassificationConfig(kind="classification", dims=2, labels=dict(derma.labels), channels="rgb")
    scan = read_scan(ward, case, task)
    number = int(case.patient.removeprefix("patient-"))
    assert np.array_equal(scan.image, np.moveaxis(images[number], -1, 0))
    with pytest.raises(ConfigError, match="expected grey pictures"):
        make_hospitals(tmp_path / "set.npz", tmp_path / "x", 2, PNEUMONIA, skew=10, seed=0)
    with pytest.raises(ConfigError, match="expected pictures in colour"):
        np.savez(tmp_path / "grey.npz", train_images=images[..., 0], train_labels=labels)
        make_hospitals(tmp_path / "grey.npz", tmp_path / "x", 2, derma, skew=10, seed=0)
