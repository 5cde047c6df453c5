"""The officer's sheet: from the hospital's own records, without a patient's name, and honest on gaps."""

import html
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.reporting.officer_sheet import officer_sheet
from sites.hospital import Hospital


@pytest.fixture
def ward(finished: Path, tmp_path: Path) -> Path:
    import shutil

    shutil.copytree(finished / "wards" / "north", tmp_path / "north")
    return tmp_path / "north"


def words_of(hospital: Hospital) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", officer_sheet(hospital).decode()))


def test_it_has_every_statement_that_left_and_what_was_spent(ward: Path) -> None:
    hospital = Hospital.open(ward, test_noise=7)
    text, words = officer_sheet(hospital).decode(), words_of(hospital)
    files = [entry.file for entry in hospital.ledger.entries() if entry.file]
    assert len(files) > 4
    assert all(name in text for name in files)
    assert f"{hospital.ledger.spent(1e-3):.2f}" in words
    assert "by the policy alone" in words
    assert "Not recorded: no audit was made here" in words
    assert "http" not in text and "<script" not in text


def test_it_names_no_patient_and_says_what_withdrawn_ones_took_part_in(ward: Path) -> None:
    hospital = Hospital.open(ward, test_noise=7)
    patients = sorted({case.patient for case in hospital.listing.cases})
    (ward / "excluded.csv").write_text(f"subject\n{patients[0]}\n")
    text = officer_sheet(hospital).decode()
    assert not any(patient in text for patient in patients)
    due = hospital.ledger.charges_of(_keyed(hospital, patients[0]))
    assert f'<td class="number">{len(due)}</td>' in text


def _keyed(hospital: Hospital, patient: str) -> str:
    from sites.listing.pseudonyms import pseudonym

    return pseudonym(hospital.pseudonym_key, patient)


def test_a_hospital_without_any_study_gets_a_sheet_that_says_so(tmp_path: Path, small_wards) -> None:
    ward = small_wards(tmp_path / "wards") / "east"
    out = tmp_path / "sheet.html"
    done = CliRunner().invoke(app, ["site", "sheet", str(ward), "-o", str(out)])
    assert done.exit_code == 0, done.output
    words = html.unescape(re.sub(r"<[^>]+>", " ", out.read_text()))
    assert "No study with privacy has been charged" in words
    assert "Nothing." in words
