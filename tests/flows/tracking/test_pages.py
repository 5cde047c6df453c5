"""What people see in MLflow, in a real browser without anything remembered."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from socket import socket

import httpx
import numpy as np
import pytest
from browsing import PATIENCE_MS, needs_chromium
from homes import moved
from PIL import Image
from playwright.sync_api import Locator, Page, expect
from puppets import SITES, Federation

from flows.reporting.report import report
from flows.rounds import recording, statements
from flows.rounds.statements import NO_ANSWERS
from flows.runs.colours import TOGETHER, colours
from flows.runs.run import Run
from flows.servers.environment import mlflow_server
from flows.servers.loopback import running
from flows.tracking import hospital_store, reference_cases, views
from flows.tracking.pictures import REFERENCES
from flows.tracking.tracking import Tracking
from sites.evaluation.gallery import hardest, seen_models
from sites.hospital import Hospital


@pytest.fixture(scope="module")
def run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return moved(finished, tmp_path_factory.mktemp("seen") / "home")


@pytest.fixture(scope="module")
def links(run: Run) -> Iterator[dict[str, str]]:
    with running(mlflow_server(run.home)) as url:
        yield dict(views.links(url))


def drawn(chart: Locator, page: Page) -> set[tuple[str, bool]]:
    """Return the colour of each line in view in a chart, and whether it is dashed."""
    chart.scroll_into_view_if_needed()
    page.wait_for_function(DRAWN, arg=chart.element_handle())
    expect(chart).to_be_in_viewport(ratio=0.99)
    return {(colour, dashed) for colour, dashed in chart.evaluate(LINES)}


LINES = """chart => [...chart.querySelectorAll('.scatterlayer .trace')]
    .filter(line => [...line.querySelectorAll('.point')].some(point => {
        const [a, b] = [point, chart].map(each => each.getBoundingClientRect())
        const isWide = a.width > 2 && a.left >= b.left && a.right <= b.right
        return isWide && a.top >= b.top && a.bottom <= b.bottom
    }))
    .map(line => line.querySelector('path.js-line'))
    .map(path => [path.style.stroke, path.style.strokeDasharray !== ''])"""
DRAWN = f"chart => ({LINES})(chart).length > 0"
DOTS = """(row, colour) => [...row.querySelectorAll('*')]
    .some(each => getComputedStyle(each).backgroundColor === colour && each.offsetWidth > 5)"""


def rgb(colour: str) -> str:
    return f"rgb({', '.join(str(part) for part in bytes.fromhex(colour[1:]))})"


@needs_chromium
def test_the_saved_view_shows_a_line_for_each_hospital_without_a_click(
    page: Page, links: dict[str, str], run: Run
) -> None:
    expect.set_options(timeout=PATIENCE_MS)
    page.set_viewport_size({"width": 1600, "height": 3800})  # what lies below is drawn once it is seen
    page.goto(links["small: all hospitals"])
    sections = page.get_by_test_id("experiment-view-compare-runs-section-header")
    charts = page.get_by_test_id("experiment-view-compare-runs-card")
    expect(sections).to_contain_text(["Quality", "Privacy", "Operations"])
    expect(charts.get_by_role("heading", level=4)).to_have_text(
        ["val/dice", "val/hd95_mm", "privacy/epsilon vs privacy/budget", "exchange/bytes_up",
         "perf/train_seconds", "perf/round_seconds"]
    )  # fmt: skip
    every = {site: rgb(colour) for site, colour in colours(run.description).items()}
    together = rgb(TOGETHER)
    assert len({together, *every.values()}) == 4
    for name, shown, colour in [(n, n, c) for n, c in every.items()] + [("GLOBAL", run.name, together)]:
        expect(page.get_by_text(f"Group: {name}", exact=True)).to_be_in_viewport()
        row = page.locator(".ag-row", has=page.get_by_role("link", name=shown, exact=True)).first
        expect(row).to_be_in_viewport()
        page.wait_for_function(f"row => ({DOTS})(row, '{colour}')", arg=row.element_handle())
    each = {(colour, False) for colour in every.values()}
    budgets = {(colour, True) for colour in every.values()}
    assert drawn(charts.nth(0), page) == {*each, (together, False)}
    assert drawn(charts.nth(1), page) == {*each, (together, False)}
    assert drawn(charts.nth(2), page) == {*each, *budgets, (together, False)}
    assert drawn(charts.nth(3), page) == {*each, (together, False)}
    assert drawn(charts.nth(4), page) == each
    assert drawn(charts.nth(5), page) == {(together, False)}


@needs_chromium
def test_the_runs_page_says_in_view_who_has_approved_and_whom_it_waits_for(
    page: Page, links: dict[str, str]
) -> None:
    expect.set_options(timeout=PATIENCE_MS)
    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto(links["small: newest run"])
    for said in (
        "no: a candidate", "clinician and officer, about round 2", "Round 2 of 2 is recorded",
        "missing: nobody",
    ):  # fmt: skip
        told = page.locator("p", has_text=said).first
        expect(told).to_be_in_viewport(ratio=1)
        assert told.evaluate(
            "e => e.scrollWidth <= e.clientWidth && e.scrollHeight <= e.clientHeight + 1"
        )


@needs_chromium
def test_the_first_line_of_the_studys_note_leads_to_report_and_models(
    page: Page, links: dict[str, str], run: Run
) -> None:
    expect.set_options(timeout=PATIENCE_MS)
    page.goto(links["small: all hospitals"])
    for name in ("all hospitals", "report", "newest run", "models", "decide"):
        expect(page.get_by_role("link", name=name, exact=True).first).to_be_visible()
    hrefs = {
        name: page.get_by_role("link", name=name, exact=True).first.get_attribute("href")
        for name in ("all hospitals", "pictures", "report")
    }
    root = links["small: all hospitals"].partition("#")[0]
    page.goto("about:blank")
    page.goto(root + hrefs["all hospitals"])
    for name in ("north", "east", "south"):
        expect(page.get_by_text(f"Group: {name}", exact=True)).to_be_visible()
    page.goto("about:blank")
    page.goto(root + hrefs["pictures"])
    expect(page.get_by_text(REFERENCES).first).to_be_in_viewport()
    page.goto(root + hrefs["report"])
    shown = page.frame_locator("iframe.mlflow-html-iframe")
    expect(shown.get_by_role("heading", name="small: a model of 3 hospitals")).to_be_visible()
    for heading in ("Quality", "Privacy", "What left the hospitals", "Lineage", "Model card"):
        expect(shown.get_by_role("heading", name=heading, exact=True)).to_be_visible()
    expect(shown.get_by_text(run.records()[-1].model_sha256)).to_be_visible()


@pytest.mark.slow
@needs_chromium
def test_a_study_that_classifies_is_shown_by_its_area_under_the_curve(
    page: Page, study_with, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect.set_options(timeout=PATIENCE_MS)
    task = {"kind": "classification", "dims": 2, "labels": {0: "well", 1: "ill"}}
    study = study_with(
        task=task, network={"name": "resnet10", "width": 8}, preprocessing={"shape": [16, 16]},
        export="weights", distillation=None,
    )  # fmt: skip
    federation = Federation(tmp_path, study)
    model = federation.base.model_sha256
    for i, site in enumerate(SITES):
        metrics = {"auroc": 0.5 + i / 10, "accuracy": 0.6}
        federation.say(site, "evaluate", 0, kind="scores", charges=0, model_sha256=model,
                       chain_head="0" * 64, metrics_policy="exact", metrics=metrics)  # fmt: skip
    scores = statements.answers(federation.run, 0, "evaluate", sorted(SITES))
    record = recording.round_record(federation.run, 0, model, NO_ANSWERS, scores, 0)
    with running(mlflow_server(federation.run.home)) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        with Tracking(federation.run) as tracking:
            tracking.log(record)
        page.goto(dict(views.links(url))["small: all hospitals"])
        charts = page.get_by_test_id("experiment-view-compare-runs-card")
        titles = charts.get_by_role("heading", level=4)
        expect(titles.filter(has_text="val/")).to_have_text(["val/auroc", "val/accuracy"])
        every = (*colours(federation.run.description).values(), TOGETHER)
        assert drawn(charts.nth(0), page) == {(rgb(colour), False) for colour in every}


@pytest.mark.slow
@needs_chromium
def test_a_registered_version_says_what_it_is(page: Page, links: dict[str, str], run: Run) -> None:
    expect.set_options(timeout=PATIENCE_MS)
    page.goto(links["small-candidates: versions"].replace("?", "/versions/2?"))
    expect(page.get_by_role("heading", name="Version 2")).to_be_visible()
    for key, told in (
        ("wardround.round", "2"),
        ("wardround.sha256", run.records()[-1].model_sha256[:20]),
        ("wardround.run", run.name),
        ("val/dice", f"{run.records()[-1].quality['dice']:.4f}"),
    ):
        row = page.locator(f'tr[data-row-key="{key}"]')
        row.scroll_into_view_if_needed()
        expect(row).to_be_in_viewport()
        expect(row).to_contain_text(told)
    expect(page.get_by_text("candidate", exact=False).first).to_be_visible()


@pytest.mark.slow
@needs_chromium
def test_reference_cases_are_seen_at_once_and_over_the_rounds(page: Page, links: dict[str, str]) -> None:
    expect.set_options(timeout=PATIENCE_MS)
    page.set_viewport_size({"width": 1600, "height": 1000})
    page.goto(links["small: pictures"])
    picture = page.locator("img[src*='get-artifact']")
    expect(picture).to_be_in_viewport()
    expect(page.get_by_text(REFERENCES).first).to_be_in_viewport()
    page.wait_for_function("() => [...document.images].some(i => i.src.includes('step%2B2%2B'))")
    page.wait_for_function("() => [...document.images].some(i => i.naturalWidth > 100)")
    slider = page.get_by_role("slider").first
    expect(slider).to_be_in_viewport()
    slider.press("ArrowLeft")
    page.wait_for_function("() => [...document.images].some(i => i.src.includes('step%2B1%2B'))")
    expect(page.get_by_test_id("experiment-view-compare-runs-section-header").first).to_contain_text(
        "Pictures"
    )


@pytest.mark.slow
@needs_chromium
def test_the_report_is_whole_on_printed_paper(page: Page, run: Run, tmp_path: Path) -> None:
    """On A4 at 96 pixels an inch, less the margins: nothing lies beyond the right edge."""
    file = tmp_path / "report.html"
    file.write_bytes(report(run))
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 718, "height": 1000})
    page.goto(file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    for heading in ("Quality", "Privacy", "Decisions", "Model card"):
        expect(page.get_by_role("heading", name=heading, exact=True)).to_be_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_every_picture_in_the_central_store_is_drawn_from_the_study_and_a_model_alone(run: Run) -> None:
    """So no patient's pixel is in it: without any hospital the same is drawn, pixel by pixel."""
    pictures = sorted((run.home.folder / "mlruns").rglob("*.png"))
    assert len(pictures) == 3
    for record, path in zip(run.records(), pictures_by_step(pictures), strict=True):
        drawn = reference_cases.picture(run.study, run.model(record), record.round)
        assert np.array_equal(np.asarray(drawn), np.asarray(Image.open(path).convert("RGB")))
    small = sorted((run.home.folder / "mlruns").rglob("*.webp"))
    for path, whole in zip(pictures_by_step(small), pictures_by_step(pictures), strict=True):
        reduced = Image.open(path).convert("RGB")
        due = Image.open(whole).convert("RGB").resize(reduced.size)
        difference = np.abs(np.asarray(reduced, float) - np.asarray(due, float))
        assert difference.mean() < 12  # of 255: it is compressed
    kinds = {p.suffix for p in (run.home.folder / "mlruns").rglob("*") if p.is_file()}
    known = {".png", ".webp", ".json", ".csv", ".html", ".safetensors", ".txt", ".yaml", ".db", ""}
    assert kinds <= known | {".db-wal", ".db-shm"}
    assert {p.name for p in (run.home.folder / "mlruns").rglob("*") if p.is_file() and not p.suffix} == {
        "MLmodel"
    }


