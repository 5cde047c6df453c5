"""Bad input at the command line: one message, exit code 2, nothing written, nothing spent."""

import json
import math
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from coordinator import Coordinator
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from homes import moved
from puppets import Federation
from typer.testing import CliRunner

from flows.cli.data import app as data_app
from flows.cli.main import app
from privacy.accounting import PrivacyEvent
from privacy.ledger import Charge
from privacy.signing import public_hex, sign
from sites.datasets.public_sets import DECATHLON, PICTURES
from sites.exchange.exchange import Exchange
from sites.exchange.places import Place
from sites.hospital import Hospital
from sites.listing.pseudonyms import pseudonym
from sites.orders import Order
from sites.yaml_files import ConfigError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_wards) -> Path:
    small_wards(tmp_path / "wards")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: object, answer: str = ""):
    return CliRunner().invoke(app, [str(a) for a in arguments], input=answer)


def assert_untouched(home: Path) -> None:
    assert not (home / "mlruns").exists()
    assert not list((home / "wards").glob("*/state/ledger.sqlite"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"roundz": 3}, "small.yaml: roundz: unknown key"),
        ({"rounds": "six"}, "small.yaml: rounds: expected"),
        ({"network": {"name": "VNet"}}, "small.yaml: network.name: expected"),
        ({"privacy": {"mode": "local", "epsilon": -1}}, "privacy.epsilon: expected"),
        ({"privacy": {"mode": "local", "epsilon": math.inf}}, "privacy.epsilon: expected"),
        ({"privacy": {"mode": "local", "epsilon": math.nan}}, "privacy.epsilon: expected"),
        ({"privacy": {"mode": "local", "delta": 1}}, "privacy.delta: expected"),
    ],
)
def test_a_fault_of_the_study(changes: dict[str, object], message: str, home: Path, study_file) -> None:
    result = call("run", study_file(**changes))
    assert result.exit_code == 2
    assert message in result.stderr
    assert_untouched(home)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, "wards/east/site.yaml: colour: unknown key"),
        ({"budget": {"epsilon": math.inf, "delta": 1e-3}}, "budget.epsilon: expected"),
        ({"budget": {"epsilon": 0, "delta": 1e-3}}, "budget.epsilon: expected"),
        ({"data": "gone"}, "wards/east/site.yaml: data: expected a folder, got 'gone'"),
        ({"name": "north"}, "name: expected a name of its own, 'north' is taken"),
    ],
)
def test_a_fault_of_a_policy(
    changes: dict[str, object], message: str, home: Path, study_file, edit
) -> None:
    edit(home / "wards" / "east" / "site.yaml", **changes)
    result = call("run", study_file())
    assert result.exit_code == 2
    assert message in result.stderr
    assert_untouched(home)


def test_no_study_and_no_hospitals(home: Path, study_file) -> None:
    assert "absent.yaml: no such file" in call("run", "absent.yaml").stderr
    result = call("run", study_file(), "--sites", home / "nowhere")
    assert result.exit_code == 2
    assert "found none" in result.stderr


def test_repeatable_noise_is_refused_for_real_patients(home: Path, study_file, edit) -> None:
    edit(home / "wards" / "east" / "site.yaml", phantom=False)
    result = call("run", study_file(), "--test-noise", "1")
    assert result.exit_code == 2
    assert "phantom: expected true" in result.stderr
    assert_untouched(home)


def test_a_foreign_ledger_is_an_error_and_is_left_alone(home: Path) -> None:
    ledger = home / "wards" / "north" / "state" / "ledger.sqlite"
    ledger.write_bytes(b"not a database " * 100)
    result = call("site", "ledger", home / "wards" / "north")
    assert result.exit_code == 1
    assert "can't be used as a ledger" in result.stderr
    assert ledger.read_bytes().startswith(b"not a database")


def test_the_demo_deletes_made_up_hospitals_alone(home: Path, edit) -> None:
    edit(home / "wards" / "east" / "site.yaml", phantom=False)
    result = call("demo", "--fresh")
    assert result.exit_code == 2
    assert "expected a made-up hospital" in result.stderr
    assert (home / "wards" / "north").exists()


