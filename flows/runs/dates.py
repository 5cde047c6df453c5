"""Times as people read them, in UTC."""

from datetime import UTC, datetime


def day(at_ms: int) -> str:
    """Return the day of a time.

    >>> day(0)
    '1970-01-01'
    """
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d}"


def minute(at_ms: int) -> str:
    """Return the minute of a time.

    >>> minute(90_000)
    '1970-01-01 00:01 UTC'
    """
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
