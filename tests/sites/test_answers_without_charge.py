"""What leaves a hospital without a charge does not depend on what any scan shows."""

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from coordinator import Coordinator, first_model
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from PIL import Image
from rich.console import Console

from models.objectives import MISSED_MM
from sites.admission.approvals import ApprovalNeeded
from sites.admission.free_answers import free_answers
from sites.admission.requests import decide, waiting
from sites.exchange.exchange import COORDINATOR, Exchange
from sites.exchange.phases import Phase
from sites.hospital import Hospital
from sites.imaging.intake import Scan, read_case
from sites.imaging.preprocessing import prepare, whole_image
from sites.imaging.profile import content_of
from sites.listing.pseudonyms import pseudonym
from sites.study import Study

BOOKS = ("ledger_head", "run", "study_sha256")
"""Fields of a statement that name the run or the ledger, not patients."""


def coordinator(folder: Path, study: Study) -> Coordinator:
    return Coordinator(study, Exchange(str(folder / "exchange")), Ed25519PrivateKey.generate())


def answer(asked: Coordinator, hospital: Hospital, phase: Phase, round: int = 0) -> dict[str, Any]:
    """Return everything that a coordinator sees: a statement, or what the hospital waits for."""
    try:
        said = asked.order(hospital, phase, round).model_dump(mode="json")
    except ApprovalNeeded as needed:
        return {"waiting": needed.act}
    return {key: value for key, value in said.items() if key not in BOOKS}


def image_of(hospital: Hospital, group: str) -> tuple[Path, str]:
    """Return the first scan of a patient of a group, and the patient."""
    names = getattr(hospital.eligible, group)
    case = next(c for c in hospital.cases if pseudonym(hospital.pseudonym_key, c.patient) in names)
    return hospital.data / case.image, case.patient


def not_finite(path: Path) -> None:
    nib.save(nib.Nifti1Image(np.full((24, 24, 24), np.nan, np.float32), np.eye(4)), path)


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:500])


def gone(path: Path) -> None:
    path.unlink()


def enlarged(path: Path) -> None:
    """Give a scan voxels of such a size that a study's fine voxels would need too many of them."""
    image = nib.load(path)
    affine = image.affine.copy()
    affine[:3, :3] *= 18
    nib.save(nib.Nifti1Image(np.array(image.dataobj), affine), path)


def flat(path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((24, 24, 24), np.float32), np.eye(4)), path)


CHANGES: tuple[Callable[[Path], None], ...] = (not_finite, torn, gone, enlarged, flat)


@pytest.mark.parametrize(
    ("change", "policy"),
    [
        *((change, {}) for change in CHANGES),
        (not_finite, {"on_broken_case": "stop"}),
        (enlarged, {"checks": {"spacing": "stop"}}),
    ],
)
def test_no_answer_to_check_or_join_depends_on_what_a_scan_shows(
    change: Callable[[Path], None], policy: dict[str, Any], tmp_path: Path, small_wards, study_with, edit
) -> None:
    """With exactly as many patients as `min_patients`, and voxels that a larger scan can't have."""
    study = study_with(preprocessing={"shape": [16, 16, 16], "spacing_mm": [0.6, 0.6, 0.6]})
    original = small_wards(tmp_path / "wards") / "east"
    edit(original / "site.yaml", **policy)
    listed = len(Hospital.open(original).eligible.training)
    edit(original / "site.yaml", min_patients=listed)
    answers = []
    for name in ("as it is", "changed"):
        folder = tmp_path / name / "east"
        shutil.copytree(original, folder)
        if name == "changed":
            change(image_of(Hospital.open(folder), "training")[0])
        asked = coordinator(tmp_path / name, study)
        hospital = Hospital.open(folder, test_noise=1)
        answers.append([answer(asked, hospital, phase) for phase in ("check", "join")])
    assert answers[0] == answers[1]
    check, join = answers[0]
    assert check["kind"] == "readiness"
    assert join == {"waiting": "join"} if policy else join["kind"] == "acceptance"


