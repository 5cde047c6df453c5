"""The survey flow: statistics of the hospitals' scans, before a study starts and later.

Each hospital answers as its policy allows (`sites.evaluation.survey`). The drift compares an answer with
the hospital's last one for the same study.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from prefect import flow
from rich.table import Table

from flows.asking import SIDE_BY_SIDE, ask_all
from flows.hospitals.processes import public_keys, warm
from flows.hospitals.session import session
from flows.hospitals.template import started_template
from flows.rounds.figures import ask_survey, summed_survey
from flows.rounds.statements import Answers
from flows.runs.paths import Home
from flows.runs.records import SurveyRecord
from flows.runs.run import Run, surveys_of
from flows.tracking.surveys import log_survey
from models.files import write_atomically
from privacy.statements import Survey
from sites.evaluation.survey import drift
from sites.setup.wards import wards_in
from sites.study import load_study


@flow(name="survey", task_runner=SIDE_BY_SIDE)  # type: ignore[arg-type]  # Prefect's own type
def survey(study: str, sites: str, home: str) -> None:
    """Ask the hospitals in the folder `sites` about their scans, and record their answers."""
    place, asked = Home(Path(home)), load_study(Path(study))
    wards = wards_in(Path(sites))
    before = _last_surveys(place, asked.name)
    with (
        started_template() as template,
        warm(wards, lambda name, what, step, of: None, template) as processes,
    ):
        roster = public_keys(processes)
        run = Run.create(place, asked, roster, place.exchange, kind="survey")
        with run.locked(), session(run, processes):
            run.begin_attempt()
            if asked.survey:
                answers = ask_survey(run, ask_all)
            else:
                answers = ask_all(run, 0, "survey", sorted(wards))
    record = _record(run, answers, before)
    write_atomically(run.folder / "survey.json", record.model_dump_json(indent=1).encode())
    log_survey(record)


def _record(run: Run, answers: Answers, before: Mapping[str, Survey]) -> SurveyRecord:
    found = {site: signed.statement for site, signed in answers.taken.items()}
    surveys = {site: each for site, each in found.items() if isinstance(each, Survey)}
    return SurveyRecord(
        study=run.study.name,
        run=run.name,
        number=len(surveys_of(run.home, run.study.name)),
        started_ms=run.description.started_ms,
        surveys=surveys,
        absent=dict(answers.absent),
        drift={
            site: drift(before[site].histograms, each.histograms)
            for site, each in surveys.items()
            if site in before
        },
        total=summed_survey(run) if run.study.survey else {},
    )


def serve(study: str, sites: str, home: str, every_hours: float | None, cron: str | None) -> None:
    """Survey on a schedule without end; Prefect starts each survey in a process of its own."""
    survey.serve(
        name=load_study(Path(study)).name,
        interval=timedelta(hours=every_hours) if every_hours else None,
        cron=cron,
        parameters={"study": study, "sites": sites, "home": home},
        limit=1,
        print_starting_message=False,
    )


def serve_child(arguments: str) -> None:
    """Serve the schedule of the parent process, and end with it: its end closes standard input."""

    def end_with_parent() -> None:
        sys.stdin.read()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=end_with_parent, daemon=True).start()
    serve(**json.loads(arguments))


def schedule(study: Path, sites: Path, home: Home, every_hours: float | None, cron: str | None) -> None:
    """Survey on a schedule until Ctrl-C, which ends it in seconds whatever Prefect is doing."""
    places = {"study": study, "sites": sites, "home": home.folder}
    asked = {name: str(place.resolve()) for name, place in places.items()}
    code = "import sys; from flows.survey import serve_child; serve_child(sys.argv[1])"
    arguments = json.dumps({**asked, "every_hours": every_hours, "cron": cron})
    process = subprocess.Popen(
        [sys.executable, "-c", code, arguments], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        process.wait()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # hospitals' processes end with it
        process.wait()


def last(home: Home, study: str) -> SurveyRecord | None:
    """Return the newest survey of a study, None before the first."""
    if runs := surveys_of(home, study):
        return SurveyRecord.model_validate_json((runs[-1].folder / "survey.json").read_bytes())
    return None


def table(record: SurveyRecord) -> Table:
    """Return a survey as a table: a row for each hospital."""
    shown = Table(title=f"{record.study}: statistics of the hospitals' scans")
    for heading in ("hospital", "patients (declared)", "statistics", "bins sent", "drift"):
        shown.add_column(heading)
    for site, each in sorted(record.surveys.items()):
        bins = [value for histogram in each.histograms.values() for value in histogram]
        stated = f"{sum(value is not None for value in bins)} of {len(bins)}"
        drifted = record.drifted.get(site, [])
        moved = ", ".join(f"{name} {record.drift[site][name]:.2f}" for name in drifted)
        first = "the first survey" if site not in record.drift else "little"
        shown.add_row(site, str(each.declared_patients), each.statistics_policy, stated, moved or first)
    for site, why in sorted(record.absent.items()):
        shown.add_row(site, "", "", "", str(why))
    if record.total:
        bins = [value for histogram in record.total.values() for value in histogram]
        patients = sum(each.declared_patients for each in record.surveys.values())
        shown.add_row("all together", str(patients), "summed", f"{len(bins)} of {len(bins)}", "")
    return shown


def _last_surveys(home: Home, study: str) -> Mapping[str, Survey]:
    newest = last(home, study)
    return newest.surveys if newest else {}