def test_the_demo_deletes_nothing_but_its_own(home: Path) -> None:
    scans = home / "wards" / "my-scans"
    scans.mkdir()
    (scans / "a.nii").write_bytes(b"precious")
    from flows.cli.demo import delete

    delete(home)
    assert (scans / "a.nii").exists()
    assert not (home / "wards" / "north").exists()


def test_hospitals_that_another_study_asked_are_not_deleted_with_the_demo(
    finished: Path, tmp_path: Path
) -> None:
    from flows.cli.demo import delete

    home = moved(finished, tmp_path / "home").home.folder
    with pytest.raises(ConfigError, match="small-.* asked these hospitals too"):
        delete(home)
    assert (home / "wards" / "north" / "site.yaml").exists()


@pytest.mark.slow
def test_a_finished_demo_begins_again_with_new_hospitals(tmp_path: Path) -> None:
    for asked in ([], ["--fresh"]):
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", "demo", *asked, "--test-noise", "7"],
            cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(list((tmp_path / ".wardround" / "runs").glob("demo-*/finished"))) == 1


def test_a_missing_list_of_cases_names_the_file(home: Path, study_file) -> None:
    (home / "wards" / "east" / "subjects.csv").unlink()
    result = call("run", study_file())
    assert result.exit_code == 2
    assert "wards/east/subjects.csv: no such file" in result.stderr
    assert_untouched(home)


def test_made_up_patients_of_another_seed_are_not_taken_for_those_asked_for(home: Path) -> None:
    result = call("demo", "--seed", "5")
    assert result.exit_code == 2
    assert "expected phantoms of seed 5, got 'phantoms of seed 0'" in result.stderr


def test_the_ui_says_so_where_nothing_is_recorded(home: Path) -> None:
    result = call("ui")
    assert result.exit_code == 2
    assert "nothing is recorded here" in result.stderr


def test_a_site_check_names_broken_cases_to_the_hospital(home: Path) -> None:
    assert call("site", "check", home / "wards" / "north").exit_code == 0
    image = min((home / "wards" / "north" / "imagesTr").iterdir())
    image.write_bytes(b"")
    result = call("site", "check", home / "wards" / "north")
    assert result.exit_code == 1
    assert "phantom_000_0" in result.stdout


def test_a_changed_byte_in_the_outbox_is_found(home: Path) -> None:
    from privacy.ledger import Charge
    from sites.hospital import Hospital

    ward = home / "wards" / "north"
    hospital = Hospital.open(ward)
    sha256 = hospital.outbox.put_statement(b'{"statement":{"kind":"refusal"}}')
    hospital.ledger.publish(Charge("s", "s-1", 1, "join", None), sha256)
    good = call("site", "ledger", ward, "--verify")
    told = f"from entry 1 on written by Wardround {version('wardround')}\n"
    holds = "1 entries; the chain and the outbox are intact.\n"
    assert (good.exit_code, good.stdout) == (0, holds + told)
    (file,) = hospital.outbox.folder.iterdir()
    file.chmod(0o600)
    file.write_bytes(file.read_bytes() + b" ")
    bad = call("site", "ledger", ward, "--verify")
    assert bad.exit_code == 1 and "was changed" in bad.stderr
    file.unlink()
    gone = call("site", "ledger", ward, "--verify")
    assert gone.exit_code == 1 and "not in the outbox" in gone.stderr


def test_the_ledger_shows_charges_and_what_is_left(home: Path) -> None:
    from dataclasses import replace

    from privacy.accounting import PrivacyEvent
    from privacy.ledger import Charge
    from sites.hospital import Hospital

    ledger = Hospital.open(home / "wards" / "north").ledger
    charge = Charge("s", "s-1", 1, "contribute", PrivacyEvent(4.0, 1.0, 4))
    ledger.reserve(charge, {"a"})
    ledger.void(charge)
    ledger.reserve(replace(charge, round=2), {"a"})
    shown = call("site", "ledger", home / "wards" / "north").stdout
    assert "given back" in shown and "reserved" in shown
    assert f"{ledger.spent(1e-3):.3f}" in shown


