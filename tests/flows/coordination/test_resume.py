"""Which run a coordinator works on, and that it does so alone."""

import json
from pathlib import Path

import pytest
import yaml
from puppets import Federation, participant

from flows.coordination.resume import (
    declared_otherwise,
    is_interrupted,
    left_behind,
    run_for,
    study_lock,
)
from flows.runs.paths import Home
from flows.runs.run import Run, RunBusy, started_runs
from sites.yaml_files import ConfigError

ROSTER = {"north": "0" * 64}


def begun(run: Run) -> Run:
    return run.with_participants({"north": participant(run, "north")}, {})


def test_two_coordinators_never_train_one_study_at_a_time(tmp_path: Path, study_with) -> None:
    home = Home(tmp_path)
    with study_lock(home, study_with()):
        with pytest.raises(RunBusy, match="trains study small"), study_lock(home, study_with()):
            pass
        with study_lock(home, study_with(name="other")):
            pass
    with study_lock(home, study_with()):
        pass


def test_an_interrupted_run_goes_on_and_a_finished_one_does_not(tmp_path: Path, study_with) -> None:
    home, study = Home(tmp_path), study_with()
    assert not is_interrupted(home, study)
    first = begun(run_for(home, study, ROSTER, home.exchange, {}))
    assert is_interrupted(home, study)
    assert run_for(home, study, ROSTER, home.exchange, {}).name == first.name
    assert run_for(home, study, {"north": "1" * 64}, home.exchange, {}).name != first.name
    newer = run_for(home, study, ROSTER, home.exchange, {}, new=True)
    assert newer.name != first.name
    assert run_for(home, study, ROSTER, home.exchange, {}).name == newer.name  # nobody has accepted yet
    newer.mark_finished()
    assert not is_interrupted(home, study)
    assert run_for(home, study, ROSTER, home.exchange, {}).name not in (first.name, newer.name)


def test_the_run_begun_last_is_the_newest_though_the_clock_was_set_back(
    tmp_path: Path, study_with
) -> None:
    home, study = Home(tmp_path), study_with()
    first = Run.create(home, study, ROSTER, home.exchange)
    description = json.loads((first.folder / "run.json").read_text())
    tomorrow = description["started_ms"] + 86_400_000
    (first.folder / "run.json").write_text(json.dumps(description | {"started_ms": tomorrow}))
    later = [Run.create(home, study, ROSTER, home.exchange).name for _ in range(2)]
    assert [run.name for run in started_runs(home, study)] == [first.name, *later]


def test_a_survey_that_was_interrupted_is_no_training_to_go_on_with(tmp_path: Path, study_with) -> None:
    home, study = Home(tmp_path), study_with()
    Run.create(home, study, ROSTER, home.exchange, kind="survey")
    assert not is_interrupted(home, study)


def test_no_hospital_may_be_named_coordinator(tmp_path: Path) -> None:
    from flows.hospitals.federation import load_federation

    path = tmp_path / "federation.yaml"
    path.write_text(
        yaml.safe_dump(
            {"exchange": "x", "hospitals": {"coordinator": {"key": "0" * 64, "patients": 20}}}
        )
    )
    with pytest.raises(ConfigError, match="no hospital named coordinator"):
        load_federation(path)


def test_the_operator_sees_a_change_of_the_patients_that_a_hospital_may_declare(
    tmp_path: Path, study_with
) -> None:
    home, study = Home(tmp_path), study_with()
    begun(Run.create(home, study, ROSTER, home.exchange, most_patients={"north": 90}))
    now = Run.create(home, study, ROSTER, home.exchange, most_patients={"north": 9000})
    assert list(declared_otherwise(now)) == ["north may declare 9000 patients now, 90 in an earlier run"]
    begun(now)
    same = Run.create(home, study, ROSTER, home.exchange, most_patients={"north": 9000})
    assert list(declared_otherwise(same)) == []


def test_a_federation_says_how_many_patients_each_hospital_may_declare(tmp_path: Path) -> None:
    from flows.hospitals.federation import load_federation

    path = tmp_path / "federation.yaml"
    key = "0" * 64
    path.write_text(
        yaml.safe_dump({"exchange": "x", "hospitals": {"north": {"key": key, "patients": 90}}})
    )
    found = load_federation(path)
    assert (found.roster, found.most_patients) == ({"north": key}, {"north": 90})
    path.write_text(yaml.safe_dump({"exchange": "x", "hospitals": {"north": key}}))
    with pytest.raises(ConfigError, match="north"):
        load_federation(path)


def test_a_new_run_says_which_unfinished_one_it_leaves_and_what_differs(
    tmp_path: Path, study_with
) -> None:
    before = Federation(tmp_path, study_with()).run  # round 0 is recorded, two are left
    changed = study_with(rounds=3, seed=5)
    new = Run.create(before.home, changed, ROSTER, before.home.exchange)
    (line,) = left_behind(new)
    assert before.name in line
    assert "rounds from 2 to 3" in line and "seed from 0 to 5" in line
    assert "with its study file as it was" in line
    assert list(left_behind(before)) == []
    before.mark_finished()
    assert list(left_behind(new)) == []
    again = Run.create(before.home, before.study, ROSTER, before.home.exchange)
    assert list(left_behind(again)) == [
        f"{before.name} of this study is finished; this is another run, charged in addition"
    ]
