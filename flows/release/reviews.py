"""Reviews: tables about a model for the people who decide, and the record of their verdicts."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.table import Table

from flows.decisions import chain
from flows.decisions.chain import NotReleased
from flows.decisions.people import load_people
from flows.decisions.verdicts import BadVerdict, Verdict, VerdictWord, signed_verdict, terms_of
from flows.release import champion, evidence
from flows.reporting.publish import publish_decisions_page
from flows.runs.records import RoundRecord
from flows.runs.run import Run
from flows.servers.decision_page import PAGE
from flows.servers.environment import prefect_server, set_prefect
from flows.servers.loopback import url_of
from flows.tracking.tracking import page_id
from privacy.signing import canonical

FLOW = "promote"
"""The name of the flow that waits for people; its runs are also named by run and round."""

POLL_S = 1
"""Seconds between two checks of a waiting gate for a verdict."""


def evidence_table(run: Run, record: RoundRecord) -> Table:
    """Return a model's evidence as a table: a row for each criterion."""
    table = Table(title=f"{run.name}, round {record.round}: evidence")
    for heading in ("criterion", "required", "found", "is met"):
        table.add_column(heading)
    for each in evidence.gather(run, record):
        table.add_row(each.criterion, each.due, each.found, "yes" if each.is_met else "no")
    return table


def decisions_table(run: Run, record: RoundRecord) -> Table:
    """Return the decisions about a model as a table, and the roles whose approval is missing."""
    table = Table(title="decisions", caption=_caption(run, record), min_width=60)
    for heading in ("who", "verdict", "reason"):
        table.add_column(heading)
    terms = terms_of(run, record)
    for each in chain.decisions(run):
        if (verdict := each.verdict) and verdict.terms == terms:
            table.add_row(f"{verdict.person} ({verdict.role})", verdict.word, verdict.reason)
        elif each.outcome and each.outcome.terms == terms:
            table.add_row("release gate", each.outcome.what, f"version {each.outcome.version}")
    return table


def content(run: Run, record: RoundRecord) -> dict[str, Any]:
    """Return the same for a program: evidence, decisions, and the terms that a verdict has to name."""
    terms = terms_of(run, record)
    about = [each.verdict or each.outcome for each in chain.decisions(run)]
    return {
        "run": run.name,
        "round": record.round,
        "evidence": [each.model_dump(mode="json") for each in evidence.gather(run, record)],
        "decisions": [each.model_dump(mode="json") for each in about if each and each.terms == terms],
        "terms": terms.model_dump(mode="json"),
    }


def terms_text(run: Run, record: RoundRecord) -> str:
    """Return the terms that a verdict on a model has to name, as one line."""
    return canonical(terms_of(run, record).model_dump(mode="json")).decode()


def decide(
    run: Run, record: RoundRecord, word: VerdictWord, name: str, key: Ed25519PrivateKey, reason: str
) -> Verdict:
    """Sign a verdict, record it, and wake a gate that waits for it.

    Raises:
        BadVerdict: the person may not decide, or signs with another key than people.yaml has.
    """
    known = load_people(run.home).people
    if name not in known:
        raise BadVerdict(f"{name!r} is not in people.yaml, which lists the people who may decide.")
    days = run.study.promotion.approval_days if run.study.promotion else 1
    text = signed_verdict(terms_of(run, record), word, name, known[name].role, key, days, reason)
    return enter(run, record, text)


def enter(run: Run, record: RoundRecord, text: str) -> Verdict:
    """Record a signed verdict, publish it in MLflow, and wake a gate that waits for it.

    A released model with an objection is withdrawn.

    Raises:
        BadVerdict: it does not count.
        NotTakenBack: it is recorded, and this account may not withdraw the model.
    """
    verdict = chain.record_verdict(run, text, load_people(run.home))
    publish_decisions_page(run)
    _wake(run, record, text)
    champion.withdraw(run)
    return verdict


def missing(run: Run, record: RoundRecord) -> list[str]:
    """Return the roles whose approval is missing, none where somebody objects."""
    with suppress(NotReleased):
        return champion.missing_roles(run, record)
    return []


def how_to_decide(run: Run, record: RoundRecord, wait_s: float) -> Iterator[str]:
    """Yield for whom a promotion waits, how long, and each way to decide; nothing if nobody is missing.

    Servers are those that the environment names.
    """
    roles = missing(run, record)
    if not roles:
        return
    known = load_people(run.home).people
    yield f"Where the evidence suffices, it waits up to {_hours(wait_s)} for the approval of:"
    for role in roles:
        names = ", ".join(sorted(name for name, person in known.items() if person.role == role))
        yield f"  {role}: {names or 'nobody in people.yaml has this role'}"
    yield "Each of them decides in one of these ways; Ctrl-C ends the wait, and loses no decision:"
    page = decision_page(run) if record.round == run.records()[-1].round else ""
    if page:
        yield f"  in a browser: {page}"
    if api := os.environ.get("PREFECT_API_URL", ""):
        yield f"  in Prefect's form, with a signed text: {api.removesuffix('/api')}/runs"
    yield f"  at a terminal: wardround review approve {run.name} --as NAME --key FILE (or refuse)"


def decision_page(run: Run) -> str:
    """Return the address of the page on which people decide; empty where no MLflow server is named."""
    server, parent = os.environ.get("MLFLOW_TRACKING_URI", ""), page_id(run)
    return f"{server}/{PAGE}?run={parent}" if server.startswith("http") and parent else ""


def _hours(seconds: float) -> str:
    """Return seconds in words.

    >>> _hours(86400), _hours(90)
    ('24 hours', '90 seconds')
    """
    return f"{seconds / 3600:g} hours" if seconds >= 3600 else f"{seconds:g} seconds"


def _caption(run: Run, record: RoundRecord) -> str:
    try:
        roles = champion.missing_roles(run, record)
    except NotReleased as error:
        return str(error.args[0])
    return f"missing: {', '.join(roles)}" if roles else "every role has approved"


def _wake(run: Run, record: RoundRecord, text: str) -> None:
    """Resume the gate's paused flow run, if one waits at a Prefect server within reach."""
    own = url_of(prefect_server(run.home))
    api = os.environ.get("PREFECT_API_URL") or (f"{own}/api" if own else "")
    if not api:
        return
    set_prefect(run.home)
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
