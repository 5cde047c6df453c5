import csv
import json
from pathlib import Path

import numpy as np
import pytest
from coordinator import Coordinator
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.settings.tasks import ClassificationConfig, SegmentationConfig
from privacy.accounting import PrivacyEvent
from privacy.noise.source import NoiseSource
from sites.cohort import Patient
from sites.evaluation.survey import _kept, bins, drift, histograms_of, noised, suppressed
from sites.exchange.exchange import Exchange
from sites.hospital import Hospital
from sites.imaging.intake import Scan
from sites.imaging.profile import profile_of
from sites.imaging.reading import Reading

SHAPES = SegmentationConfig(kind="segmentation", dims=3, labels={1: "head", 2: "tail"})
CLASSES = ClassificationConfig(kind="classification", dims=3, labels={0: "well", 1: "ill"})


def patient(name: str, targets: list[np.ndarray], spacing: float = 1.0, level: float = 50) -> Patient:
    readings = []
    for target in targets:
        image = np.random.default_rng(len(name)).normal(level, 10, (10, 10, 10)).astype(np.float32)
        profile = profile_of(Scan(image[None], target, (1.0, spacing, 3.0)))
        readings.append(Reading(profile, (), lambda: None))
    return Patient(name, tuple(readings))


def shape(head: int, tail: int = 0) -> np.ndarray:
    target = np.zeros(1000, np.int64)
    target[:head], target[head : head + tail] = 1, 2
    return target.reshape(10, 10, 10)


def test_a_patient_adds_one_to_each_histogram_however_many_scans_he_has() -> None:
    one, three = patient("a", [shape(200)]), patient("b", [shape(200), shape(5), shape(0)])
    for each in (one, three):
        found = histograms_of(each, SHAPES)
        assert {name: len(histogram) for name, histogram in found.items()} == bins(SHAPES)
        for histogram in found.values():
            assert histogram.sum() == pytest.approx(1)
            assert (histogram >= 0).all()
            assert np.linalg.norm(histogram) <= 1 + 1e-12
    volume = histograms_of(three, SHAPES)["volume_ml/head"]
    assert sorted(volume)[-3:] == pytest.approx([1 / 3] * 3)  # 0.6 ml, 0.015 ml, none


def test_volumes_are_in_ml_by_the_voxels_sides() -> None:
    found = histograms_of(patient("a", [shape(200, 50)], spacing=2.0), SHAPES)
    assert found["volume_ml/head"].argmax() == 4  # 200 x 6 mm3 = 1.2 ml, from 1 to 3
    assert found["volume_ml/tail"].argmax() == 3  # 0.3 ml, from 0.3 to 1
    assert found["spacing_mm/finest"].argmax() == 2
    assert found["spacing_mm/coarsest"].argmax() == 4


def test_a_cell_of_few_patients_is_not_told_nor_can_it_be_found_from_the_total() -> None:
    many = [patient(f"w{i}", [np.asarray(0)]) for i in range(40)]
    few = [patient(f"i{i}", [np.asarray(1)]) for i in range(4)]
    published = suppressed([*many, *few], CLASSES, smallest=10)
    assert published["class"] == [None, None]  # 40 well patients would reveal the 4 ill ones
    assert published["scans"] == [1.0, None, None, None]
    enough = [*few, *(patient(f"j{i}", [np.asarray(1)]) for i in range(8))]
    assert suppressed([*many, *enough], CLASSES, smallest=10)["class"] == [0.75, 0.25]


def test_of_classes_that_exclude_each_other_the_last_can_not_be_found_from_the_others() -> None:
    task = ClassificationConfig(kind="classification", dims=3, labels={0: "a", 1: "b", 2: "c"})
    counts = {0: 40, 1: 30, 2: 3}
    everybody = [patient(f"{c}{i}", [np.asarray(c)]) for c, n in counts.items() for i in range(n)]
    assert suppressed(everybody, task, smallest=10)["class"] == [0.55, None, None]


@given(
    arrays(np.float64, st.tuples(st.integers(1, 40), st.integers(1, 8)),
           elements=st.sampled_from([0.0, 0.0, 0.25, 1.0])),
    st.integers(3, 12),
)  # fmt: skip
def test_who_has_a_part_in_what_is_left_out_is_nobody_or_enough(
    table: np.ndarray, smallest: int
) -> None:
    kept = _kept(table, smallest)
    assert ((table > 0).sum(0)[kept] >= smallest).all()
    hidden = (table[:, ~kept] > 0).any(1).sum()
    assert hidden == 0 or hidden >= smallest or not kept.any()


def test_rounded_shares_fit_many_numbers_of_patients() -> None:
    def published(count: int) -> object:
        everybody = [patient("x" * (i % 7), [np.asarray(int(i % 3 == 0))]) for i in range(count)]
        return suppressed(everybody, CLASSES, smallest=3)["class"]

    assert published(60) == published(61) == published(62) == [0.65, 0.35]


