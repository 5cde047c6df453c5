"""What the hospitals' scans are like, before a study starts and as time goes on: a flow of its own.

Each hospital tells what its policy lets it (`sites.evaluation.survey`). What has moved since the last
survey of the same study is the drift: 0 where a histogram is as it was, 1 where nothing of it is.
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

from flows.coordination.local import wards_in
from flows.federate import SIDE_BY_SIDE, ask_all
from flows.hospitals import processes as hospitals
from flows.runs.paths import Home
from flows.runs.run import Run, surveys_of
from flows.tracking.surveys import log_survey
from models.config import Config
from models.files import write_atomically
from privacy.release import Survey
from sites.evaluation.survey import drift
from sites.study import load_study

DRIFTED = 0.25
"""From this drift on a person should look."""


class SurveyRecord(Config):
    """A survey: what each hospital told, and how far that is from what it told before."""

    study: str
    run: str
    number: int
    started_ms: int
    told: dict[str, Survey]
    left_out: dict[str, str]
    drift: dict[str, dict[str, float]]

    @property
    def drifted(self) -> dict[str, list[str]]:
        """By hospital the histograms that a person should look at."""
        found = {
            site: [name for name, moved in each.items() if moved >= DRIFTED]
            for site, each in self.drift.items()
        }
        return {site: names for site, names in found.items() if names}


@flow(name="survey", task_runner=SIDE_BY_SIDE)  # type: ignore[arg-type]  # Prefect's own type
def survey(study: str, sites: str, home: str) -> None:
    """Ask the hospitals in the folder `sites` what their scans are like, and put it on record."""
    place, asked = Home(Path(home)), load_study(Path(study))
    wards = wards_in(Path(sites))
    before = _last_told(place, asked.name)
    with hospitals.warm(wards, lambda name, what, step, of: None) as processes:
        roster = {name: processes[name].public_key() for name in wards}
        run = Run.create(place, asked, roster, place.exchange, kind="survey")
        with run.locked():
            run.begin_attempt()
            answers = ask_all(run, 0, "survey", sorted(wards))
    told = {site: each for site, each in answers.taken.items() if isinstance(each, Survey)}
    record = SurveyRecord(
        study=asked.name,
        run=run.name,
        number=len(surveys_of(place, asked.name)),
        started_ms=run.description.started_ms,
        told=told,
        left_out=dict(answers.left_out),
        drift={
            site: drift(before[site].histograms, each.histograms)
            for site, each in told.items()
            if site in before
        },
    )
    write_atomically(run.folder / "survey.json", record.model_dump_json(indent=1).encode())
    log_survey(record)


def serve(study: str, sites: str, home: str, every_hours: float | None, cron: str | None) -> None:
    """Survey on a schedule for ever; Prefect starts each in a process of its own."""
    survey.serve(
        name=load_study(Path(study)).name,
        interval=timedelta(hours=every_hours) if every_hours else None,
        cron=cron,
        parameters={"study": study, "sites": sites, "home": home},
        limit=1,
        print_starting_message=False,
    )


def serve_child(arguments: str) -> None:
    """Serve what `schedule` asks for, and end with it: its end closes our standard input."""

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
    shown = Table(title=f"{record.study}: what the hospitals' scans are like")
    for heading in ("hospital", "patients (declared)", "statistics", "bins told", "drift"):
        shown.add_column(heading)
    for site, each in sorted(record.told.items()):
        bins = [value for histogram in each.histograms.values() for value in histogram]
        told = f"{sum(value is not None for value in bins)} of {len(bins)}"
        drifted = record.drifted.get(site, [])
        moved = ", ".join(f"{name} {record.drift[site][name]:.2f}" for name in drifted)
        first = "the first survey" if site not in record.drift else "little"
        shown.add_row(site, str(each.declared_patients), each.statistics_policy, told, moved or first)
    for site, reason in sorted(record.left_out.items()):
        shown.add_row(site, "", "", "", reason)
    return shown


def _last_told(home: Home, study: str) -> Mapping[str, Survey]:
    newest = last(home, study)
    return newest.told if newest else {}
