"""Verification of secure sums: an honest one has no fault, and whatever was changed is named."""

from collections.abc import Callable

import pytest
from consortium import Consortium, small_hospitals

from flows.rounds.sum_progress import store
from flows.runs.records import RoundRecord, SumRecord
from flows.verification.check_sums import sum_faults
from models.files import sha256_of
from privacy.signing import sign
from sites.secure_sum.relay import bundle, unbundled
from sites.study import Study

NAMES = ("east", "north", "south")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, small_study: dict[str, object]) -> Consortium:
    folder = tmp_path_factory.mktemp("sums")
    content = {
        **small_study,
        "sites": {"min": 3, "deadline_s": 120},
        "privacy": {
            **small_study["privacy"], "mode": "shared_noise", "accountants": ["rdp"],
            "sum": {"dropouts": 1},
        },
        "training": {"steps": 1, "lr": 0.1, "lot": "all", "momentum": 0},
        "export": "gradient_sum",
    }  # fmt: skip
    study = Study.model_validate({k: v for k, v in content.items() if k != "distillation"})
    found = Consortium.begin(folder, study, small_hospitals(folder / "wards", NAMES))
    found.round(1)
    return found


def faults(made: Consortium, record: RoundRecord) -> list[str]:
    return list(sum_faults(made.run, [made.run.records()[0], record]))


def with_sum(made: Consortium, change: Callable[[SumRecord], SumRecord]) -> RoundRecord:
    """Return the round's record with another secure sum, which the run's folder has, too."""
    record = made.run.records()[1]
    assert record.sum
    return record.model_copy(update={"sum": change(record.sum)})


def phase(found: SumRecord, name: str, members: dict[str, str] | None) -> SumRecord:
    phases = {k: dict(v) for k, v in found.phases.items() if k != name}
    return found.model_copy(update={"phases": phases | ({name: members} if members is not None else {})})


CHANGES: dict[str, tuple[Callable[[SumRecord], SumRecord], str]] = {
    "a list of somebody who is no member": (
        lambda s: phase(s, "sum-survivors", {**s.members("sum-survivors"), "ghost": "0" * 64}),
        "a phase has a member that the phase before does not have",
    ),
    "another list than was signed": (
        lambda s: phase(s, "sum-survivors", {**s.members("sum-survivors"), "east": "0" * 64}),
        "another statement than the record names",
    ),
    "a phase that is missing": (lambda s: phase(s, "sum-opening", None), "did not come to its end"),
    "too few openings": (
        lambda s: phase(s, "sum-opening", {"east": s.members("sum-opening")["east"]}),
        "fewer members than the study's terms",
    ),
    "another attempt": (lambda s: s.model_copy(update={"attempt": 2}), "no statements of sum-keys"),
    "other releases": (
        lambda s: phase(s, "contribute", {**s.members("contribute"), "east": "0" * 64}),
        "over other releases than the record's",
    ),
}


def test_an_honest_sum_has_no_fault(made: Consortium) -> None:
    assert faults(made, made.run.records()[1]) == []


def test_a_record_with_another_sum_than_the_runs_folder_is_named(made: Consortium) -> None:
    record = with_sum(made, lambda s: s.model_copy(update={"relay": "0" * 64}))
    assert "another than the run's folder" in faults(made, record)[0]


@pytest.mark.parametrize("name", CHANGES)
def test_a_sum_that_was_changed_in_record_and_folder_is_named(made: Consortium, name: str) -> None:
    change, words = CHANGES[name]
    record, true = with_sum(made, change), made.run.records()[1].sum
    assert record.sum and true
    store(made.run, 1, record.sum)
    try:
        assert any(words in fault for fault in faults(made, record))
    finally:
        store(made.run, 1, true)


def test_a_weight_that_differs_from_the_declared_patients_is_named(made: Consortium) -> None:
    """East signs other keys; record and folder have that statement."""
    path = made.run.folder / "sums" / "round-001" / "1-sum-keys.json"
    true = path.read_bytes()
    written = unbundled(true)
    fields = made.hospitals["east"].verified(written["east"])
    false = sign({**fields, "weight": 10**6}, "east", made.hospitals["east"].key)
    keys = {"east": sha256_of(false)}
    record = with_sum(made, lambda s: phase(s, "sum-keys", {**s.members("sum-keys"), **keys}))
    whole = made.run.records()[1].sum
    assert record.sum and whole
    path.write_bytes(bundle({**written, "east": false}))
    store(made.run, 1, record.sum)
    try:
        found = faults(made, record)
        assert any("east has another weight than it declared" in fault for fault in found)
        assert any("has sealed its shares for another roster" in fault for fault in found)
    finally:
        path.write_bytes(true)
        store(made.run, 1, whole)


def test_a_release_that_is_masked_on_other_terms_is_named(made: Consortium) -> None:
    record = made.run.records()[1]
    east = record.hospitals["east"]
    masked = east.release.statement.masked.model_copy(update={"honest": 3})
    statement = east.release.statement.model_copy(update={"masked": masked})
    release = east.release.model_copy(update={"statement": statement})
    changed = {**record.hospitals, "east": east.model_copy(update={"release": release})}
    found = faults(made, record.model_copy(update={"hospitals": changed}))
    assert found == ["The secure sum of round 1: the release of east is masked on other terms."]
