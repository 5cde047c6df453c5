"""People decide in a browser, with their own keys, and nobody else can decide for them."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from browsing import PATIENCE_MS, needs_chromium
from deciders import KEYS, PEOPLE, with_people
from homes import moved
from playwright.sync_api import Page, expect

from flows.decisions import chain
from flows.decisions.verdicts import signed_verdict, terms_of
from flows.release.reviews import decision_page
from flows.reporting.publish import publish_decisions_page
from flows.runs.run import Run
from flows.servers.environment import mlflow_server
from flows.servers.loopback import running
from flows.verification.verify import faults
from privacy.signing import private_key, public_hex


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
        ({"run": run.name, "signed": "--help"}, 400),
        ({"run": "../x", "signed": text}, 400),
        ({"run": "small-20200101-000000-0000", "signed": text}, 400),
        ({"run": run.name, "signed": text.replace("approved", "refused")}, 400),
        ({"run": run.name, "signed": "{" + "x" * 70_000}, 400),
    ):
        asked = {"content": content} if isinstance(content, bytes) else {"json": content}
        found = httpx.post(f"{server}/wardround/verdicts", **asked, timeout=120)
        assert found.status_code == status, found.text
        assert not found.json()["is_recorded"]
    assert httpx.get(f"{server}/wardround/verdicts").status_code == 404
    assert verdicts(run) == []


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
    page.goto("about:blank")
    page.goto(f"{server}/#/models?workflowType=machine_learning")
    expect(page.get_by_role("link", name="small-candidates")).to_be_visible(timeout=PATIENCE_MS)
