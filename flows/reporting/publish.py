"""Publication of a run in MLflow: rounds, pictures, models, the report, decisions.

Each function holds the artifact lock from before it reads the record until everything is published: no
newer content is overwritten, and `verify` sees each round of a running training as a whole.
"""

from collections.abc import Sequence
from contextlib import suppress

from flows.reporting.report import report
from flows.runs.artifacts import artifact_lock
from flows.runs.records import RoundRecord
from flows.runs.run import NotAllowed, Run
from flows.tracking.tracking import Tracking, attach_report


def publish_round(run: Run, tracking: Tracking, record: RoundRecord) -> None:
    """Record a finished round, and publish it."""
    with artifact_lock(run):
        run.keep(record)
        run.publish_head(record)
        tracking.log(record)
        attach_report(run, report(run))


def backfill(run: Run, tracking: Tracking, records: Sequence[RoundRecord]) -> None:
    """Publish rounds that MLflow may lack, after an interruption or in a new store; the newest is last.

    Entries that MLflow has of them stay as they are.
    """
    with artifact_lock(run):
        run.publish_head(records[-1])
        for record in records:
            tracking.log(record)
        attach_report(run, report(run))


def publish_decisions_page(run: Run) -> None:
    """Publish the decisions so far; skip it for the officer's account, which may not write runs."""
    with suppress(NotAllowed), artifact_lock(run):
        newest = run.again()  # a hospital may have joined
        attach_report(newest, report(newest))
