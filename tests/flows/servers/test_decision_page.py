"""People decide in a browser, with their own keys, and nobody else can decide for them."""

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from browsing import PATIENCE_MS, needs_chromium
from deciders import KEYS, PEOPLE, with_people
from homes import moved
from mlflow.tracking import MlflowClient
from playwright.sync_api import Page, expect

from flows.decisions import chain
from flows.decisions.verdicts import signed_verdict, terms_of
from flows.release.reviews import decision_page
from flows.reporting.publish import publish_decisions_page
from flows.reporting.report import report
from flows.runs.run import Run
from flows.servers.environment import mlflow_server
from flows.servers.loopback import running
from flows.verification.verify import faults
from privacy.signing import private_key, public_hex

pytestmark = pytest.mark.slow  # servers and a browser; .ci/run has these


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Run:
    return with_people(moved(finished, tmp_path / "home"))


@pytest.fixture
def server(run: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with running(mlflow_server(run.home)) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        publish_decisions_page(run)
        yield url


def key_file(folder: Path, name: str) -> Path:
    path = folder / f"{name}.key"
    path.write_bytes(KEYS[name].private_bytes_raw())
    return path


def fill(page: Page, name: str, role: str, word: str, key: Path | None, reason: str = "") -> None:
    page.get_by_label("Your name").fill(name)
    page.get_by_label("Your role").select_option(role)
    if key:
        page.get_by_label("Your key").set_input_files(key)
    page.get_by_role("radio", name=word).check()
    page.get_by_label("Reason").fill(reason)
    page.get_by_role("button", name="Sign and record").click()


def verdicts(run: Run) -> list[tuple[str, str, str]]:
    return [(v.person, v.word, v.reason) for d in chain.decisions(run) if (v := d.verdict)]


@needs_chromium
def test_a_clinician_reads_and_decides_from_one_link_without_a_terminal(
    run: Run, server: str, page: Page, tmp_path: Path
) -> None:
    page.goto(decision_page(run))
    expect(page.get_by_role("heading", level=1)).to_contain_text(
        "small: decide about the model of round 2"
    )
    report = page.frame_locator("#report")
    expect(report.get_by_role("heading", name="Privacy", exact=True)).to_be_visible()

    fill(page, "ada", "clinician", "refuse", key_file(tmp_path, "ada"))
    expect(page.locator("#problem")).to_contain_text("Give a reason")
    assert verdicts(run) == []

    fill(page, "ada", "clinician", "refuse", key_file(tmp_path, "ada"), "Ränder zu grob\n<b>&")
    expect(page.get_by_role("heading", name="Recorded.", exact=True)).to_be_visible(timeout=PATIENCE_MS)
    assert verdicts(run) == [("ada", "refused", "Ränder zu grob\n<b>&")]

    page.goto(decision_page(run))
    fill(page, "ada", "clinician", "approve", key_file(tmp_path, "ada"))
    expect(page.locator("#answer")).to_contain_text("Still missing: officer", timeout=PATIENCE_MS)
    assert [word for _, word, _ in verdicts(run)] == ["refused", "approved"]
    assert list(faults(run)) == []


@needs_chromium
def test_a_verdict_with_another_persons_key_is_not_recorded_and_says_why(
    run: Run, server: str, page: Page, tmp_path: Path
) -> None:
    page.goto(decision_page(run))
    fill(page, "ada", "clinician", "approve", key_file(tmp_path, "bo"))
    expect(page.get_by_role("heading", name="Not recorded.")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator("#answer")).to_contain_text("ada has not signed it with the key in people.yaml")
    (tmp_path / "long.key").write_bytes(b"x" * 33)
    fill(page, "ada", "clinician", "approve", tmp_path / "long.key")
    expect(page.locator("#problem")).to_contain_text("Expected a key of 32 bytes, got 33")
    assert verdicts(run) == []


@needs_chromium
def test_a_key_made_in_the_browser_decides_once_the_coordinator_has_its_line(
    run: Run, server: str, page: Page, tmp_path: Path
) -> None:
    page.goto(decision_page(run))
    page.get_by_label("Your name").fill("cleo")
    page.get_by_label("Your role").select_option("clinician")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="I have no key yet").click()
    waiting.value.save_as(tmp_path / "cleo.key")
    expect(page.locator("#made")).to_contain_text("give the coordinator this line")
    line = (page.locator("#made").text_content() or "").partition("people.yaml: ")[2]
    assert yaml.safe_load(line) == {
        "cleo": {"role": "clinician", "key": public_hex(private_key(tmp_path / "cleo.key"))}
    }
    people = {**PEOPLE.model_dump()["people"], **yaml.safe_load(line)}
    (run.home.folder / "people.yaml").write_text(yaml.safe_dump({"people": people}))
    fill(page, "cleo", "clinician", "approve", tmp_path / "cleo.key")
    expect(page.get_by_role("heading", name="Recorded.", exact=True)).to_be_visible(timeout=PATIENCE_MS)
    assert verdicts(run) == [("cleo", "approved", "")]


def test_what_is_no_signed_verdict_of_this_run_records_nothing(run: Run, server: str) -> None:
    record = run.records()[-1]
    text = signed_verdict(terms_of(run, record), "approved", "ada", "clinician", KEYS["ada"], 30)
    for content, status in (
        (b"no json", 400),
        (b"[]", 400),
        (b"[" * 60_000, 400),
        ({"run": run.name, "signed": "--help"}, 400),
        ({"run": run.name, "signed": "{\x00"}, 400),
        ({"run": "../x", "signed": text}, 400),
        ({"run": "small-20200101-000000-0000", "signed": text}, 400),
        ({"run": run.name, "signed": text.replace("approved", "refused")}, 400),
        ({"run": run.name, "signed": "{" + "x" * 70_000}, 413),
    ):
        asked = {"content": content} if isinstance(content, bytes) else {"json": content}
        headers = {"Content-Type": "application/json"}
        found = httpx.post(f"{server}/wardround/verdicts", **asked, headers=headers, timeout=120)
        assert found.status_code == status, found.text
        assert found.json()["recorded"] == "no"
    assert httpx.get(f"{server}/wardround/verdicts").status_code == 404
    assert verdicts(run) == []


