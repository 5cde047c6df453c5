"""The chain of decisions about a run's models, signed link by link by the coordinator.

Each link is stored in the run's folder and in the exchange, where nothing is ever replaced.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from flows.decisions.people import ROLES, People, Role
from flows.decisions.verdicts import (
    DAY_MS,
    BadVerdict,
    Decision,
    ReleaseOutcome,
    Terms,
    Verdict,
    parsed_verdict,
    terms_of,
)
from flows.runs.dates import minute
from flows.runs.locks import waiting_for
from flows.runs.record_files import BrokenRun
from flows.runs.records import GENESIS
from flows.runs.run import Run
from models.errors import AskSomebody
from models.files import sha256_of, write_atomically
from privacy.signing import sign
from sites.exchange.exchange import AlreadyWritten
from sites.exchange.places import Place
from sites.study import Study

AHEAD_MS = 10 * 60 * 1000
"""The most by which a person's clock may be ahead."""


class NotReleased(AskSomebody):
    """The model stays a candidate; the message names what is missing or failed."""

    next_step = "ask the people or the hospitals that the message names, then promote again."

    def __str__(self) -> str:
        return f"Not released. {super().__str__()}"


class NotTakenBack(AskSomebody):
    """A model with an objection is still the champion; the message names who can withdraw it."""

    next_step = "run `wardround review withdraw` under the account that the message names."


def record_verdict(run: Run, text: str, people: People) -> Verdict:
    """Record a person's signed verdict; the same text again changes nothing.

    Raises:
        BadVerdict: it is not signed by a person in `people`, in their role, about a model of this run;
            or it is older than their last verdict, or has expired.
    """
    with _lock(run):
        known = decisions(run)
        publish_decisions(run)  # those that an interruption has kept from the exchange
        verdict = _parsed(run, text, people)
        if text in {each.signed for each in known}:
            return verdict
        records = {record.round: record for record in run.records()}
        record = records.get(verdict.terms.round)
        if record is None or terms_of(run, record) != verdict.terms:
            raise BadVerdict("It is about another model than any of this run's; read the terms again.")
        at_ms = _now_ms(known)
        _check_counts(run.study, known, verdict, at_ms)
        _append(run, known, at_ms, signed=text, public_key=people.people[verdict.person].key)
        run.home.security_log.write(
            "verdict_recorded",
            verdict.person,
            word=verdict.word,
            run=run.name,
            round=verdict.terms.round,
        )
        return verdict


def _parsed(run: Run, text: str, people: People) -> Verdict:
    """Return a signed verdict; note in the security log if it is not what a person has signed."""
    try:
        return parsed_verdict(text, people)
    except BadVerdict as error:
        run.home.security_log.write("verdict_refused", "its sender", run=run.name, why=str(error))
        raise


def _check_counts(study: Study, known: Sequence[Decision], verdict: Verdict, at_ms: int) -> None:
    """Raise `BadVerdict` where a verdict does not count at a time, after the recorded decisions.

    `decisions` checks each link in the same way, so an older verdict can't be put behind a later one.
    """
    if verdict.at_ms > at_ms + AHEAD_MS:
        raise BadVerdict("It is dated in the future; set the clock on which it was signed.")
    if verdict.word == "approved":
        _check_approval(study, known, verdict, at_ms)
    earlier = (v.at_ms for v in _verdicts(known) if v.person == verdict.person)
    if verdict.at_ms <= max(earlier, default=-1):
        raise BadVerdict(f"{verdict.person} has signed a later verdict; the person signs again.")


def _check_approval(study: Study, known: Sequence[Decision], verdict: Verdict, at_ms: int) -> None:
    days = study.promotion.approval_days if study.promotion else 1
    if verdict.expires_ms - verdict.at_ms > days * DAY_MS:
        raise BadVerdict(f"Expected an approval for {days} days at most; the person signs anew.")
    against = objections(known, verdict.terms)
    if against and verdict.at_ms <= against[-1].at_ms:
        raise BadVerdict(f"{against[-1].person} has objected since; the person signs anew.")
    if at_ms >= verdict.expires_ms:
        raise BadVerdict("It has expired; the person signs again.")


def _now_ms(known: Sequence[Decision]) -> int:
    """Return the time, which never falls along the chain, even if a clock was set back."""
    return max(int(time.time() * 1000), known[-1].at_ms if known else 0)


def record_release(
    run: Run, outcome: ReleaseOutcome, given: Mapping[Role, Verdict], after_ms: int = 0
) -> None:
    """Record that a model was released on the approvals of each role.

    Args:
        after_ms: the date of the study's newest decision; a clock that was set back dates nothing
            before it.

    Raises:
        NotReleased: other approvals count now, or none.
    """
    with _lock(run):
        known = decisions(run)
        at_ms = max(_now_ms(known), after_ms)
        now = approvals(known, outcome.terms, at_ms)
        if set(now) != set(ROLES):
            raise NotReleased(
                f"An approval has expired, or somebody has objected, by {minute(at_ms)}: now, or the "
                f"date of the study's newest decision."
            )
        if now != given:
            raise NotReleased(
                "An approval was replaced by another while it was released; the same command releases "
                "it on that one."
            )
        _append(run, known, at_ms, outcome=outcome)


