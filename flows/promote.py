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

from flows.decisions import decisions
from flows.decisions.decisions import BadVerdict, Evidence, NotReleased, Terms
from flows.release import gate
from flows.release.gate import FLOW
from flows.release.reviews import POLL_S
from flows.reporting.publish import tell_decisions
from flows.runs.paths import Home
from flows.runs.run import RoundRecord, Run
from privacy.signing import canonical


class SignedVerdict(RunInput):
    """What Prefect's form takes."""

    signed: str = Field(description="What `wardround review sign` has printed.")


@flow(name=FLOW, flow_run_name=FLOW + " {run} {round}")
def promote(run: str, round: int, home: str, wait_s: float) -> str:
    """Release the model of a round, once its evidence suffices and the people have approved it.

    Returns its version.

    Raises:
        NotReleased: a criterion is not met, somebody has refused, or nobody has decided in time.
        NotTakenBack: what was revoked can't be taken back under this account.
        RunBusy: another promotion of this run is at work.
    """
    opened = Run.open(Home(Path(home)), run)
    record = gate.record_of(opened, round)
    decisions.load_people(opened.home)  # before anybody waits for somebody
    with gate.alone(opened):
        gate.withdraw(opened)  # what an interruption has kept from being taken back
        tell_decisions(opened)
        evidence = sufficient(opened, record)
        if gate.missing_roles(opened, record):
            wait_for_people(opened, record, wait_s)
            opened = opened.again()  # a hospital may have joined meanwhile
            evidence = sufficient(opened, record)
        return gate.release(opened, record, evidence)


def sufficient(run: Run, record: RoundRecord) -> Sequence[Evidence]:
    """Return the evidence for a model; raise `NotReleased` where a criterion is missing or failed."""
    evidence = gate.gather(run, record)
    gate.check_evidence(evidence)
    return evidence


def wait_for_people(run: Run, record: RoundRecord, wait_s: float) -> None:
    """Pause until every role has approved; the form of the paused run takes what a person has signed."""
    until = time.monotonic() + wait_s
    terms = decisions.terms_of(run, record)
    wrong, times = "", len(decisions.decisions(run))
    while missing := gate.missing_roles(run, record):
        left = until - time.monotonic()
        if left <= 0:
            raise NotReleased(f"The approval of these is missing: {', '.join(missing)}.")
        form = SignedVerdict.with_initial_data(description=_request(terms, missing, wrong))
        try:
            said = pause_flow_run(
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
            decisions.take_in(run, said.signed, decisions.load_people(run.home))
            tell_decisions(run)
            gate.withdraw(run)
            wrong = ""
        except BadVerdict as error:
            wrong = str(error)


def _request(terms: Terms, missing: Sequence[str], wrong: str) -> str:
    last = f"What was entered last does not count: {wrong}\n\n" if wrong else ""
    text = canonical(terms.model_dump(mode="json")).decode()
    return (
        f"{last}Waits for: {', '.join(missing)}. Read the report in MLflow, then sign these terms with "
        f"`wardround review sign` and enter what it prints:\n\n    {text}"
    )
