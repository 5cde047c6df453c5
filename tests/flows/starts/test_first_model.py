"""Starts of small public sets, maps and files, all made on the spot; the code is the real one."""

import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from public_cases import labelled
from safetensors.torch import save_file

from flows.runs.paths import Home
from flows.starts import first_model as starts
from flows.starts.first_model import check_start, first_model, public_contents, untrained
from flows.starts.public_sets import NoStart, public_set
from flows.starts.tolerance import DRAWS, tolerance
from models import params as P
from models.checkpoints import to_bytes
from models.files import sha256_of
from models.objectives import build_task
from models.params import last_layers
from sites.study import Study

RNG = np.random.default_rng(0)
SYNTHETIC = {"kind": "synthetic", "steps": 3, "images": 8}


def mapped(folder: Path, values: tuple[int, ...] = (0, 1, 2, 7)) -> Path:
    labels = np.full((24, 24, 24), values[0], np.uint8)
    labels[4:20, 4:20, 4:20] = values[3]
    labels[7:12, 7:17, 7:17], labels[12:17, 7:17, 7:17] = values[1], values[2]
    folder.mkdir(parents=True)
    nib.save(nib.Nifti1Image(labels, np.eye(4)), folder / "a.nii.gz")
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def same(a: P.Params, b: P.Params) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_without_a_start_the_first_model_is_drawn_from_the_seed(home: Home, study_with) -> None:
    found = first_model(study_with(), home)
    assert same(found.params, P.of(untrained(study_with())))
    assert found.record.stages == () and found.record.tolerance is None


def test_stages_follow_one_another_and_each_is_recorded_with_what_it_reached(
    home: Home, study_with
) -> None:
    mapped(home.public / "atlas")
    labelled(home.public / "twenty", 4)
    stages = [
        SYNTHETIC,
        {"kind": "label_maps", "folder": "atlas", "steps": 3, "images": 8},
        {"kind": "public", "folder": "twenty", "steps": 3, "batch": 2},
    ]
    found = first_model(study_with(start=stages), home)
    kinds = [stage.kind for stage in found.record.stages]
    assert kinds == ["synthetic", "label_maps", "public"]
    assert found.record.stages[-1].model_sha256 == sha256_of(to_bytes(found.params))
    assert [stage.measured_on for stage in found.record.stages] == [
        "drawn images", "drawn images", "its own training cases",
    ]  # fmt: skip
    assert all(0 <= stage.reached["dice"] <= 1 for stage in found.record.stages)
    assert [bool(stage.source) for stage in found.record.stages] == [False, True, True]
    assert found.record.tolerance > 0


def test_one_stage_needs_no_list_and_the_former_key_says_what_to_write(study_with) -> None:
    assert study_with(start=SYNTHETIC) == study_with(start=[SYNTHETIC])
    with pytest.raises(ValueError, match="write `start:"):
        study_with(prior={"steps": 3})


def test_a_start_is_made_again_to_the_same_bits_on_any_number_of_threads(home: Home, study_with) -> None:
    labelled(home.public / "twenty", 3)
    study = study_with(start=[SYNTHETIC, {"kind": "public", "folder": "twenty", "steps": 2}])
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(first_model(study, home))
            shutil.rmtree(home.state / "starts")
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert same(found[0].params, found[1].params) and found[0].record == found[1].record


def test_a_start_is_remembered_until_anything_that_it_depends_on_changes(
    home: Home, study_with, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = labelled(home.public / "twenty", 3)
    study = study_with(start={"kind": "public", "folder": "twenty", "steps": 2})
    first = first_model(study, home)
    with monkeypatch.context() as patch:
        patch.setattr(starts, "pretrain", None)  # whoever trains fails
        assert same(first_model(study, home).params, first.params)
    (folder / "note.txt").write_text("another version of the set")
    again = first_model(study, home)
    assert again.record.stages[0].source != first.record.stages[0].source
    assert len(list((home.state / "starts").glob("*.json"))) == 2


def test_a_public_start_learns_what_the_cases_show(home: Home, study_with) -> None:
    labelled(home.public / "twenty", 6)
    labelled(home.public / "others", 4)
    stage = {"kind": "public", "folder": "twenty", "steps": 60, "batch": 4, "lr": 0.01}
    found = first_model(study_with(start=stage, validation={"folder": "others"}), home)
    before = first_model(study_with(start={**stage, "steps": 1}, validation={"folder": "others"}), home)
    (now,), (then,) = found.record.stages, before.record.stages
    assert now.measured_on == "public validation cases"
    assert now.reached["dice"] > then.reached["dice"] + 0.3


def weights(study: Study, seed: int = 5) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=rng) for n, p in P.of(untrained(study)).items()}


@pytest.mark.parametrize("kind", ["checkpoint", "bundle"])
def test_weights_of_a_file_or_a_bundle_are_the_first_model(kind: str, home: Home, study_with) -> None:
    folder = home.public / "known" / "models"
    folder.mkdir(parents=True)
    known = weights(study_with())
    save_file(known, folder / "model.safetensors")
    save_file(known, home.public / "known.safetensors")
    stage = {
        "checkpoint": {"kind": "checkpoint", "file": "known.safetensors"},
        "bundle": {"kind": "bundle", "folder": "known"},
    }[kind]
    found = first_model(study_with(start=stage), home)
    assert same(found.params, known)
    assert found.record.stages[0].source == sha256_of((folder / "model.safetensors").read_bytes())


