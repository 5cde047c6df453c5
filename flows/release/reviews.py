"""What a person who decides about a model sees, and how his word reaches a gate that waits for it."""

import os
import time
from contextlib import suppress

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.table import Table

from flows.decisions import decisions
from flows.decisions.decisions import BadVerdict, NotReleased, Verdict, Word
from flows.release import gate
from flows.release.gate import FLOW
from flows.reporting.publish import tell_decisions
from flows.runs.run import RoundRecord, Run
from flows.servers.loopback import url_of
from privacy.signing import canonical

POLL_S = 1
"""How often a gate that waits looks for a word."""


def evidence_table(run: Run, record: RoundRecord) -> Table:
    """Return a model's evidence as a table: a row for each criterion."""
    table = Table(title=f"{run.name}, round {record.round}: evidence")
    for heading in ("criterion", "due", "found", "will do"):
        table.add_column(heading)
    for each in gate.gather(run, record):
        table.add_row(each.criterion, each.due, each.found, "yes" if each.is_met else "no")
    return table


def decisions_table(run: Run, record: RoundRecord) -> Table:
    """Return what was decided about a model, and whose approval is missing."""
    table = Table(title="decisions", caption=_caption(run, record), min_width=60)
    for heading in ("who", "said", "reason"):
        table.add_column(heading)
    terms = decisions.terms_of(run, record)
    for each in decisions.decisions(run):
        if (said := each.verdict) and said.terms == terms:
            table.add_row(f"{said.person} ({said.role})", said.word, said.reason)
        elif each.outcome and each.outcome.terms == terms:
            table.add_row("release gate", each.outcome.what, f"version {each.outcome.version}")
    return table


def terms_text(run: Run, record: RoundRecord) -> str:
    """Return what a verdict on a model has to name, as one line."""
    return canonical(decisions.terms_of(run, record).model_dump(mode="json")).decode()


def decide(
    run: Run, record: RoundRecord, word: Word, name: str, key: Ed25519PrivateKey, reason: str
) -> Verdict:
    """Sign a verdict, put it on record, and wake a gate that waits for it.

    Raises:
        BadVerdict: the person may not decide, or signs with another key than people.yaml has.
    """
    people = decisions.load_people(run.home)
    if name not in people.people:
        raise BadVerdict(f"{name!r} is not in people.yaml, which says who may decide.")
    days = run.study.promotion.approval_days if run.study.promotion else 1
    text = decisions.signed_verdict(
        decisions.terms_of(run, record), word, name, people.people[name].role, key, days, reason
    )
    return enter(run, record, text)


def enter(run: Run, record: RoundRecord, text: str) -> Verdict:
    """Put a signed verdict on record, tell it in MLflow, and wake a gate that waits for it.

    Was a released model objected to, it is taken back.

    Raises:
        BadVerdict: it does not count.
        NotTakenBack: it is on record, and this account may not take the model back.
    """
    said = decisions.take_in(run, text, decisions.load_people(run.home))
    tell_decisions(run)
    _wake(run, record, text)
    gate.withdraw(run)
    return said


def missing(run: Run, record: RoundRecord) -> list[str]:
    """Return whose approval is missing, nobody's where somebody objects."""
    with suppress(NotReleased):
        return gate.missing_roles(run, record)
    return []


def _caption(run: Run, record: RoundRecord) -> str:
    try:
        roles = gate.missing_roles(run, record)
    except NotReleased as error:
        return str(error)
    return f"missing: {', '.join(roles)}" if roles else "every role has approved"


def _wake(run: Run, record: RoundRecord, text: str) -> None:
    """Resume the gate's paused flow run, if one waits at a Prefect server within reach."""
    own = url_of(run.home.prefect)
    api = os.environ.get("PREFECT_API_URL") or (f"{own}/api" if own else "")
    if not api:
        return
    os.environ.update({**run.home.prefect_environment, **os.environ})
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
    from prefect.exceptions import PrefectException
    from prefect.settings import PREFECT_API_URL, temporary_settings

    named = FlowRunFilter(name=FlowRunFilterName(any_=[f"{FLOW} {run.name} {record.round}"]))
    with (
        suppress(httpx.HTTPError, PrefectException),
        temporary_settings({PREFECT_API_URL: api}),
        get_client(sync_client=True) as client,
    ):
        for waiting in client.read_flow_runs(flow_run_filter=named):
            if waiting.state and waiting.state.is_paused():
                client.resume_flow_run(waiting.id, run_input={"signed": text})
                time.sleep(2 * POLL_S)
