"""Papers from what is on record: every item has an answer from it or is called not recorded."""

import html
import re
from dataclasses import replace
from pathlib import Path

import pytest
from deciders import say, with_metrics, with_people
from homes import moved
from puppets import Federation
from typer.testing import CliRunner

from flows.cli.main import app
from flows.reporting.glance import good_at, worse_at
from flows.reporting.papers.checklist import NAMES, Answers, checklist, filled, load_answers
from flows.reporting.papers.facts import facts
from flows.reporting.papers.pages import READERS, paper
from flows.reporting.papers.pdf import NoPdf, as_pdf
from flows.reporting.report import contents_of
from flows.runs.run import Run
from models.files import sha256_of
from sites.yaml_files import ConfigError


@pytest.fixture(scope="module")
def run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return moved(finished, tmp_path_factory.mktemp("papers") / "home")


def words(page: bytes) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page.decode())))


def test_each_fact_that_a_checklist_asks_for_is_known_and_each_fact_is_asked_for(run: Run) -> None:
    known = facts(run)
    asked = {fact for name in NAMES for item in checklist(name).items for fact in item.facts}
    assert asked <= known.keys()
    assert known.keys() <= asked


@pytest.mark.parametrize(("name", "count"), [("claim-2024", 44), ("tripod-ai", 52), ("annex-iv", 23)])
def test_a_checklist_has_the_items_of_its_source_each_once(name: str, count: int) -> None:
    found = checklist(name)
    numbers = [item.number for item in found.items]
    assert len(numbers) == len(set(numbers)) == count
    assert found.link.startswith("https://")
    whole = [int(re.match(r"\d+", number)[0]) for number in numbers]
    assert whole == sorted(whole)
    assert set(whole) == set(range(1, max(whole) + 1))


def test_what_nobody_has_recorded_is_called_that_and_nothing_else_is(run: Run) -> None:
    for name in NAMES:
        rows = filled(name, facts(run), Answers())
        assert any(row.is_open for row in rows)
        assert all(row.is_open for row in rows if not row.item.facts)
    page = words(paper(run, "regulator", Answers()))
    opened = sum(row.is_open for name in NAMES for row in filled(name, facts(run), Answers()))
    assert page.count("not recorded") >= opened
    assert "funding and its role not recorded" in page


def test_figures_of_a_paper_are_those_of_the_record(run: Run) -> None:
    last, known = run.records()[-1], facts(run)
    assert f"{last.quality['dice']:.3f}" in known["results"]
    for site, values in last.metrics.items():
        assert f"{site}: dice {values['dice']:.3f}" in known["by_hospital"]
    worst = min(last.metrics, key=lambda site: last.metrics[site]["dice"])
    assert known["worst"].startswith(f"{worst} has the worst dice: {last.metrics[worst]['dice']:.3f}")
    spent = max(each.statement.epsilon for each in last.releases.values())
    assert f"Epsilon {spent:.2f}" in known["epsilon"]
    assert last.model_sha256 in known["version"]