@pytest.mark.parametrize(
    "change",
    [
        "entries SET seq = seq + 100", "entries SET at = at + 1", "entries SET action = 'start'",
        "entries SET charge = replace(charge, '4.0', '9.0')", "entries SET cohort = cohort || 'x'",
        "entries SET file = file || 'x'", "entries SET previous = hash",
        "entries SET hash = hash || 'x'",
        "members SET cohort = cohort || 'x'", "members SET patient = patient || 'x'",
    ],
)  # fmt: skip
def test_a_changed_byte_in_any_field_of_the_ledger_is_found(home: Path, change: str) -> None:
    import sqlite3

    from privacy.accounting import PrivacyEvent
    from privacy.ledger import Charge
    from sites.hospital import Hospital

    ward = home / "wards" / "north"
    charge = Charge("s", "s-1", 1, "contribute", PrivacyEvent(4.0, 1.0, 4))
    Hospital.open(ward).ledger.reserve(charge, {"a", "b"})
    assert call("site", "ledger", ward, "--verify").exit_code == 0
    db = sqlite3.connect(ward / "state" / "ledger.sqlite", isolation_level=None)
    table = change.split(maxsplit=1)[0]
    db.execute(f"DROP TRIGGER {table}_never_UPDATE")
    db.execute(f"UPDATE {change}")
    db.close()
    result = call("site", "ledger", ward, "--verify")
    assert result.exit_code == 1
    assert re.search("does not follow|can't be read|list of patients", result.stderr)


def test_the_owner_resolves_a_ledger_that_forgot_and_is_asked_before(home: Path) -> None:
    ward = home / "wards" / "north"
    hospital = Hospital.open(ward)
    refusal = {
        "kind": "refusal", "study": "s", "study_sha256": "0" * 64, "run": "s-1", "round": 3,
        "purpose": "contribute", "site": "north", "ledger_head": "1" * 64, "reason": "diverged",
        "charges": 1,
        "event": {"noise_multiplier": 4.0, "sampling_rate": 1.0, "steps": 4},
    }  # fmt: skip
    hospital.outbox.put_statement(sign(refusal, "north", hospital.key))
    shown = call("site", "recover-ledger", ward, answer="n\n")
    for text in ("contribute", "4 x noise 4.00", "this hospital"):
        assert text in shown.stdout
    assert hospital.ledger.spent(1e-3) == 0
    assert "Done: epsilon" in call("site", "recover-ledger", ward, "--yes").stdout
    assert hospital.ledger.spent(1e-3) > 0
    exchange = home / "another-exchange"
    stranger = sign(refusal | {"run": "t-1"}, "north", Ed25519PrivateKey.generate())
    Exchange(str(exchange)).put_statement(Place.statement("t-1", 3, "contribute", "north"), stranger)
    shown = call("site", "recover-ledger", ward, "--exchange", exchange, answer="n\n")
    assert "has every published statement" in shown.stdout
    assert "1 statements under this hospital's name were signed by none of its keys" in shown.stdout
    lost = public_hex(Ed25519PrivateKey.generate())
    shown = call("site", "recover-ledger", ward, "--former-key", lost, "--yes").stdout
    assert f"federation.yaml: {hospital.public_key}" in " ".join(shown.split())
    result = call("site", "recover-ledger", ward, "--former-key", "12ab", answer="n\n")
    assert result.exit_code == 2
    assert "64 hexadecimal digits" in result.stderr
    assert call("site", "ledger", ward, "--verify").exit_code == 0


def test_every_public_set_has_a_command_of_its_name() -> None:
    commands = {command.name or "phantoms" for command in data_app.registered_commands}
    assert commands == {"phantoms", *DECATHLON, *PICTURES}


def test_a_hospital_is_set_up_with_one_command_which_prints_its_public_key(home: Path) -> None:
    coordinator = call("coordinator-key").stdout.strip()
    asked = {
        "name": "new", "declared-patients": 90, "epsilon": 8, "delta": 1e-4, "metrics": "withheld",
        "key": coordinator, "api": "https://hub.example.org/api",
        "exchange": "https://hub.example.org/exchange/",
    }  # fmt: skip
    options = [part for name, value in asked.items() for part in (f"--{name}", value)]
    done = call("site", "init", home / "new", *options)
    assert done.exit_code == 0, done.stderr
    key = Hospital.open(home / "new").public_key
    assert f"new: {{key: {key}, patients: 90}}" in done.stdout
    again = call("site", "init", home / "new", *options)
    assert (again.exit_code, again.stdout) == (2, "")


