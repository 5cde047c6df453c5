"""The report of a run: one file, of public values alone, that says what a person must know."""

import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from homes import moved

from flows.report import report
from flows.run import Run
from privacy.accounting import PrivacyEvent, most_found
from sites.hospital import Hospital
from sites.study import CardConfig

HOSPITALS = ("north", "east", "south")


class Text(HTMLParser):
    """The words of a page, and whatever in it could ask for something from outside."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.words, self.asks = "", []
        self.feed(page.decode())

    def handle_data(self, data: str) -> None:
        self.words += data + " "

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.asks += [value for name, value in attrs if name in ("src", "href", "data") and value]
        self.asks += [tag] if tag in ("script", "link", "iframe", "object", "img") else []


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Run:
    return moved(finished, tmp_path / "home")


def test_it_asks_for_nothing_from_outside(run: Run) -> None:
    asks = Text(report(run)).asks
    assert [ask for ask in asks if not ask.startswith("#")] == []  # links within its own drawings


def test_it_says_what_each_hospital_declared_reached_spent_and_sent(run: Run) -> None:
    words, last = " ".join(Text(report(run)).words.split()), run.records()[-1]
    for release in last.releases:
        told = Path(run.description.exchange, "statements", release.site)
        sent = sum(
            r.payload_bytes for rec in run.records() for r in rec.releases if r.site == release.site
        ) + sum(file.stat().st_size for file in told.glob(f"{run.name}.*.contribute.json"))
        for said in (release.site, f"{release.epsilon:.3f}", f"{sent:,}"):
            assert said in words
    for scores in last.scores.values():
        assert f"{scores['dice/head']:.3f}" in words
    for kind in ("acceptance, with", "quality of the global model", "quality of hospitals' models"):
        assert kind in words
    assert "a student network, taught by" in words
    assert "exact, of evaluation patients, to whom no privacy is promised" in words
    assert "repeatable test noise: no privacy at all" in words
    assert "No privacy audit is on record" in words
    assert last.model_sha256 in words and last.sha256 in words
    assert "every hospital contributed to every round" in words
    for heading in ("Model details", "Intended use", "Factors", "Metrics", "Evaluation data",
                    "Training data", "Quantitative analyses", "Ethical considerations",
                    "Caveats and recommendations"):  # fmt: skip
        assert heading in words
    assert words.count("not stated") > 8


def test_what_is_stated_is_told_and_can_change_nothing_else_on_the_page(run: Run) -> None:
    card = CardConfig(intended_use="Research", authors="<script>alert(1)</script>")
    study = run.study.model_copy(update={"card": card})
    page = report(Run(run.folder, run.home, run.description.model_copy(update={"study": study})))
    assert "<script>" not in page.decode() and "&lt;script&gt;" in page.decode()
    assert "Research" in Text(page).words


def test_it_names_no_patient(run: Run) -> None:
    page = report(run).decode()
    for name in HOSPITALS:
        hospital = Hospital.open(run.home.folder / "wards" / name)
        for case in hospital.listing.cases:
            assert case.case not in page and case.patient not in page


def test_it_is_made_of_what_the_coordinator_holds_in_which_no_true_count_is(run: Run) -> None:
    page, counts = report(run), {}
    for name in HOSPITALS:
        patients = {
            case.patient for case in Hospital.open(run.home.folder / "wards" / name).listing.cases
        }
        counts[name] = len(patients)
        assert counts[name] != run.description.participants[name].declared_patients
    shutil.rmtree(run.home.folder / "wards")
    assert report(run) == page
    for name, true in counts.items():
        for file in Path(run.description.exchange, "statements", name).glob("*.json"):
            said = json.loads(file.read_bytes())["statement"]
            said.pop("tensors", None)  # of the network's tensors
            assert true not in set(whole_numbers(said))


def whole_numbers(content: object) -> Iterator[int]:
    """Yield each whole number anywhere in a JSON value."""
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list):
        for each in content:
            yield from whole_numbers(each)
    elif isinstance(content, int):
        yield content


def test_it_is_the_same_each_time(run: Run) -> None:
    assert report(run) == report(run)


def test_what_epsilon_means_is_what_the_best_test_can_tell(run: Run) -> None:
    release = run.records()[-1].releases[0]
    events = [PrivacyEvent(**r.event.model_dump()) for rec in run.records() for r in rec.releases
              if r.site == release.site]  # fmt: skip
    found = most_found(events, 1e-3)
    assert re.search(
        rf"rightly tell {100 * found:.0f} of 100 who did", " ".join(Text(report(run)).words.split())
    )
