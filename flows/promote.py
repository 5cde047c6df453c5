"""The release gate as a Prefect flow, which waits for people.

They decide at the terminal or in the form that Prefect's UI shows; either way with a verdict that they
have signed with their own keys.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from prefect import flow
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from pydantic import Field

from flows.decisions import chain
from flows.decisions.chain import NotReleased
from flows.decisions.people import load_people
from flows.decisions.verdicts import BadVerdict, Evidence, Terms, terms_of
from flows.release import champion, evidence
from flows.release.reviews import FLOW, POLL_S
from flows.reporting.publish import publish_decisions_page
from flows.runs.paths import Home
from flows.runs.records import RoundRecord
from flows.runs.run import Run
from privacy.signing import canonical


class SignedVerdict(RunInput):
    """The form that Prefect's page shows."""

    signed: str = Field(description="The text that `wardround review sign` has printed.")


@flow(name=FLOW, flow_run_name=FLOW + " {run} {round}")
def promote(run: str, round: int, home: str, wait_s: float) -> str:
    """Release the model of a round, once its evidence suffices and the people have approved it.

    Returns its version.

    Raises:
        NotReleased: a criterion is not met, somebody has refused, or nobody has decided in time.
        NotTakenBack: this account may not withdraw a revoked model.
        RunBusy: another promotion of this run holds its lock.
    """
    opened = Run.open(Home(Path(home)), run)
    record = evidence.record_of(opened, round)
    load_people(opened.home)  # an error in people.yaml shows before the wait
    with champion.promotion_lock(opened):
        champion.withdraw(opened)  # a revoked model that an interruption has kept
        publish_decisions_page(opened)
        found = sufficient(opened, record)
        if champion.missing_roles(opened, record):
            wait_for_people(opened, record, wait_s)
            opened = opened.again()  # a hospital may have joined meanwhile
            found = sufficient(opened, record)
        return champion.release_model(opened, record, found)


def sufficient(run: Run, record: RoundRecord) -> Sequence[Evidence]:
    """Return the evidence for a model; raise `NotReleased` where a criterion is missing or failed."""
    found = evidence.gather(run, record)
    evidence.check_evidence(found)
    return found


def wait_for_people(run: Run, record: RoundRecord, wait_s: float) -> None:
    """Pause until every role has approved; the form of the paused run takes signed verdicts."""
    until = time.monotonic() + wait_s
    terms = terms_of(run, record)
    wrong, times = "", len(chain.decisions(run))
    while missing := champion.missing_roles(run, record):
        left = until - time.monotonic()
        if left <= 0:
            raise NotReleased(f"The approval of these is missing: {', '.join(missing)}.")
        form = SignedVerdict.with_initial_data(description=_request(terms, missing, wrong))
        try:
            entered = pause_flow_run(
                wait_for_input=form,
                timeout=max(1, int(left)),
                poll_interval=POLL_S,
                key=f"people-{times}",
            )
        except FlowPauseTimeout:
            until = time.monotonic()  # Prefect pauses no flow twice that nobody has resumed
            continue
        times += 1
        try:
            chain.record_verdict(run, entered.signed, load_people(run.home))
            publish_decisions_page(run)
            champion.withdraw(run)
            wrong = ""
        except BadVerdict as error:
            wrong = str(error)


def _request(terms: Terms, missing: Sequence[str], wrong: str) -> str:
    last = f"The last entry does not count: {wrong}\n\n" if wrong else ""
    text = canonical(terms.model_dump(mode="json")).decode()
    return (
        f"{last}Waits for: {', '.join(missing)}. Read the report in MLflow, then sign these terms with "
        f"`wardround review sign` and enter what it prints:\n\n    {text}"
    )