def test_a_wrong_answer_is_asked_again_alone_and_the_others_are_kept(home: Path) -> None:
    answers = "North\nnew-one\nmany\n90\n8\n1e-4\nperhaps\nexact\nn\n"
    done = CliRunner().invoke(app, ["site", "init", str(home / "asked")], input=answers)
    assert done.exit_code == 0, done.output
    policy = Hospital.open(home / "asked").policy
    assert (policy.name, policy.declared_patients, policy.metrics) == ("new-one", 90, "exact")
    assert policy.coordinator is None  # a federation on one machine has no addresses


def test_what_is_proposed_makes_a_hospital_without_a_question(home: Path) -> None:
    done = call("init", "site", home / "Proposed here", "--yes")
    assert done.exit_code == 0, done.stderr
    assert Hospital.open(home / "Proposed here").policy.name == "proposed-here"
    wrong = call("init", "site", home / "other", "--yes", "--epsilon", -1)
    assert wrong.exit_code == 2
    assert "budget.epsilon" in wrong.stderr
    assert not (home / "other" / "site.yaml").exists()
    lone = call("site", "init", home / "lone", "--yes", "--key", "0" * 64)
    assert (lone.exit_code, "coordinator.exchange" in lone.stderr) == (2, True)


def test_a_run_that_is_not_there_is_told_with_those_that_are(home: Path) -> None:
    for command in (("verify", "nothere"), ("runs", "diff", "a", "b"), ("report", "nothere")):
        done = call(*command)
        assert done.exit_code == 2
        assert "runs here: none" in done.stderr and "backup" not in done.stderr


def test_numbers_and_names_that_cannot_be_are_refused_at_once(home: Path) -> None:
    for command, told in (
        (("ui", "--port", "99999"), "less than or equal to 65535"),
        (("report", "-o", "a.docx"), "ends in .html or .pdf"),
        (("init", "site", "h/site.yaml", "--yes"), "expected the hospital's folder"),
    ):
        done = call(*command)
        assert done.exit_code == 2 and told in done.stderr, done.stderr
    assert not (home / "h").exists()


def test_a_key_that_stands_twice_is_a_fault_of_the_file(home: Path, study_file) -> None:
    path = study_file()
    path.write_text(path.read_text() + "rounds: 9\n")
    done = call("check", path)
    assert done.exit_code == 2
    assert re.search(r"the key 'rounds' stands twice, in lines \d+ and \d+", done.stderr)
    told = call("check", path, "--json")
    (fault,) = json.loads(told.stdout)["faults"]
    assert (told.exit_code, fault["key"], fault["line"]) == (2, "", None)
    assert "stands twice" in fault["text"]


def test_each_fault_of_a_study_has_its_key_and_line_for_machines(home: Path, study_file) -> None:
    path = study_file(rounds=0, export="weight", card={"authorz": "A."})
    lines = path.read_text().splitlines()
    told = call("check", path, "--json")
    faults = json.loads(told.stdout)["faults"]
    assert [fault["key"] for fault in faults] == ["rounds", "export", "card.authorz"]
    for fault in faults:
        assert re.search(rf"\b{fault['key'].rpartition('.')[2]}:", lines[fault["line"] - 1])
        assert fault["text"].startswith(f"{fault['key']}: ")


def test_plan_names_labels_that_are_not_the_studys_and_finds_the_wards(home: Path, study_file) -> None:
    study = study_file(task={"kind": "segmentation", "dims": 3, "labels": {1: "first", 2: "second"}})
    done = call("plan", study)
    assert done.exit_code == 1
    assert "label 1 is head in the hospital's list and first in the study" in " ".join(
        done.stdout.split()
    )


def test_the_version_is_shown() -> None:
    assert call("--version").stdout.strip() == version("wardround")


def test_a_promotion_without_criteria_is_refused_before_anything_starts(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, study_with
) -> None:
    run = Federation(tmp_path / "x", study_with(promotion=None)).run
    monkeypatch.chdir(run.home.folder)
    done = call("promote", run.name)
    assert done.exit_code == 2 and "has no `promotion`" in done.stderr
    assert "Each of them decides" not in done.stdout