def record_withdrawal(run: Run, outcome: ReleaseOutcome, after_ms: int = 0) -> None:
    """Record that a model was withdrawn; `after_ms` as for a release."""
    with _lock(run):
        known = decisions(run)
        _append(run, known, max(_now_ms(known), after_ms), outcome=outcome)


def decisions(run: Run) -> list[Decision]:
    """Return every decision about a run's models, in order.

    Raises:
        BrokenRun: a link of the chain is missing, was changed, has a wrong signature, or is a verdict
            that did not count when it was recorded.
    """
    links = {str(path): path.read_bytes() for path in sorted(_folder(run).glob("*.json"))}
    return checked(links, run.name, run.study, run.coordinators)


def checked(
    links: Mapping[str, bytes], run: str, study: Study, read: Callable[[bytes], dict[str, Any]]
) -> list[Decision]:
    """Return the decisions in `links`, the signed bytes of a whole chain, oldest first.

    Args:
        links: each link by a name for messages.
        read: returns a link's statement if the coordinator signed it, else raises `BadSignature`.

    Raises:
        BrokenRun: as `decisions` does.
    """
    found: list[Decision] = []
    previous = GENESIS
    for number, (name, data) in enumerate(links.items(), start=1):
        try:
            decision = Decision.model_validate(read(data))
            verdict = decision.verdict
        except ValueError as error:
            raise BrokenRun(f"{name}: {error}") from error
        if (decision.run, decision.number, decision.previous) != (run, number, previous):
            raise BrokenRun(f"{name} does not follow from the decision before it.")
        if found and decision.at_ms < found[-1].at_ms:
            raise BrokenRun(f"{name} is dated before the decision that it follows.")
        try:
            if verdict:
                _check_counts(study, found, verdict, decision.at_ms)
        except BadVerdict as error:
            raise BrokenRun(f"{name} holds a verdict that does not count. {error}") from error
        found.append(decision)
        previous = sha256_of(data)
    return found


def approvals(
    known: Sequence[Decision], terms: Terms, at_ms: int, people: People | None = None
) -> dict[Role, Verdict]:
    """Return by role the approval of a model that counts at a time.

    A person's later verdict replaces their earlier one. A refusal or a revocation cancels every approval
    of the model, until each role has approved anew.

    Args:
        people: who may decide now; then only their approvals count, and an approval that another one has
            replaced counts no more.
    """
    counting: dict[Role, tuple[Verdict, str]] = {}
    for decision in known:
        verdict = decision.verdict
        if verdict is None or verdict.terms != terms:
            continue
        if verdict.word != "approved":
            counting.clear()
        else:
            counting[verdict.role] = verdict, decision.public_key
    standing = {
        role: (verdict, key)
        for role, (verdict, key) in counting.items()
        if at_ms < verdict.expires_ms and (people is None or people.may(verdict.person, role, key))
    }
    persons, keys = {v.person for v, _ in standing.values()}, {key for _, key in standing.values()}
    is_one_person_each = len(persons) == len(keys) == len(standing)
    return {role: verdict for role, (verdict, _) in standing.items()} if is_one_person_each else {}


def objections(known: Sequence[Decision], terms: Terms) -> list[Verdict]:
    """Return the refusals and revocations of a model after which nobody has approved it again."""
    standing: list[Verdict] = []
    for verdict in _verdicts(known):
        if verdict.terms == terms:
            standing = [] if verdict.word == "approved" else [*standing, verdict]
    return standing


def publish_decisions(run: Run) -> None:
    """Write every decision to the exchange, also those that an interruption kept from it.

    Raises:
        BrokenRun: the exchange has another decision under a number.
    """
    for path in sorted(_folder(run).glob("*.json")):
        try:
            run.exchange.put_statement(Place.decision(run.name, int(path.stem)), path.read_bytes())
        except AlreadyWritten as error:
            raise BrokenRun(
                f"{path} is not the decision that the exchange has under this number: one of the two "
                f"was altered. Nothing more is decided about this run until both are the same; "
                f"`wardround verify` shows which signature fits."
            ) from error


def folder_bytes(run: Run) -> dict[int, bytes]:
    """Return the signed decisions of a run by number, as its folder has them."""
    paths = sorted(_folder(run).glob("*.json"))
    return {number: path.read_bytes() for number, path in enumerate(paths, start=1)}


def heads(run: Run) -> list[str]:
    """Return the sha256 of each decision, in order; the last is the chain's head."""
    return [sha256_of(data) for _, data in sorted(folder_bytes(run).items())]


def _verdicts(known: Sequence[Decision]) -> Iterator[Verdict]:
    for decision in known:
        if verdict := decision.verdict:
            yield verdict


def _append(run: Run, known: Sequence[Decision], at_ms: int, **content: Any) -> None:
    folder, number = _folder(run), len(known) + 1
    previous = sha256_of((folder / f"{number - 1:04d}.json").read_bytes()) if known else GENESIS
    link = Decision(run=run.name, number=number, previous=previous, at_ms=at_ms, **content)
    data = sign(link.model_dump(mode="json"), "coordinator", run.key)
    write_atomically(folder / f"{number:04d}.json", data)
    publish_decisions(run)


def _folder(run: Run) -> Path:
    return run.folder / "decisions"


def _lock(run: Run) -> AbstractContextManager[None]:
    return waiting_for(run.folder / "decisions.lock")
