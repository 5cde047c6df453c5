"""What a run has on record, told in MLflow: rounds, pictures, models, the report, decisions.

Each holds `shown.alone` from before it reads what it tells until all of it is told: nothing is put
over something newer, and whoever verifies a run at work sees its rounds as wholes.
"""

from collections.abc import Sequence
from contextlib import suppress

from flows.reporting.report import report
from flows.runs import artifacts
from flows.runs.run import NotAllowed, RoundRecord, Run
from flows.tracking.tracking import Tracking, attach_report


def put_on_record(run: Run, tracking: Tracking, record: RoundRecord) -> None:
    """Put a finished round on record, and tell it."""
    with artifacts.alone(run):
        run.keep(record)
        run.publish_head(record)
        tracking.log(record)
        attach_report(run, report(run))


def tell_again(run: Run, tracking: Tracking, records: Sequence[RoundRecord]) -> None:
    """Tell rounds that MLflow may lack, after an interruption or in a new store; the newest is the last.

    What it has of them stays as it is.
    """
    with artifacts.alone(run):
        run.publish_head(records[-1])
        for record in records:
            tracking.log(record)
        attach_report(run, report(run))


def tell_decisions(run: Run) -> None:
    """Tell what was decided so far; the officer's account may release and not write runs."""
    with suppress(NotAllowed), artifacts.alone(run):
        as_it_is = run.again()  # a hospital may have joined
        attach_report(as_it_is, report(as_it_is))
