"""Security events: who did what, who was turned away, kept as long as the policy says."""

import json
import multiprocessing
import shutil
import stat
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from sites.admission.requests import decide_by_code
from sites.hospital import Hospital
from sites.policy.security_log import DAYS, EVENTS, LONGEST, SecurityLog
from sites.protocol.departure import change_key
from sites.protocol.order_inbox import BadOrder, OrderRef, carry_out_ref, drain
from sites.setup.initialise import initialise
from sites.yaml_files import ConfigError

POLICY = {
    "name": "north", "declared_patients": 90, "budget": {"epsilon": 8, "delta": 1e-4},
    "metrics": "withheld",
}  # fmt: skip


def lines(folder: Path) -> list[tuple[str, str]]:
    return [(event["what"], event["who"]) for event in SecurityLog(folder).events()]


def test_an_event_is_one_line_of_json_for_its_owner_alone(tmp_path: Path) -> None:
    log = SecurityLog(tmp_path / "security")
    log.write("approved", "Änne\nO'Neil", terms="ab", round=3)
    (path,) = log.folder.glob("*.jsonl")
    assert path.stem == f"{datetime.now(UTC):%Y-%m-%d}"
    (line,) = path.read_text().splitlines()
    event = json.loads(line)
    assert event.keys() == {"at", "what", "who", "terms", "round"}
    assert (event["who"], event["round"]) == ("Änne\nO'Neil", 3)
    assert datetime.fromisoformat(event["at"]).tzinfo is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(log.folder.stat().st_mode) == 0o700


def test_events_older_than_the_retention_are_deleted_when_a_day_begins(tmp_path: Path) -> None:
    log, today = SecurityLog(tmp_path, days=30), datetime.now(UTC).date()
    for age in (29, 30, 31, 400):
        line = '{"at": "", "what": "drained", "who": ""}\n'
        (tmp_path / f"{today - timedelta(days=age)}.jsonl").write_text(line)
    log.write("drained")
    kept = sorted(path.stem for path in tmp_path.glob("*.jsonl"))
    assert kept == [str(today - timedelta(days=age)) for age in (30, 29, 0)]
    assert len(list(log.events(since=today))) == 1
    assert len(list(log.events(since=date(2000, 1, 1)))) == 3


def _write_many(folder: str) -> None:
    for k in range(100):
        SecurityLog(Path(folder)).write("drained", "x" * 200, k=k)