def test_other_web_sites_and_plain_text_are_not_taken(run: Run, server: str) -> None:
    record = run.records()[-1]
    text = signed_verdict(terms_of(run, record), "approved", "ada", "clinician", KEYS["ada"], 30)
    body = json.dumps({"run": run.name, "signed": text})
    for headers, status in (
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/json", "Origin": "https://elsewhere.example"}, 403),
    ):
        found = httpx.post(f"{server}/wardround/verdicts", content=body, headers=headers)
        assert found.status_code == status
    assert verdicts(run) == []


def test_a_long_body_without_its_length_is_not_read_to_its_end(server: str) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            yield b"x" * 65_536

    headers = {"Content-Type": "application/json"}
    with contextlib.suppress(httpx.WriteError, httpx.RemoteProtocolError):  # it may hang up
        found = httpx.post(f"{server}/wardround/verdicts", content=endless(), headers=headers)
        assert found.status_code == 413


def test_who_is_slow_to_send_keeps_nobody_else_waiting(run: Run, server: str) -> None:
    host, port = server.removeprefix("http://").split(":")
    slow = [socket.create_connection((host, int(port))) for _ in range(12)]
    head = (
        f"POST /wardround/verdicts HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    )
    for each in slow:
        each.sendall(f"{head}Content-Length: 100\r\n\r\nx".encode())
    found = httpx.post(f"{server}/wardround/verdicts", json={"run": run.name}, timeout=30)
    assert found.status_code == 400
    for each in slow:
        each.settimeout(30)
        assert b" 408 " in each.recv(1000)
        each.close()


def test_the_address_of_mlflow_is_the_servers_own_whatever_a_request_calls_it(
    run: Run, server: str
) -> None:
    record = run.records()[-1]
    text = signed_verdict(terms_of(run, record), "refused", "ada", "clinician", KEYS["ada"], 30, "no")
    found = httpx.post(
        f"{server}/wardround/verdicts",
        json={"run": run.name, "signed": text},
        headers={"Host": "localhost:9"},  # as through a tunnel from another port
        timeout=120,
    )
    assert (found.status_code, found.json()["recorded"]) == (200, "yes"), found.text
    assert verdicts(run) == [("ada", "refused", "no")]


def test_what_is_recorded_and_could_not_be_published_is_said_to_be_recorded(
    run: Run, server: str
) -> None:
    record = run.records()[-1]
    text = signed_verdict(terms_of(run, record), "refused", "ada", "clinician", KEYS["ada"], 30, "no")
    (run.folder / "artifacts").rename(run.folder / "elsewhere")  # what is published is signed there
    (run.folder / "artifacts").write_text("in the way")
    body = {"run": run.name, "signed": text}
    found = httpx.post(f"{server}/wardround/verdicts", json=body, timeout=120)
    assert found.json()["recorded"] == "yes, and not published everywhere yet", found.text
    assert verdicts(run) == [("ada", "refused", "no")]


@needs_chromium
def test_a_report_of_another_round_is_not_decided_upon(run: Run, server: str, page: Page) -> None:
    client = MlflowClient(server)
    parent = decision_page(run).partition("run=")[2]
    before = report(run, until=1).decode()
    client.log_text(parent, before, "report.html")
    page.goto(decision_page(run))
    expect(page.locator("#problem")).to_contain_text("about another model", timeout=PATIENCE_MS)
    expect(page.locator("#form")).to_be_hidden()


def test_a_server_that_is_not_the_coordinators_takes_no_verdicts(tmp_path: Path) -> None:
    from flows.servers.environment import store_server

    with running(store_server(tmp_path / "store", tmp_path / "server")) as url:
        assert httpx.post(f"{url}/wardround/verdicts", json={}).status_code == 404
        page = httpx.get(f"{url}/wardround/decide")
        assert (page.status_code, "script-src 'self'" in page.headers["Content-Security-Policy"]) == (
            200,
            True,
        )


@needs_chromium
def test_mlflow_opens_on_the_experiments_and_every_other_link_where_it_leads(
    server: str, page: Page
) -> None:
    page.goto(server)
    expect(page.get_by_role("link", name="small", exact=True)).to_be_visible(timeout=PATIENCE_MS)
    expect(page.get_by_text("Welcome to MLflow Assistant")).to_have_count(0)
    assistant = page.get_by_role("button", name="MLflow Assistant", include_hidden=True)
    expect(assistant).to_have_count(1, timeout=PATIENCE_MS)  # MLflow draws it
    expect(assistant).to_be_hidden()
    page.goto("about:blank")
    page.goto(f"{server}/#/models?workflowType=machine_learning")
    expect(page.get_by_role("link", name="small-candidates")).to_be_visible(timeout=PATIENCE_MS)
    page.goto(f"{server}/#/models/small-candidates")
    page.wait_for_url("**/*#/models/small-candidates?workflowType=machine_learning", timeout=PATIENCE_MS)
    page.get_by_role("link", name="Version 1", exact=False).first.click()
    page.wait_for_url("**/*#/models/small-candidates/versions/**", timeout=PATIENCE_MS)
    page.wait_for_url("**/*workflowType=machine_learning*", timeout=PATIENCE_MS)
