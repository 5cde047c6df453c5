"""Security events for a person or a machine."""

import json
from datetime import datetime

import typer
from rich.markup import escape
from rich.table import Table

from flows.reporting.console import console
from privacy.statements import one_line
from sites.policy.security_log import SecurityLog

SHOWN = ("at", "who", "what")
"""What has a column of its own; the rest stands in the last one."""


def print_events(log: SecurityLog, since: datetime | None, *, as_json: bool) -> None:
    """Print a log's events from a day on: a table, or one JSON object a line, as they are stored."""
    found = log.events(since.date() if since else None)
    if as_json:
        for event in found:
            typer.echo(json.dumps(event, ensure_ascii=False))
        return
    table = Table("when", "who", "what", "about")
    for event in found:
        about = ", ".join(f"{k} {v}" for k, v in event.items() if k not in SHOWN and v != "")
        what = str(event["what"]).replace("_", " ")
        shown = (event["at"], event["who"], what, about)
        table.add_row(*(escape(one_line(str(each))) for each in shown))
    console().print(table if table.row_count else "No event is recorded.")