def test_with_a_new_head_all_but_the_last_layer_is_the_files(home: Home, study_with) -> None:
    home.public.mkdir()
    other = study_with(task={"kind": "segmentation", "dims": 3, "labels": {1: "liver"}})
    save_file(known := weights(other), home.public / "liver.safetensors")
    stage = {"kind": "checkpoint", "file": "liver.safetensors", "new_head": True}
    found = first_model(study_with(start=stage), home).params
    head = last_layers(untrained(study_with()), 1)
    fresh = P.of(untrained(study_with()))
    assert all(torch.equal(found[n], fresh[n] if n in head else known[n]) for n in found)
    with pytest.raises(NoStart, match="new_head: true"):
        check_start(study_with(start={**stage, "new_head": False}), home)


def pickled(home: Home, _: Study) -> dict[str, object]:
    torch.save({"a": torch.zeros(1)}, home.public / "old.pt")
    return {"kind": "checkpoint", "file": "old.pt"}


def of_another_network(home: Home, study: Study) -> dict[str, object]:
    wide = study.model_copy(update={"network": study.network.model_copy(update={"channels": (8, 16)})})
    save_file(weights(wide), home.public / "wide.safetensors")
    return {"kind": "checkpoint", "file": "wide.safetensors"}


def not_finite(home: Home, study: Study) -> dict[str, object]:
    values = {n: torch.full_like(p, float("nan")) for n, p in weights(study).items()}
    save_file(values, home.public / "nan.safetensors")
    return {"kind": "checkpoint", "file": "nan.safetensors"}


def other_labels(home: Home, _: Study) -> dict[str, object]:
    labelled(home.public / "swapped", 2, {"0": "background", "1": "tail", "2": "head"})
    return {"kind": "public", "folder": "swapped"}


def broken_case(home: Home, _: Study) -> dict[str, object]:
    folder = labelled(home.public / "torn", 2)
    path = folder / "imagesTr" / "case_01.nii.gz"
    path.write_bytes(path.read_bytes()[:100])
    return {"kind": "public", "folder": "torn"}


def map_without_labels(home: Home, _: Study) -> dict[str, object]:
    mapped(home.public / "empty", (0, 5, 6, 7))
    return {"kind": "label_maps", "folder": "empty"}


def no_maps(home: Home, _: Study) -> dict[str, object]:
    (home.public / "nothing").mkdir()
    return {"kind": "label_maps", "folder": "nothing"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (pickled, "expected a safetensors file.*can run code"),
        (of_another_network, "expected weights of the study's network"),
        (not_finite, "finite weights"),
        (other_labels, "label 1 is tail in the public set's list and head in the study"),
        (broken_case, "case_01: unreadable"),
        (map_without_labels, "expected the labels 1 to 2 in the map"),
        (no_maps, "expected label maps .*found none"),
        (lambda *_: {"kind": "public", "folder": "absent"}, "expected a folder that the study names"),
        (lambda *_: {"kind": "bundle", "folder": "absent"}, "expected a safetensors file, found none"),
    ],
)
def test_material_that_does_not_fit_is_one_message_before_anything_is_trained(
    make: Callable[[Home, Study], dict[str, object]],
    message: str,
    home: Home,
    study_with,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home.public.mkdir()
    study = study_with(start=make(home, study_with()))
    monkeypatch.setattr(starts, "pretrain", None)
    with pytest.raises(NoStart, match=message):
        check_start(study, home)


def test_hospitals_can_look_for_their_patients_by_the_hashes_of_public_voxels(
    home: Home, study_with
) -> None:
    labelled(home.public / "twenty", 3)
    study = study_with(start={"kind": "public", "folder": "twenty"}, validation={"folder": "twenty"})
    assert public_contents(study, home) == public_set(home.public, "twenty", study).contents
    assert len(public_contents(study, home)) == 3
    assert public_contents(study_with(), home) == []


def test_the_noise_that_a_model_bears_raises_its_loss_as_stated(study_with) -> None:
    study = study_with()
    network, task = untrained(study), build_task(study.task)
    images = torch.randn(4, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    target = (images[:, 0] > 0.5).long()
    for _ in range(60):
        loss = task.loss(network(images), target).mean()
        network.zero_grad()
        torch.autograd.backward(loss)
        with torch.no_grad():
            for p in network.parameters():
                p.sub_(0.1 * p.grad)

    def measured(net: torch.nn.Module) -> float:
        with torch.no_grad():
            return float(task.loss(net(images), target).mean())

    base, least = P.of(network), measured(network)
    std = tolerance(network, measured, 1.05)
    assert same(P.of(network), base)
    rng, found = torch.Generator().manual_seed(0), []
    for _ in range(DRAWS):
        P.load_into(network, {n: p + std * torch.randn(p.shape, generator=rng) for n, p in base.items()})
        found.append(measured(network))
    assert np.mean(found) == pytest.approx(1.05 * least, rel=0.01)