@pytest.mark.parametrize("change", [not_finite, gone])
def test_a_person_who_is_asked_to_join_sees_what_the_checks_found_and_decides(
    change: Callable[[Path], None], hospital: Hospital, tmp_path: Path, study_with, edit
) -> None:
    edit(hospital.folder / "site.yaml", on_broken_case="stop")
    strict = Hospital.open(hospital.folder)
    path, patient = image_of(strict, "training")
    change(path)
    asked = coordinator(tmp_path, study_with())
    assert answer(asked, strict, "join") == {"waiting": "join"}
    (request,) = waiting(strict)
    found = {"not_finite": not_finite, "missing": gone}
    assert [line for line in request.request.findings if found[line.partition(":")[0]] is change]
    assert patient not in str(request.request.findings)
    decide(strict, request.terms, "approved", "IT")
    assert answer(asked, strict, "join")["kind"] == "acceptance"
    asked.publish(0, first_model(asked.study))
    assert asked.order(strict, "contribute", 1).kind == "release"


def pictures(folder: Path, column: str, labels: list[str]) -> Path:
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = [f"patient,image,{column}"]
    for i, label in enumerate(labels):
        shown = rng.integers(0, 255, (16, 16)).astype(np.uint8)
        Image.fromarray(shown).save(folder / f"images/{i}.png")
        rows.append(f"p{i},images/{i}.png,{label}")
    (folder / "cases.csv").write_text("\n".join(rows) + "\n")
    (folder / "labels.csv").write_text("value,name\n0,pneumonia\n1,effusion\n")
    (folder / "site.yaml").write_text(
        "{name: east, declared_patients: 20, min_patients: 3, min_evaluation_patients: 1, "
        "budget: {epsilon: 50, delta: 1.0e-3}, networks: [resnet10], metrics: withheld, "
        "on_broken_case: skip, phantom: true}"
    )
    return folder


@pytest.mark.parametrize("column", ["label", "labels"])
def test_the_name_of_a_column_decides_how_many_classes_a_case_has_and_no_patients_row(
    column: str, tmp_path: Path, study_with
) -> None:
    answers: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for several, said in answers.items():
        for both in ("0;1", "1"):
            labels = [both if i == 5 else str(i % 2) for i in range(16)]
            home = tmp_path / f"{several}-{len(both)}"
            ward = pictures(home / "east", column, labels)
            task = {"kind": "classification", "dims": 2, "labels": {0: "pneumonia", 1: "effusion"}}
            study = study_with(
                task={**task, "multi_label": several},
                network={"name": "resnet10", "width": 8},
                preprocessing={"shape": [32, 32]},
                distillation=None,
                export="weights",
            )
            said.append(answer(coordinator(home, study), Hospital.open(ward), "check"))
    for several, (two, one) in answers.items():
        assert two == one
        fits = several == (column == "labels")
        assert two["kind"] == ("readiness" if fits else "refusal")
        assert fits or "any number of classes" in two["reason"]


def test_a_list_of_label_images_fits_no_classification(
    hospital: Hospital, tmp_path: Path, study_with, edit
) -> None:
    edit(hospital.folder / "site.yaml", networks=["resnet10"])
    hospital = Hospital.open(hospital.folder)
    study = study_with(
        task={"kind": "classification", "dims": 3, "labels": {0: "background", 1: "head", 2: "tail"}},
        network={"name": "resnet10", "width": 8},
        distillation=None,
        export="weights",
    )
    said = answer(coordinator(tmp_path, study), hospital, "check")
    assert said["reason"] == "the study is a classification, the hospital's list has label images"


@pytest.mark.parametrize("metrics", ["exact", "noised"])
def test_whether_metrics_are_withheld_depends_on_who_is_listed_and_a_broken_scan_is_a_miss(
    metrics: str, tmp_path: Path, small_wards, study_with, edit
) -> None:
    found = []
    for change in (None, *CHANGES):
        folder = small_wards(tmp_path / str(change)) / "east"
        edit(folder / "site.yaml", metrics=metrics)
        if metrics == "noised":
            edit(folder / "site.yaml", noised_metrics={"epsilon": 5.0, "evaluations": 2})
        listed = Hospital.open(folder).eligible.evaluation
        edit(folder / "site.yaml", min_evaluation_patients=len(listed))
        hospital = Hospital.open(folder, test_noise=1)
        asked = coordinator(tmp_path / str(change), study_with())
        asked.publish(0, first_model(asked.study))
        if change:
            patient = image_of(hospital, "evaluation")[1]
            for case in hospital.cases:
                if case.patient == patient:
                    change(hospital.data / case.image)
        found.append(answer(asked, hospital, "evaluate"))
    assert {said["metrics_policy"] for said in found} == {metrics}
    if metrics == "exact":
        missed = [said["metrics"]["hd95_mm"] for said in found[1:4]]
        others = found[0]["metrics"]["hd95_mm"] * len(listed)
        assert all(MISSED_MM < value * len(listed) < others + MISSED_MM for value in missed)
    else:
        assert found[1] == found[2] == found[3]