def test_processes_that_write_at_the_same_time_lose_and_mix_nothing(tmp_path: Path) -> None:
    workers = [multiprocessing.Process(target=_write_many, args=(str(tmp_path),)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(list(SecurityLog(tmp_path).events())) == 400


def test_half_a_line_of_a_machine_that_died_hides_no_other(tmp_path: Path) -> None:
    log = SecurityLog(tmp_path)
    log.write("drained")
    (path,) = tmp_path.glob("*.jsonl")
    path.write_text(path.read_text() + '{"at": "2026')
    log.write("accepts_orders")
    assert [what for what, _ in lines(tmp_path)] == ["drained", "accepts_orders"]


def test_what_others_send_neither_hides_events_nor_writes_to_a_terminal(tmp_path: Path) -> None:
    log = SecurityLog(tmp_path)
    for who in ("mallory\u2028", "x\u20285\u2028", "a\x1b]0;owned\x1b[31m", "[red]b", "w" * 60_000):
        log.write("code_refused", who)
    found = [event["who"] for event in log.events()]
    assert found[:2] == ["mallory\u2028", "x\u20285\u2028"]
    assert len(found) == 5 and len(found[-1]) == LONGEST
    hospital = initialise(tmp_path / "north", POLICY)
    hospital.security_log.write("code_refused", "a\x1b]0;owned\x1b[31m[red]")
    shown = CliRunner().invoke(app, ["site", "events", str(hospital.folder)], env={"COLUMNS": "200"})
    assert "\x1b" not in shown.stdout and "a?]0;owned?[31m[red]" in shown.stdout


def test_outsiders_fill_no_disk_and_what_people_do_is_still_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sites.policy.security_log.LARGEST", 1000)
    log = SecurityLog(tmp_path)
    for _ in range(50):
        log.write("order_refused", "x" * 100)
    log.write("approved", "ada")
    events = lines(tmp_path)
    assert 5 < len(events) < 12 and events[-1] == ("approved", "ada")


def test_a_log_that_cannot_be_written_stops_no_act_and_says_so(tmp_path: Path, capsys) -> None:
    hospital = initialise(tmp_path / "north", POLICY)
    shutil.rmtree(hospital.security_log.folder)
    hospital.security_log.folder.write_text("in the way")
    before = hospital.public_key
    now, _ = change_key(hospital)
    hospital.security_log.write_if_changed("policy_changed", hospital.folder / "site.yaml")
    assert now != before
    assert capsys.readouterr().err.count("The security log in") == 2


def test_a_clock_that_jumps_and_other_files_cost_no_event(tmp_path: Path) -> None:
    today = datetime.now(UTC).date()
    (tmp_path / "0-notes.jsonl").write_text("mine")
    (tmp_path / f"{today - timedelta(days=900)}.jsonl").write_text('{"at": "", "what": "", "who": ""}')
    SecurityLog(tmp_path, days=30).write("drained")
    assert len(list(tmp_path.glob("*.jsonl"))) == 3


def test_what_people_do_at_a_hospital_is_recorded(tmp_path: Path, edit) -> None:
    hospital = initialise(tmp_path / "north", POLICY)
    log = hospital.security_log
    assert log.days == DAYS
    drain(hospital, on=True)
    drain(hospital, on=False)
    with pytest.raises(ConfigError):
        decide_by_code(hospital, "a guess", "mallory")
    before = hospital.public_key
    change_key(hospital)
    for _ in range(2):
        log.write_if_changed("policy_changed", tmp_path / "north" / "site.yaml")
    edit(tmp_path / "north" / "site.yaml", security_log_days=365)
    log.write_if_changed("policy_changed", tmp_path / "north" / "site.yaml")
    found = [what for what, _ in lines(log.folder)]
    assert found == [
        "hospital_set_up", "drained", "accepts_orders", "code_refused", "key_changed",
        "policy_changed", "policy_changed",
    ]  # fmt: skip
    events = {event["what"]: event for event in log.events()}
    assert events["code_refused"]["who"] == "mallory (from afar)"
    assert events["key_changed"]["before"] == before
    assert Hospital.open(tmp_path / "north").security_log.days == 365


def test_an_order_that_cannot_be_trusted_is_recorded(tmp_path: Path) -> None:
    exchange = tmp_path / "exchange"
    coordinator = {"key": "0" * 64, "exchange": str(exchange), "api": "https://hub.example.org/api"}
    hospital = initialise(tmp_path / "north", {**POLICY, "coordinator": coordinator})
    ref = OrderRef(run="small-20260101-000000-0000", round=1, phase="contribute", attempt=1)
    with pytest.raises(BadOrder):
        carry_out_ref(hospital, ref, lambda *_: None)
    *_, event = hospital.security_log.events()
    assert (event["what"], event["phase"]) == ("order_refused", "contribute")
    assert "no such order" in event["why"]


def test_the_commands_show_a_table_and_the_stored_lines(tmp_path: Path, monkeypatch) -> None:
    hospital = initialise(tmp_path / "north", POLICY)
    done = CliRunner().invoke(app, ["site", "events", str(hospital.folder), "--json"])
    assert json.loads(done.stdout)["what"] == "hospital_set_up"
    shown = CliRunner().invoke(app, ["site", "events", str(hospital.folder)])
    assert "hospital set up" in shown.stdout
    later = CliRunner().invoke(app, ["site", "events", str(hospital.folder), "--since", "2999-01-01"])
    assert "No event is recorded" in later.stdout
    monkeypatch.chdir(tmp_path)
    assert "No event is recorded" in CliRunner().invoke(app, ["events"]).stdout


def test_each_event_is_written_somewhere_and_names_no_patient() -> None:
    root = Path(__file__).parents[3]
    code = "\n".join(
        path.read_text() for room in ("sites", "flows") for path in (root / room).rglob("*.py")
        if path.name != "security_log.py"
    )  # fmt: skip
    written = {event for event in EVENTS if f'"{event}"' in code}
    assert written == set(EVENTS)