def test_authors_answer_what_the_record_does_not_and_no_other_item(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "answers.yaml"
    path.write_text('answers: {claim-2024: {"44": "Nobody <paid>."}, tripod-ai: {18a: None.}}')
    page = paper(run, "regulator", load_answers(path)).decode()
    assert "<em>Nobody &lt;paid&gt;.</em>" in page
    for content, named in (
        ('answers: {claim-2024: {"45": x}}', "'45' is none"),
        ("answers: {claims: {a: x}}", "claims"),
    ):
        path.write_text(content)
        with pytest.raises(ConfigError, match=named):
            load_answers(path)


def test_an_officers_sheet_of_a_run_has_every_statement_that_left_by_its_sha256(run: Run) -> None:
    page = paper(run, "dpo", Answers()).decode()
    for site in run.description.everybody:
        places = [
            p for p in run.exchange.statements_of(site) if p.kind == "statement" and p.run == run.name
        ]
        assert len(places) >= 4
        for place in places:
            assert sha256_of(run.exchange.answer(place)) in page
    for record in run.records()[1:]:
        for release in record.releases.values():
            assert release.statement.payload_sha256 in page
    assert "not recorded here" in page


def test_what_a_release_contains_is_told_as_each_round_had_it(run: Run, study_with) -> None:
    statements = [each.statement for r in run.records()[1:] for each in r.releases.values()]
    page = words(paper(run, "dpo", Answers()))
    for content in {statement.content for statement in statements}:
        assert f"release: {content.replace('_', ' ')}" in page
    distils = {"transfer": "synthetic", "steps": 3, "rounds": "last"}
    told = contents_of(study_with(export="student", rounds=3, distillation=distils))
    assert told.startswith(
        "the change of the network's weights, and in the last round a student network"
    )
    assert "in the last round" not in contents_of(run.study)


def test_what_a_model_is_not_for_can_not_be_read_as_what_it_is_for(run: Run, study_with) -> None:
    card = {"intended_use": "To see rounds", "out_of_scope": "Any image of a real person"}
    other = replace(run, description=run.description.model_copy(update={"study": study_with(card=card)}))
    rows = {row.item.number: row for row in filled("claim-2024", facts(other), Answers())}
    assert rows["41"].recorded == ("To see rounds.", "Not for: Any image of a real person.")
    for name in NAMES:
        for row in filled(name, facts(other), Answers()):
            assert all(fact.endswith((".", "?", "!")) for fact in row.recorded)


def test_decisions_are_in_the_officers_sheet(finished: Path, tmp_path: Path) -> None:
    run = with_people(moved(finished, tmp_path / "home"))
    say(run, run.records()[-1], "ada")
    assert "ada (clinician) approved 2" in words(paper(run, "dpo", Answers()))


@pytest.mark.parametrize("reader", READERS)
def test_a_paper_loads_nothing_and_runs_nothing(run: Run, reader: str) -> None:
    page = paper(run, reader, Answers()).decode()
    assert "<script" not in page
    assert not re.search(r"(src|href)=.(?!https://doi|https://eur-lex|data:|#)", page)


def test_a_study_that_says_little_and_has_no_training_yet_gets_papers_too(
    tmp_path: Path, study_with
) -> None:
    run = Federation(tmp_path, study_with()).run
    for reader in READERS:
        assert "No release is on record yet" in words(paper(run, reader, Answers()))
    rows = {row.item.number: row for row in filled("claim-2024", facts(run), Answers())}
    assert rows["37"].is_open and rows["39"].is_open  # what is not known is no answer


def test_what_an_epsilon_does_not_cover_stands_beside_it_and_who_published_is_counted(run: Run) -> None:
    known = facts(run)
    assert "repeatable test noise: no privacy at all" in known["epsilon"]  # as the finished run has
    records = [*run.records()]
    two = dict.fromkeys(("east",))
    assert "over 3 hospitals" in good_at(records)
    records[-1] = with_metrics(records[-1], **two)
    assert "over 2 hospitals" in good_at(records)
    later = records[-1].model_copy(update={"round": 9, "hospitals": {}})
    assert "(the model of round 2)" in good_at([*records, later])
    assert "(the model of round 2)" in worse_at([*records, later])
    parts = {key: value for key, value in records[1].quality.items() if key.startswith("dice/")}
    worst = min(parts, key=parts.get)
    assert f"Worst structure: {worst.removeprefix('dice/')}, {parts[worst]:.3f}" in worse_at(records[:2])


def test_the_command_writes_html_and_pdf_and_refuses_what_does_not_fit(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(run.home.folder)

    def call(*asked: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["report", *asked])
        return done.exit_code, done.stderr

    out = tmp_path / "out.pdf"
    assert call("--for", "regulator", "-o", str(out)) == (0, "")
    assert out.read_bytes().startswith(b"%PDF")
    sheet = tmp_path / "sheet.html"
    assert call("--for", "dpo", "--site", "wards/north", "-o", str(sheet))[0] == 0
    assert "north: what took part" in sheet.read_text()
    code, told = call("--site", "wards/north")
    assert (code, "expected --for dpo" in told) == (2, True)
    code, told = call("--answers", "x.yaml")
    assert (code, "expected --for regulator" in told) == (2, True)


def test_a_pdf_asks_nobody_for_anything_and_says_what_is_missing(monkeypatch) -> None:
    import logging

    logging.getLogger("weasyprint").setLevel(logging.CRITICAL)
    asked = as_pdf(b"<p>x<img src='http://127.0.0.1:9/x.png'></p>")
    assert asked.startswith(b"%PDF")  # without the picture
    monkeypatch.setattr("flows.reporting.papers.pdf.find_spec", lambda name: None)
    with pytest.raises(NoPdf, match=r"pip install 'wardround\[pdf\]'"):
        as_pdf(b"<p>x</p>")
