"""The papers of a run as pages: for clinicians, for data-protection officers, for regulators."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

from flows.audits.records import newest_audit
from flows.decisions import chain
from flows.reporting.disclosures import departures
from flows.reporting.glance import glance
from flows.reporting.papers.checklist import NAMES, Answers, checklist, filled
from flows.reporting.papers.facts import facts
from flows.reporting.report import FALSE_ALARMS, audit_picture, hospital_pages, report
from flows.reporting.templates import rendered
from flows.runs.records import RoundRecord
from flows.runs.run import Run
from sites.yaml_files import ConfigError

Reader = Literal["clinician", "dpo", "regulator"]
READERS: tuple[Reader, ...] = get_args(Reader)
UNKNOWN = "not recorded"


def paper(run: Run, reader: Reader, answers: Answers) -> bytes:
    """Return the paper of a run for a reader, as the bytes of an HTML file.

    Args:
        answers: what the authors state where the record is silent; for regulators alone.

    Raises:
        ConfigError: no round of the run is recorded yet.
    """
    if not run.records():
        raise ConfigError(f"{run.name}: expected a run with a recorded round, got one without any.")
    pages: Mapping[Reader, Callable[[], bytes]] = {
        "clinician": lambda: report(run),
        "dpo": lambda: for_officer(run),
        "regulator": lambda: for_regulator(run, answers),
    }
    return pages[reader]()


def for_officer(run: Run) -> bytes:
    """Return what a run has cost the patients of each hospital, and everything that left there.

    It knows this run alone; what all studies cost together is known at each hospital
    (`wardround site sheet`).
    """
    records = run.records()
    pages = hospital_pages(run, records)
    return _page(
        "run_officer.html.j2",
        run,
        records,
        hospitals=pages,
        departed={page.name: departures(run, page.name) for page in pages},
        audit=(audit := newest_audit(run, records)),
        audit_picture=audit_picture(run, audit),
        false_alarms=FALSE_ALARMS,
        verdicts=[verdict for link in chain.decisions(run) if (verdict := link.verdict)],
    )


def for_regulator(run: Run, answers: Answers) -> bytes:
    """Return the checklists of `NAMES`, filled in from the record and the authors' answers."""
    known = facts(run)
    lists = [(checklist(name), filled(name, known, answers)) for name in NAMES]
    return _page("regulator.html.j2", run, run.records(), lists=lists)


def _page(template: str, run: Run, records: Sequence[RoundRecord], **values: object) -> bytes:
    """Return a paper of a run, with what every paper has beside its own values."""
    return rendered(
        template,
        UNKNOWN,
        run=run,
        study=run.study,
        made_ms=int(time.time() * 1000),
        glance=glance(run, records),
        last=records[-1],
        **values,
    )