def test_a_federation_without_an_address_of_prefect_is_told_what_is_missing(
    home: Path, study_file, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    done = call("run", study_file(), "--federation", "federation.yaml")
    assert done.exit_code == 2
    assert "PREFECT_API_URL: expected" in done.stderr
    assert_untouched(home)


def test_a_hospital_without_a_coordinator_does_not_work_for_one(home: Path) -> None:
    done = call("site", "worker", home / "wards" / "north")
    assert done.exit_code == 2
    assert "coordinator: expected {key, exchange, api}" in done.stderr


def test_what_a_withdrawn_patient_took_part_in_is_listed_at_the_hospital(home: Path) -> None:
    ward = home / "wards" / "north"
    hospital = Hospital.open(ward)
    names = {pseudonym(hospital.pseudonym_key, case.patient): case.patient for case in hospital.cases}
    some = sorted(names)[:2]
    event = PrivacyEvent(5.0, 1.0, 2)
    for round, patients in ((1, some), (2, some[:1])):
        hospital.ledger.reserve(Charge("small", "small-1", round, "contribute", event), patients)
    (ward / "excluded.csv").write_text("subject\n" + "\n".join(names[p] for p in some) + "\n")
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in call("site", "withdrawn", ward).stdout.splitlines()
        if "│" in line
    ]
    assert sorted(rows) == sorted(
        [names[p], "small", "small-1", rounds] for p, rounds in zip(some, ("1, 2", "1"), strict=True)
    )


def test_leaving_a_study_that_is_unknown_is_an_error_and_drains_and_keys_say_what_they_did(
    home: Path,
) -> None:
    ward = home / "wards" / "north"
    old = Hospital.open(ward).public_key
    left = call("site", "leave", "other", ward, "--yes")
    assert (left.exit_code, "takes part, got 'other'" in left.stderr) == (2, True)
    assert "No order is running, and none is accepted" in call("site", "drain", ward).stdout
    assert "accepted again" in call("site", "drain", ward, "--off").stdout
    assert call("site", "change-key", ward, answer="n\n").exit_code == 0
    assert Hospital.open(ward).public_key == old
    said = call("site", "change-key", ward, "--yes").stdout
    assert Hospital.open(ward).public_key in said
    assert Hospital.open(ward).public_key != old


@pytest.mark.slow
def test_a_rehearsal_says_what_it_tried_and_ends_with_1_where_something_failed(
    home: Path, study_file, edit
) -> None:
    ward = home / "wards" / "north"
    edit(ward / "site.yaml", networks=["SegResNet"])
    tried = call("site", "rehearse", study_file(), ward)
    assert tried.exit_code == 1
    assert "rehearsal, join: it refused: network UNet is not among those" in tried.stdout


def test_a_coordinators_question_is_answered_by_hand(home: Path, study_with, edit) -> None:
    hub = Coordinator(study_with(), Exchange(str(home / "exchange")), Ed25519PrivateKey.generate())
    ward, key = home / "wards" / "north", public_hex(hub.key)
    api = "https://hub.example.org/api"
    edit(ward / "site.yaml", coordinator={"key": key, "exchange": hub.exchange.url, "api": api})
    assert "No order of study small" in call("site", "check", "small", ward).stdout
    order = Order(
        phase="check", study=hub.study, site="north", run="small-1", round=0, attempt=1, exchange="",
        coordinator=key, expires_ms=int(1000 * (time.time() + 60)),
    )  # fmt: skip
    signed = sign(order.model_dump(mode="json"), "coordinator", hub.key)
    hub.exchange.put_statement(Place.order("small-1", 0, "check", 1, "north"), signed)
    assert "check of small-1, round 0: answered." in call("site", "check", "small", ward).stdout
    assert hub.exchange.statement(Place.statement("small-1", 0, "check", "north"))


def test_equal_findings_are_one_row_and_the_table_says_what_to_do(home: Path) -> None:
    ward = home / "wards" / "north"
    for image in sorted((ward / "imagesTr").glob("*.nii.gz"))[:5]:
        image.unlink()
    done = call("site", "check", ward)
    assert done.exit_code == 1
    said = " ".join(done.stdout.split())
    assert said.count("a file is missing") == 1
    assert "5 cases:" in said
    assert "What to do: the cases that are skipped add nothing; mend the files, or take them off" in said
    found = json.loads(call("site", "check", ward, "--json").stdout)
    assert sum(line["check"] == "missing" for line in found) == 5