def test_an_image_of_a_patient_in_a_public_set_is_seen_in_the_hospitals_own_log_alone(
    hospital: Hospital, tmp_path: Path, study_with, caplog: pytest.LogCaptureFixture
) -> None:
    path, _ = image_of(hospital, "training")
    own = nib.as_closest_canonical(nib.load(path)).get_fdata(dtype=np.float32)
    others = np.random.default_rng(0).normal(size=(8, *own.shape)).astype(np.float32)
    answers = []
    for k, images in enumerate((others, np.concatenate([others[1:], own[None]]))):
        hospital.public.mkdir(exist_ok=True)
        file = hospital.public / f"{k}.npz"
        np.savez(file, images=images)
        transfer = {"public": sha256(file.read_bytes()).hexdigest()}
        study = study_with(distillation={"transfer": transfer, "steps": 4, "images": 8})
        asked = coordinator(tmp_path / str(k), study)
        (hospital.state / "keys" / "coordinator.pub").unlink(missing_ok=True)
        asked.run = f"small-{k}"
        answers.append([answer(asked, hospital, phase) for phase in ("check", "join")])
        assert ("public_image" in caplog.text) == (k == 1)
    for said in (each for pair in answers for each in pair):
        del said["charges"]
    assert answers[0] == answers[1]


def test_a_patient_among_the_coordinators_public_cases_is_said_to_the_hospital_alone(
    hospital: Hospital, tmp_path: Path, study_with, caplog: pytest.LogCaptureFixture
) -> None:
    asked = coordinator(tmp_path, study_with())
    own = read_case(hospital.data, hospital.cases[0], asked.study.task)[0].image
    answers = []
    lists = (["0" * 64], ["0" * 64, content_of(own)], 5, "[" * 50_000)
    for k, contents in enumerate(lists):
        data = contents.encode() if isinstance(contents, str) else json.dumps(contents).encode()
        asked.public_cases = asked.exchange.put_object(data, COORDINATOR)
        caplog.clear()
        asked.run = f"small-{k}"
        answers.append([answer(asked, hospital, phase) for phase in ("check", "join")])
        assert ("public_image" in caplog.text) == (k == 1)
    for said in (each for pair in answers for each in pair):
        del said["charges"]
    assert all(each == answers[0] for each in answers)


def test_free_answers_are_counted_limited_by_the_policy_and_shown(
    hospital: Hospital, tmp_path: Path, study_with, edit
) -> None:
    from flows.cli.site.tables import outbox_table

    edit(hospital.folder / "site.yaml", free_answers_per_week=3)
    asked = coordinator(tmp_path, study_with())
    limited = Hospital.open(hospital.folder)
    kinds = []
    for number in range(5):
        asked.run = f"probe-{number}"
        kinds.append(answer(asked, limited, "check"))
    assert [said["kind"] for said in kinds] == ["readiness"] * 3 + ["refusal"] * 2
    assert "free_answers_per_week" in kinds[-1]["reason"]
    assert free_answers(limited) == 5
    table = outbox_table(hospital.folder)
    assert table.caption.startswith(
        "5 answers of the last seven days cost nothing; the policy allows 3."
    )
    assert next(iter(table.columns[3].cells)) == "check"
    out = StringIO()
    Console(file=out, width=80).print(table)
    assert max(map(len, out.getvalue().splitlines())) <= 80
    assert all(heading in out.getvalue() for heading in ("when", "round", "act", "kind", "statement"))


def test_a_probe_waits_for_a_person_where_the_policy_says_so(
    hospital: Hospital, tmp_path: Path, study_with, edit
) -> None:
    edit(hospital.folder / "site.yaml", approve={"check": "manual"})
    asked, shy = coordinator(tmp_path, study_with()), Hospital.open(hospital.folder)
    assert answer(asked, shy, "check") == {"waiting": "check"}
    (request,) = waiting(shy)
    decide(shy, request.terms, "refused", "IT")
    assert answer(asked, shy, "check")["reason"] == "the hospital does not take part"
    assert json.loads((shy.state / "approvals" / f"{request.terms}.request.json").read_text())


