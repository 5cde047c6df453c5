"""The report of a run: one file, of public values alone, that says what a person must know."""

import html
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from homes import moved

from flows.reporting.report import report
from flows.runs.records import Absence
from flows.runs.run import Run
from privacy.accounting import PrivacyEvent, most_found
from sites.hospital import Hospital
from sites.study_sections import CardConfig

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
        asking = ("src", "srcset", "href", "xlink:href", "data", "action", "poster", "background")
        self.asks += [value for name, value in attrs if name in asking and value]
        self.asks += [value for name, value in attrs if name.startswith("on") and value]
        asking_tags = ("script", "link", "iframe", "object", "embed", "img", "base", "form", "meta")
        names_itself = tag == "meta" and dict(attrs).keys() == {"name", "content"}
        if tag in asking_tags and attrs != [("charset", "utf-8")] and not names_itself:
            self.asks.append(tag)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Run:
    return moved(finished, tmp_path / "home")


def test_it_asks_for_nothing_from_outside(run: Run) -> None:
    page = report(run)
    asks = Text(page).asks
    assert [ask for ask in asks if not ask.startswith("#")] == []  # links within its own drawings
    style = re.findall(r"url\(([^)]*)\)|(@import)", page.decode())
    assert [url for url, _ in style if not url.startswith("#")] == [] and not any(i for _, i in style)


def test_it_says_what_each_hospital_declared_reached_spent_and_sent(run: Run) -> None:
    words, last = " ".join(Text(report(run)).words.split()), run.records()[-1]
    for site, release in last.releases.items():
        folder = Path(run.description.exchange, "statements", site)
        sent = sum(
            r.releases[site].statement.payload_bytes for r in run.records() if site in r.releases
        ) + sum(file.stat().st_size for file in folder.glob(f"{run.name}.*.contribute.json"))
        for stated in (site, f"{release.statement.epsilon:.3f}", f"{sent:,}"):
            assert stated in words
    for scores in last.metrics.values():
        assert f"{scores['dice/head']:.3f}" in words
    for kind in ("acceptance, with", "quality of the global model", "quality of hospitals' models"):
        assert kind in words
    assert "a student network, taught by" in words
    assert "exact, of evaluation patients, to whom no privacy is promised" in words
    assert "repeatable test noise: no privacy at all" in words
    assert "No privacy audit is recorded" in words
    assert last.model_sha256 in words and last.sha256 in words
    assert "every hospital contributed to every round" in words
    for heading in ("Model details", "Intended use", "Factors", "Metrics", "Evaluation data",
                    "Training data", "Quantitative analyses", "Ethical considerations",
                    "Caveats and recommendations"):  # fmt: skip
        assert heading in words
    assert words.count("not stated") > 8


def table_under(heading: str, page: bytes) -> list[list[str]]:
    """Return the cells of the rows of the first table behind a heading."""
    behind = page.decode().partition(f">{heading}</h")[2]
    assert behind, heading
    table = behind.partition("<table>")[2].partition("</table>")[0]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.DOTALL)
    return [
        [
            re.sub(r"<[^>]+>", "", cell).strip()
            for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
        ]
        for row in rows
    ]


def test_its_quality_has_a_row_for_each_structure_and_hospital_with_interval_and_worst_patient(
    run: Run,
) -> None:
    first, last = run.records()[0], run.records()[-1]
    rows = {tuple(row[:2]): row[2:] for row in table_under("Quality", report(run))[1:]}
    for metric in ("dice", "dice/head", "dice/tail", "hd95_mm"):
        for site in HOSPITALS:
            told, flat = last.metrics[site], metric.replace("/", "-")
            low, high, worst = (told.get(f"{kind}/{flat}") for kind in ("low", "high", "worst_case"))
            interval = "not stated" if low is None else f"{low:.3f} to {high:.3f}"
            due = [f"{first.metrics[site][metric]:.3f}", f"{told[metric]:.3f}", interval,
                   "not stated" if worst is None else f"{worst:.3f}"]  # fmt: skip
            assert rows[metric, site] == due
    assert any(row[2] != "not stated" for row in rows.values() if len(row) > 2)
    assert any(row[3] != "not stated" for row in rows.values() if len(row) > 3)
    shaded = re.findall(r'<tr class="worst">(.*?)</tr>', report(run).decode(), re.DOTALL)
    worst = min(HOSPITALS, key=lambda site: last.metrics[site]["dice"])
    assert len(shaded) == 1 and f"<td>{worst}</td>" in shaded[0]


