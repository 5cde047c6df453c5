"""Opening hours of a hospital's machine, as its policy states them, in the machine's local time."""

import re
from collections.abc import Sequence
from datetime import datetime, time, timedelta
from typing import Annotated

from pydantic import AfterValidator

_SPAN = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


class Closed(Exception):
    """The machine may not work now. Attributes: `opens`, the time from which it may work again."""

    def __init__(self, opens: datetime) -> None:
        self.opens = opens
        super().__init__(f"closed until {opens:%H:%M}")


def _is_span(text: str) -> str:
    if not _SPAN.fullmatch(text) or text[:5] == text[6:]:
        raise ValueError(f'hours: expected spans such as "20:00-06:00", got {text!r}.')
    return text


Span = Annotated[str, AfterValidator(_is_span)]
"""Span of the day such as `20:00-06:00`; it crosses midnight if the first time is the later one."""


def check_open(hours: Sequence[Span], now: datetime | None = None) -> None:
    """Raise `Closed` outside all spans; without any span the machine may always work."""
    now = now or datetime.now()  # local time of the machine
    if hours and not any(_is_in(span, now.time()) for span in hours):
        raise Closed(min(_next(span, now) for span in hours))


def _is_in(span: Span, now: time) -> bool:
    """Return whether a span contains a time of the day; its end is excluded.

    >>> _is_in("20:00-06:00", time(23, 30)), _is_in("20:00-06:00", time(6, 0))
    (True, False)
    """
    first, last = time.fromisoformat(span[:5]), time.fromisoformat(span[6:])
    if first < last:
        return first <= now < last
    return now >= first or now < last


def _next(span: Span, now: datetime) -> datetime:
    """Return the next time at which a span begins."""
    first = time.fromisoformat(span[:5])
    begins = now.replace(hour=first.hour, minute=first.minute, second=0, microsecond=0)
    return begins if begins > now else begins + timedelta(days=1)
