"""What people type to decide about a model, and what they are told."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from homes import put_back
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from flows.cli.main import app
from flows.cli.review import app as review_app
from flows.decisions import chain, verdicts
from flows.release import champion, evidence
from flows.runs import artifacts
from flows.runs.run import Run
from flows.tracking import download, registry

Review = Callable[..., Result]


@pytest.fixture
def run(finished: Path, with_mlflow: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Run:
    home, url = with_mlflow
    monkeypatch.chdir(home)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    return put_back(finished, home)


@pytest.fixture
def review(run: Run, tmp_path: Path) -> Review:
    """Run a review command; of people who each have made a key, and stand in people.yaml."""

    def typed(*arguments: str) -> Result:
        return CliRunner().invoke(review_app, list(arguments), env={"COLUMNS": "200"})

    lines = []
    for name, role in (("ada", "clinician"), ("bo", "officer")):
        made = typed("key", "--as", name, "--role", role, "--key", str(tmp_path / name))
        assert made.exit_code == 0
        again = typed("key", "--as", name, "--role", role, "--key", str(tmp_path / name))
        assert again.stdout == made.stdout  # the same key, told once more
        lines.append(made.stdout)
    Path("people.yaml").write_text("people:\n" + "".join(lines))
    return typed


def predict(model: str, out: str) -> Result:
    scan = min(Path("wards/north/imagesTr").glob("*.nii.gz"))
    return CliRunner().invoke(app, ["predict", model, str(scan), "-o", out])


def by(name: str, tmp_path: Path) -> list[str]:
    return ["--as", name, "--key", str(tmp_path / name)]


def test_a_model_is_shown_approved_here_and_elsewhere_revoked_and_taken_back(
    run: Run, review: Review, tmp_path: Path
) -> None:
    shown = review("show")
    assert shown.exit_code == 0, shown.output
    for said in ("mean dice", "at least 0.001", "lineage", "verified", "missing: clinician, officer"):
        assert said in shown.output
    terms = shown.output.strip().splitlines()[-1]
    assert json.loads(terms) == verdicts.terms_of(run, run.records()[-1]).model_dump()

    signed = review("sign", terms, "--word", "approved", "--role", "clinician", *by("ada", tmp_path))
    entered = review("enter", signed.stdout.strip())
    assert f"approved by ada (clinician): {run.name}, round 2." in entered.output
    assert "Still missing: officer." in entered.output
    kept = chain.heads(run)[-1]
    assert f"Keep this for `wardround verify --decision`: {kept}" in entered.output

    approved = review("approve", "--reason", "read the report", *by("bo", tmp_path))
    assert approved.exit_code == 0 and "Still missing" not in approved.output
    record = run.records()[-1]
    assert champion.release_model(run, record, evidence.gather(run, record)) == "1"
    shown = review("show")
    assert "every role has approved" in shown.output and "read the report" in shown.output
    told = json.loads(review("show", "--json").stdout)
    assert told["terms"] == json.loads(terms) and {each["is_met"] for each in told["evidence"]} == {True}
    assert [each.get("person", "gate") for each in told["decisions"]] == ["ada", "bo", "gate"]
    assert predict("small-approved", "released.nii.gz").exit_code == 0

    until = "wardround.approved_until"
    MlflowClient().set_model_version_tag("small-approved", "1", until, "2026-01-31")
    ended = predict("small-approved", "mask.nii.gz")
    assert ended.exit_code == 2 and "its approvals ended 2026-01-31" in ended.stderr
    revoked = review("revoke", "--reason", "misses small ones", *by("bo", tmp_path))
    assert "The champion is version none." in revoked.output
    assert registry.champion("small") == ""
    taken_back = predict("small-approved/1", "mask.nii.gz")
    assert taken_back.exit_code == 2 and not Path("mask.nii.gz").exists()
    assert "it was withdrawn: bo: misses small ones" in taken_back.stderr
    assert predict(f"{run.name}:2", "all-the-same.nii.gz").exit_code == 0
    nothing = review("withdraw")
    assert nothing.exit_code == 0 and "Withdrawn: version none." in nothing.output
    assert "bo (officer) has revoked it: misses small ones" in " ".join(review("show").output.split())


def release_newest(run: Run, review: Review, tmp_path: Path) -> None:
    for name in ("ada", "bo"):
        assert review("approve", *by(name, tmp_path)).exit_code == 0
    record = run.records()[-1]
    champion.release_model(run, record, evidence.gather(run, record))


def test_an_alias_that_nobody_decided_on_releases_nothing(
    run: Run, review: Review, tmp_path: Path
) -> None:
    release_newest(run, review, tmp_path)
    client = MlflowClient()
    candidate = client.search_model_versions("name = 'small-candidates'")[-1]
    made = client.create_model_version(
        "small-approved",
        source=candidate.source,
        model_id=candidate.source.removeprefix("models:/"),
        tags=candidate.tags,
    )
    client.set_registered_model_alias("small-approved", "champion", made.version)
    result = predict("small-approved", "mask.nii.gz")
    assert result.exit_code == 3
    assert "No proof of its release" in result.stderr
    assert not Path("mask.nii.gz").exists()
    downloaded = download.fetch("small-approved", "1", tmp_path / "released").folder
    registry.attach_proof("small", made.version, (downloaded / artifacts.PROOF).read_bytes())
    result = CliRunner().invoke(app, ["export-bundle", "small-approved", "bundle"])
    assert result.exit_code == 3
    assert "The proof of a release is of another model" in result.stderr
    assert not Path("bundle").exists()


def test_a_released_model_of_another_study_is_not_this_ones(
    run: Run, review: Review, tmp_path: Path
) -> None:
    release_newest(run, review, tmp_path)
    client = MlflowClient()
    released = client.get_model_version("small-approved", "1")
    client.create_registered_model("large-approved")
    client.create_model_version(
        "large-approved",
        source=released.source,
        model_id=released.source.removeprefix("models:/"),
        tags=released.tags,
    )
    result = predict("large-approved/1", "mask.nii.gz")
    assert result.exit_code == 3
    assert "It is a model of small, not of large" in result.stderr


def test_a_proof_that_somebody_put_beside_a_model_makes_no_released_bundle(
    run: Run, review: Review, tmp_path: Path
) -> None:
    release_newest(run, review, tmp_path)
    downloaded = download.fetch("small-approved", "1", tmp_path / "released").folder
    model = download.model_in(downloaded)
    shutil.copy(downloaded / artifacts.PROOF, model / artifacts.PROOF)
    result = CliRunner().invoke(app, ["export-bundle", str(model), "bundle"])
    assert result.exit_code == 0, result.output
    assert "No release came with this model" in Path("bundle/docs/README.md").read_text()
    assert not (Path("bundle/docs") / artifacts.PROOF).exists()


def test_a_released_model_is_proven_elsewhere_and_in_its_bundle(
    run: Run, review: Review, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release_newest(run, review, tmp_path)
    scan = min(Path("wards/north/imagesTr").glob("*.nii.gz")).resolve()
    people = Path("people.yaml").resolve()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    at_once = CliRunner().invoke(app, ["predict", "small-approved", str(scan), "-o", "mask.nii.gz"])
    assert at_once.exit_code == 2
    assert "people.yaml: no such file" in at_once.stderr
    shutil.copy(people, "people.yaml")
    made = CliRunner().invoke(app, ["predict", "small-approved", str(scan), "-o", "mask.nii.gz"])
    assert made.exit_code == 0, made.output

    exported = CliRunner().invoke(app, ["export-bundle", "small-approved", "bundle"])
    assert exported.exit_code == 0, exported.output
    assert "wardround verify-bundle" in Path("bundle/docs/README.md").read_text()
    checked = CliRunner().invoke(app, ["verify-bundle", "bundle", "--people", "people.yaml"])
    assert checked.exit_code == 0
    assert f"{run.name}, round 2: released by ada (clinician) and bo (officer)." in checked.output
    configuration = Path("bundle/configs/inference.json")
    configuration.write_text(configuration.read_text().replace('"RAS"', '"LPS"'))
    changed = CliRunner().invoke(app, ["verify-bundle", "bundle", "--people", "people.yaml"])
    assert changed.exit_code == 3
    assert "configs/inference.json is not what" in changed.stderr


def test_what_is_revoked_is_the_champion_unless_another_is_named(
    run: Run, review: Review, tmp_path: Path
) -> None:
    nothing = review("revoke", "--reason", "bad", *by("bo", tmp_path))
    assert nothing.exit_code == 2 and "No model of small is the champion" in nothing.stderr
    for name in ("ada", "bo"):
        assert review("approve", "--round", "1", *by(name, tmp_path)).exit_code == 0
    record = run.records()[1]
    champion.release_model(run, record, evidence.gather(run, record))
    other = review("revoke", "--round", "2", "--reason", "bad", *by("bo", tmp_path))
    assert "never released, so nothing was withdrawn" in other.output
    assert "The champion is version 1." in other.output
    revoked = review("revoke", "--reason", "bad", *by("bo", tmp_path))
    assert "round 1." in revoked.output and "The champion is version none." in revoked.output


def test_a_refusal_of_a_released_model_takes_it_back_too(
    run: Run, review: Review, tmp_path: Path
) -> None:
    for name in ("ada", "bo"):
        assert review("approve", *by(name, tmp_path)).exit_code == 0
    record = run.records()[-1]
    champion.release_model(run, record, evidence.gather(run, record))
    refused = review("refuse", "--reason", "no", *by("ada", tmp_path))
    assert refused.exit_code == 0 and registry.champion("small") == ""


def test_what_counts_for_nothing_is_told_in_one_message_and_puts_nothing_on_record(
    run: Run, review: Review, tmp_path: Path
) -> None:
    terms = verdicts.terms_of(run, run.records()[-1]).model_dump_json()
    short = tmp_path / "short"
    short.write_bytes(b"x" * 31)
    endless = json.dumps({"signer": "ada", "statement": {"terms": {"round": 0}}, "signature": ""})
    said, doctor = ["--word", "approved", "--role", "clinician"], ["--as", "Dr. Ada", "--key"]
    for arguments, message in (
        (["refuse", "--reason", "x" * 1001, *by("bo", tmp_path)], "reason: String should have at most"),
        (["approve", "--as", "bo", "--key", str(short)], "expected a key as .* got 31 bytes"),
        (["approve", "--as", "bo", "--key", str(tmp_path / "none")], "no such file"),
        (["approve", "--as", "eve", "--key", str(tmp_path / "bo")], "'eve' is not in people.yaml"),
        (["approve", "--as", "bo", "--key", str(tmp_path / "ada")], "has not signed it with the key"),
        (["sign", terms, *said, *doctor, str(tmp_path / "ada")], "person: String should"),
        (["sign", "{}", *said, *by("ada", tmp_path)], "Expected the terms as"),
        (["key", "--role", "officer", *doctor, str(tmp_path / "new")], "--as 'Dr. Ada'"),
        (["key", "--as", "ada", "--role", "officer", "--key", str(short)], "expected a key as"),
        (["enter", endless.replace(": 0}", ": 1e999}")], "Expected a signed verdict"),
        (["enter", "yes"], "Expected a signed verdict"),
        (["approve", "--round", "9", *by("bo", tmp_path)], "Expected a round from 1 to 2"),
    ):  # fmt: skip
        found = review(*arguments)
        assert found.exit_code in (1, 2), (arguments, found.output)
        assert isinstance(found.exception, SystemExit)
        _, next_step = found.stderr.strip().splitlines()
        assert next_step.startswith("What to do next: ")
        assert re.search(message, found.stderr), found.stderr
    assert chain.decisions(run) == [] and not (tmp_path / "new").exists()


def test_of_a_run_that_goes_on_the_round_has_to_be_named(
    run: Run, review: Review, tmp_path: Path
) -> None:
    (run.folder / "finished").unlink()
    found = review("approve", *by("bo", tmp_path))
    assert found.exit_code == 2 and "name the round with --round" in found.stderr
    assert review("approve", "--round", "1", *by("bo", tmp_path)).exit_code == 0