def test_a_study_is_checked_without_hospitals_and_nothing_is_made(home: Path, study_file) -> None:
    before = sorted(home.iterdir())
    fine = call("check", study_file())
    assert (fine.exit_code, "fit each other" in fine.stdout) == (0, True)
    wrong = call("check", study_file(rounds=0, roundz=3))
    assert wrong.exit_code == 2
    assert "rounds: expected greater than or equal to 1, got 0 (line" in wrong.stderr
    assert "Did you mean rounds?" in wrong.stderr
    assert [path for path in sorted(home.iterdir()) if path not in before] == [home / "small.yaml"]


def test_a_schedule_that_is_no_cron_is_refused_at_once(home: Path, study_file) -> None:
    result = call("survey", study_file(), "--cron", "every monday")
    assert result.exit_code == 2
    assert "--cron: expected five fields" in result.stderr
    assert_untouched(home)


def test_leaving_a_study_that_nobody_knows_asks_nothing(home: Path) -> None:
    result = call("site", "leave", "unknown", home / "wards" / "north")
    assert result.exit_code == 2
    assert "got 'unknown'" in result.stderr
    assert "Go on?" not in result.stdout


def test_a_study_is_left_once_and_leaving_again_publishes_it_again_without_a_question(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = moved(finished, tmp_path / "home").home.folder
    monkeypatch.chdir(home)
    ward = home / "wards" / "north"
    assert "Go on?" in call("site", "leave", "small", ward, answer="y\n").stdout
    again = call("site", "leave", "small", ward)
    assert (again.exit_code, "Go on?" in again.stdout) == (0, False)
    assert "north has left small before; this is published again." in again.stdout
    rows = json.loads(call("site", "outbox", ward, "--json").stdout)
    assert [row["act"] for row in rows].count("leave") == 1


def test_the_outbox_as_json_has_whole_names(finished: Path) -> None:
    ward = finished / "wards" / "north"
    rows = json.loads(call("site", "outbox", ward, "--json").stdout)
    assert {row["act"] for row in rows} >= {"join", "contribute", "evaluate"}
    for row in rows:
        assert (ward / "state" / "outbox" / f"{row['statement']}.json").exists()
        if row["tensors"]:
            assert (ward / "state" / "outbox" / f"{row['tensors']}.safetensors").exists()


def test_a_folder_that_is_not_there_is_named(home: Path) -> None:
    told = call("site", "check", "wards/nosuch")
    assert told.exit_code == 2
    assert "wards/nosuch: expected a hospital's folder, or a study's name" in told.stderr


def test_a_run_beside_itself_has_no_difference_and_says_so(finished: Path, monkeypatch) -> None:
    monkeypatch.chdir(finished)
    (row,) = json.loads(call("runs", "--json").stdout)
    told = call("runs", "diff", row["run"], row["run"])
    assert (told.exit_code, "differ in nothing that is compared" in told.stdout) == (0, True)


def test_programs_get_every_fault_as_json_and_a_study_that_is_right_too(home: Path, study_file) -> None:
    wrong = study_file(rounds=0)
    for command in (["check"], ["plan"], ["survey"], ["site", "rehearse"]):
        told = call(*command, wrong, "--json")
        (fault,) = json.loads(told.stdout)["faults"]
        assert (told.exit_code, fault["key"]) == (2, "rounds"), command
    right = json.loads(call("check", study_file(), "--json").stdout)
    assert right == {"faults": [], "warnings": [], "hospitals": None}


def test_an_export_without_a_list_and_without_dicom_is_told_what_it_needs(home: Path) -> None:
    from sites.datasets.phantoms import write_policy

    folder, export = home / "empty", home / "export"
    folder.mkdir()
    export.mkdir()
    policy = yaml.safe_load((home / "wards" / "north" / "site.yaml").read_text())
    write_policy(folder, {**policy, "phantom": False})
    (export / "a.nii.gz").write_bytes(b"no scan")
    told = call("site", "import", export, folder)
    assert told.exit_code == 0
    assert "0 new cases" in told.stdout
    assert "NIfTI files and pictures need one beside them: cases.csv" in told.stdout.replace("\n", " ")
