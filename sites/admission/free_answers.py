"""Answers of a hospital that cost nothing: the policy limits their number by week."""

import time
from collections.abc import Iterable

from privacy.ledger import Entry
from privacy.ledger_book import is_kind
from sites.exchange.phases import SUM_MESSAGES, SUMS
from sites.hospital import Hospital

OF_A_RUN = ("evaluate", "compare", "audit")


FREE = ("check", "join", "survey", *OF_A_RUN)
"""Kinds of acts that can be answered without a charge, and that the policy counts by week."""


WEEK_S = 7 * 24 * 3600.0


def free_answers(hospital: Hospital) -> int:
    """Return the number of answers of the last seven days that cost nothing."""
    since, entries = time.time() - WEEK_S, hospital.ledger.entries()
    joined = joined_runs(entries)
    return sum(
        entry.action == "publish"
        and entry.at > since
        and is_free(entry.charge.purpose, entry.charge.run in joined)
        for entry in entries
    )


def joined_runs(entries: Iterable[Entry]) -> frozenset[str]:
    """Return the runs that the hospital has answered whether it takes part in."""
    return frozenset(entry.charge.run for entry in entries if entry.charge.purpose == "join")


def is_free(purpose: str, has_joined: bool) -> bool:
    """Return whether an act counts as a free answer; scores of a run that was joined do not.

    Of the messages of a secure sum the first one of a survey counts, and no later one.
    """
    if any(is_kind(purpose, message) for message in SUM_MESSAGES):
        return is_kind(purpose, SUMS["survey"].keys)
    return any(is_kind(purpose, kind) for kind in FREE if not (has_joined and kind in OF_A_RUN))