def test_without_privacy_too_few_usable_scans_make_no_release_and_are_recorded_like_one(
    hospital: Hospital, tmp_path: Path, study_with, edit
) -> None:
    listed = len(hospital.eligible.training)
    edit(hospital.folder / "site.yaml", min_patients=listed, plain_studies="allow")
    study = study_with(privacy={"mode": "none"}, distillation=None, export="weights")
    plain, asked = Hospital.open(hospital.folder), coordinator(tmp_path, study)
    patient = image_of(plain, "training")[1]
    for case in plain.cases:
        if case.patient == patient:
            gone(plain.data / case.image)
    asked.publish(0, first_model(study))
    said = asked.order(plain, "contribute", 1)
    assert said.kind == "refusal"
    assert "usable scans" in said.reason
    assert plain.ledger.plain_charges() == 1


def test_training_against_an_attacker_that_is_left_with_one_usable_patient_ends_in_a_refusal(
    hospital: Hospital, tmp_path: Path, study_with, edit
) -> None:
    """The attacker needs reference patients beside those who train."""
    edit(hospital.folder / "site.yaml", min_patients=1, plain_studies="allow")
    training = {"steps": 2, "lr": 0.1, "lot": "all", "membership": {"strength": 0.1}}
    study = study_with(privacy={"mode": "none"}, distillation=None, export="weights", training=training)
    plain, asked = Hospital.open(hospital.folder), coordinator(tmp_path, study)
    assert answer(asked, plain, "join")["kind"] == "acceptance"
    patient = image_of(plain, "training")[1]
    key, training_names = plain.pseudonym_key, plain.eligible.training
    for case in plain.cases:
        if case.patient != patient and pseudonym(key, case.patient) in training_names:
            gone(plain.data / case.image)
    asked.publish(0, first_model(asked.study))
    said = asked.order(plain, "contribute", 1)
    assert (said.kind, "usable scans" in said.reason) == ("refusal", True)


@pytest.mark.parametrize("metrics", ["exact", "noised"])
def test_a_scan_that_cannot_be_scored_is_a_miss_and_no_error(
    metrics: str, hospital: Hospital, tmp_path: Path, study_with, edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one that is too small at the study's spacing; the order ends in a statement."""
    edit(hospital.folder / "site.yaml", metrics=metrics)
    if metrics == "noised":
        edit(hospital.folder / "site.yaml", noised_metrics={"epsilon": 5.0, "evaluations": 2})
    opened = Hospital.open(hospital.folder, test_noise=1)
    asked = coordinator(tmp_path, study_with())
    asked.publish(0, first_model(asked.study))

    def too_small(*_: object) -> None:
        raise ValueError("Expected more than 1 spatial element")

    with monkeypatch.context() as patch:
        patch.setattr("sites.evaluation.scoring.Prediction", too_small)
        said = answer(asked, opened, "evaluate")
    assert said["metrics_policy"] == metrics
    assert metrics == "noised" or said["metrics"]["dice"] == 0


@pytest.mark.parametrize("sides", [(4, 4, 4), (4, 8, 4), (3, 2, 4)])
def test_an_image_of_one_bottleneck_voxel_is_padded_to_two(sides: tuple[int, ...], study_with) -> None:
    study = study_with(preprocessing={"shape": [16, 16, 16]})
    rng = np.random.default_rng(0)
    scan = Scan(rng.normal(size=(1, *sides)).astype(np.float32), np.zeros(sides, np.int64), (1.0,) * 3)
    found = whole_image(prepare(scan, study.preprocessing), (4, 4, 4))
    assert found[0].numel() >= 2 * 4**3


def test_scores_of_a_run_that_was_not_joined_are_free_answers(
    hospital: Hospital, tmp_path: Path, study_with
) -> None:
    asked = coordinator(tmp_path, study_with())
    asked.publish(0, first_model(asked.study))
    answer(asked, hospital, "evaluate")
    assert free_answers(hospital) == 1
    answer(asked, hospital, "join")
    assert free_answers(hospital) == 1  # the join; scores of this run count no more