def test_its_fairness_and_its_matrix_say_what_the_record_says(run: Run) -> None:
    page, last = report(run), run.records()[-1]
    fairness = {row[0]: row[1:] for row in table_under("Fairness", page)[1:]}
    dice = {site: last.metrics[site]["dice"] for site in HOSPITALS}
    assert fairness["dice"] == [
        f"{min(dice.values()):.3f}",
        f"{max(dice.values()) - min(dice.values()):.3f}",
    ]
    bright = (dice["north"] + dice["south"]) / 2  # both have declared the same number of patients
    assert float(fairness["dice of group bright"][0]) == pytest.approx(bright, abs=6e-4)
    assert fairness["dice of group dark"][0] == f"{dice['east']:.3f}"
    matrix = table_under("Every hospital's released model at every hospital", page)
    assert matrix[0] == ["scored at", "model of north", "model of south", "global model"]
    for row in matrix[1:]:
        told = [last.cross_site[row[0]][of]["dice"] for of in ("north", "south")]
        assert row[1:] == [f"{value:.3f}" for value in (*told, dice[row[0]])]
    assert [row[0] for row in matrix[1:]] == ["north", "south"]


def test_its_plots_have_a_line_for_each_hospital_and_the_studys_limit(run: Run) -> None:
    drawings = re.findall(r"<svg.*?</svg>", report(run).decode(), re.DOTALL)
    assert len(drawings) == 2
    for drawing, more in zip(drawings, ([], ["the study's limit"]), strict=True):
        texts = re.findall(r"<text[^>]*>([^<]*)</text>", drawing)
        assert {*HOSPITALS, *more} <= {html.unescape(text) for text in texts}
        assert len(re.findall(r'id="line2d_', drawing)) >= 3


def test_it_tells_software_as_the_records_have_it_and_absences_as_they_were(run: Run) -> None:
    page = report(run)
    (row,) = table_under("Lineage", page)[1:2]
    assert row[0] == "0"
    software = run.records()[0].software
    assert f"torch {software['torch']}" in page.decode() and "from round 0" in page.decode()
    known = run.description
    late = known.participants["east"].model_copy(update={"since": 2})
    others = {**known.participants, "east": late}
    south = others.pop("south")
    changed = known.model_copy(
        update={
            "participants": others,
            "departed": {"south": south},
            "refused": {"east": Absence(kind="refused", text="no")},
        }
    )
    records = run.records()
    for number, gone in ((1, {"east"}), (2, {"south"})):
        staying = {s: h for s, h in records[number].hospitals.items() if s not in gone}
        kept = records[number].model_copy(update={"hospitals": staying})
        (run.folder / "rounds" / f"round-{number:03d}.json").write_bytes(kept.data)
        if number == 1:
            records[2] = records[2].model_copy(update={"previous": kept.sha256})
    absent = Run(run.folder, run.home, changed)
    assert table_under("Refusals and absences", report(absent))[1:] == [
        ["start", "east", "it refused: no"],
        ["1", "east", "it had not joined yet"],
        ["2", "south", "it had left"],
        ["", "south", "it has left the study"],
    ]
    assert "every hospital contributed" not in report(absent).decode()


def test_the_report_of_an_earlier_round_says_nothing_about_what_was_compared_later(run: Run) -> None:
    early = report(run, 1).decode()
    assert "No hospital allows" not in early and "released model at every hospital" not in early
    assert "round 1 of\n2 was recorded" in early
    assert "None so far" in report(run, 0).decode()


def test_what_is_stated_is_told_and_can_change_nothing_else_on_the_page(run: Run) -> None:
    card = CardConfig(intended_use="Research", authors="<script>alert(1)</script>")
    study = run.study.model_copy(update={"card": card})
    page = report(Run(run.folder, run.home, run.description.model_copy(update={"study": study})))
    assert "<script>" not in page.decode() and "&lt;script&gt;" in page.decode()
    assert "Research" in Text(page).words


def test_figures_of_an_earlier_model_are_called_so_where_the_newest_was_not_evaluated(run: Run) -> None:
    records = run.records()
    silent = {
        site: each.model_copy(update={"scores": None, "comparison": None})
        for site, each in records[2].hospitals.items()
    }
    kept = records[2].model_copy(update={"hospitals": silent, "quality": {}})
    (run.folder / "rounds" / "round-002.json").write_bytes(kept.data)
    page = report(run)
    words = " ".join(Text(page).words.split())
    assert (
        "The model after round 2 was not evaluated. These figures are of the model after round 1."
        in words
    )
    rows = {tuple(row[:2]): row[2:] for row in table_under("Quality", page)[1:]}
    assert rows["dice", "north"][1] == f"{records[1].metrics['north']['dice']:.3f}"
    fairness = {row[0] for row in table_under("Fairness", page)}
    assert {"dice", "dice of group bright"} <= fairness
    assert "worst hospital in dice" in words and len(re.findall("<svg", page.decode())) == 2
    assert "was not evaluated" not in report(run, 1).decode()


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
        assert counts[name] != run.description.participants[name].statement.declared_patients
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
    releases = [record.releases["north"].statement for record in run.records()[1:]]
    events = [PrivacyEvent(**release.event.model_dump()) for release in releases]
    found = most_found(events, 1e-3)
    assert re.search(
        rf"can identify at most {100 * found:.0f} of 100 patients who did",
        " ".join(Text(report(run)).words.split()),
    )
