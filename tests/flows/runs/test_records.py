"""A round's record holds each hospital's part as a signed statement, or as an absence with a reason."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from flows.runs.paths import Home
from flows.runs.records import Absence, AcceptedRelease, HospitalRound, RoundRecord, Signed
from flows.runs.run import Run, runs_of


@pytest.fixture(scope="module")
def records(finished: Path) -> list[RoundRecord]:
    return runs_of(Home(finished))[-1].records()


def test_a_record_reads_back_as_it_was_written(records: list[RoundRecord]) -> None:
    for record in records:
        again = RoundRecord.model_validate_json(record.data)
        assert again == record and again.sha256 == record.sha256


def test_each_part_is_of_the_type_that_its_name_says(records: list[RoundRecord]) -> None:
    last = records[-1]
    assert sorted(last.releases) == sorted(last.scores) == ["east", "north", "south"]
    assert all(isinstance(each, AcceptedRelease) for each in last.releases.values())
    assert {s.statement.kind for s in last.scores.values()} == {"scores"}
    assert {s.statement.kind for s in last.comparisons.values()} == {"comparison"}
    assert not records[0].releases and not records[0].absences("release")


def test_a_statement_in_a_record_is_the_one_that_the_hospital_signed(finished: Path) -> None:
    run: Run = runs_of(Home(finished))[-1]
    for record in run.records()[1:]:
        for site, release in record.releases.items():
            assert (release.statement.site, release.statement.round) == (site, record.round)
            assert release.public_key == run.description.roster[site]


@given(
    absence=st.builds(
        Absence, kind=st.sampled_from(["refused", "missing", "rejected"]), text=st.text(max_size=50)
    ),
    part=st.sampled_from(["release", "scores", "comparison"]),
)
def test_an_absence_keeps_its_kind_and_its_words_through_json(absence: Absence, part: str) -> None:
    hospital = HospitalRound(**{part: absence})
    again = HospitalRound.model_validate_json(hospital.model_dump_json())
    assert getattr(again, part) == absence
    assert str(absence).endswith(absence.text)


def test_an_absence_is_no_statement_and_a_statement_no_absence() -> None:
    with pytest.raises(ValidationError):
        Absence(kind="lost", text="")
    with pytest.raises(ValidationError):
        HospitalRound(release={"kind": "refused", "text": "no", "weight": 3})
    assert not isinstance(HospitalRound(scores=Absence(kind="missing", text="")).scores, Signed)