def pictures_by_step(paths: list[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: int(path.name.split("+step+")[1].split("+")[0]))


@pytest.mark.slow
def test_a_hospitals_hardest_cases_lie_in_its_own_store_alone(run: Run) -> None:
    ward = run.home.folder / "wards" / "north"
    hospital = Hospital.open(ward)
    newest = list(seen_models(hospital))[-1]
    assert (newest.run, newest.round) == (run.name, 2)
    cases = hardest(hospital, newest, 2)
    assert [case.dice for case in cases] == sorted(case.dice for case in cases)
    with hospital_store.own_store(ward, None) as url:
        (link,) = hospital_store.fill(ward, url)
        assert hospital_store.fill(ward, url) == [link]
    store = hospital.state / "mlflow"
    assert len(list(store.rglob("*.png"))) == 3
    (table,) = store.rglob("hardest.json")
    assert cases[0].name in table.read_text()
    names = [case.case.encode() for case in hospital.listing.cases]
    central = [p for p in (run.home.folder / "mlruns").rglob("*") if p.is_file()]
    assert not [p for p in central for name in names if name in p.read_bytes()]


@pytest.mark.slow
def test_the_hospitals_own_page_is_there_until_it_is_interrupted(run: Run) -> None:
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "site",
        "ui",
        str(run.home.folder / "wards" / "south"),
    ]
    shown = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.PIPE, text=True)
    try:
        address, *_ = iter(shown.stdout.readline, "Ctrl-C ends it.\n")
        assert address.startswith(f"http://127.0.0.1:{port}/#/")
        assert httpx.get(address.partition("#")[0]).status_code == 200
    finally:
        shown.send_signal(signal.SIGINT)
    assert shown.wait(60) == 0
    for _ in range(120):  # the server notices within half a second that its last user has gone
        try:
            httpx.get(f"http://127.0.0.1:{port}")
        except httpx.TransportError:
            return
        time.sleep(0.25)
    pytest.fail("The server still answers.")