def test_noise_has_the_size_that_the_event_states_and_zeroing_a_patient_is_within_it() -> None:
    everybody = [patient(f"p{i}", [np.asarray(i % 2)]) for i in range(30)]
    count = len(bins(CLASSES))
    draws = [
        noised(everybody, CLASSES, declared=50, event=PrivacyEvent(0.5, 1.0, 1),
               noise=NoiseSource.for_test(seed, ""))["class"][0]
        for seed in range(300)
    ]  # fmt: skip
    assert np.mean(draws) == pytest.approx(15 / 50, abs=0.01)
    assert np.std(draws) == pytest.approx(0.5 * count**0.5 / 50, rel=0.15)
    whole = histograms_of(everybody[0], CLASSES)
    assert np.sqrt(sum(np.square(h).sum() for h in whole.values())) <= count**0.5 + 1e-12


def test_a_change_of_scanner_is_drift_and_the_same_scans_are_none() -> None:
    before = [patient(f"p{i}", [shape(200)]) for i in range(20)]
    brighter = [patient(f"p{i}", [shape(200)], level=3000) for i in range(20)]
    first, again, other = (suppressed(each, SHAPES, smallest=5) for each in (before, before, brighter))
    assert set(drift(first, again).values()) == {0.0}
    shares = [[0.9, 0.1, None], [0.1, 0.9, None]]
    assert drift({"intensity": shares[0]}, {"intensity": shares[1]}) == {"intensity": pytest.approx(0.8)}
    assert first["intensity"] != other["intensity"]


def test_histograms_that_can_not_be_compared_have_no_drift() -> None:
    assert drift({"scans": [None, 1.0]}, {"scans": [1.0, None]}) == {}
    assert drift({"scans": [0.0, 0.0]}, {"scans": [0.5, 0.5]}) == {}
    assert drift({"scans": [0.5, 0.5]}, {"other": [0.5, 0.5]}) == {}


def without_labels(ward: Path) -> None:
    """Take the labels out of a hospital's list."""
    table = Hospital.open(ward).data / "dataset.json"
    listed = [case["image"] for case in json.loads(table.read_text())["training"]]
    with (table.parent / "subjects.csv").open(newline="") as file:
        subjects = {row["image"]: row["subject"] for row in csv.DictReader(file)}
    table.unlink()
    rows = [f"{subjects[image]},{image}" for image in listed]
    (table.parent / "cases.csv").write_text("\n".join(["patient,image", *rows]))


def test_scans_without_labels_can_be_surveyed_and_nothing_else(
    tmp_path: Path, small_wards, study_with, edit
) -> None:
    ward = small_wards(tmp_path / "wards") / "east"
    edit(ward / "site.yaml", statistics={"kind": "suppressed", "smallest": 3})
    coordinator = Coordinator(
        study_with(), Exchange(str(tmp_path / "exchange")), Ed25519PrivateKey.generate()
    )
    labelled = coordinator.order(Hospital.open(ward), "survey", 0).histograms
    without_labels(ward)
    coordinator.run = "small-2"
    bare = coordinator.order(Hospital.open(ward), "survey", 0).histograms
    of_labels = {name for name in bare if name.startswith("volume_ml/")}
    assert of_labels
    assert {bin for name in of_labels for bin in bare[name]} <= {None, 0.0}
    assert {n: v for n, v in bare.items() if n not in of_labels} == {
        n: v for n, v in labelled.items() if n not in of_labels
    }
    refused = coordinator.order(Hospital.open(ward), "join", 0)
    assert "list has no labels: it can be surveyed, but not train or evaluate" in refused.reason


@pytest.mark.parametrize(
    ("limits", "published"), [({}, 2), ({"per_week": 9}, 3), ({"per_week": 9, "per_study": 1}, 1)]
)
def test_noised_surveys_end_at_the_number_that_the_policy_allows_a_study_and_a_week(
    limits: dict[str, int], published: int, tmp_path: Path, small_wards, study_with, edit
) -> None:
    ward = small_wards(tmp_path / "wards") / "east"
    edit(ward / "site.yaml", statistics={"kind": "noised", "epsilon": 0.5, **limits})
    hospital = Hospital.open(ward, test_noise=1)
    exchange = Exchange(str(tmp_path / "exchange"))
    coordinator = Coordinator(study_with(), exchange, Ed25519PrivateKey.generate())
    kinds = []
    for number in range(4):
        coordinator.run = f"survey-{number}"
        kinds.append(coordinator.order(hospital, "survey", 0).statistics_policy)
    assert kinds == ["noised"] * published + ["withheld"] * (4 - published)
    assert len(hospital.ledger.charges()) == published
