"""Security events of a hospital or a coordinator: who did what, when, as lines of JSON.

One file for each day, `YYYY-MM-DD.jsonl` in UTC, readable by its owner alone. No line names a patient.
Files older than the retention are deleted when a new day begins. What left a hospital is in its ledger
and outbox, and every decision about a model in its chain: this log is for who acted and who was turned
away.
"""

import getpass
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Literal, get_args

from models.files import private_folder, sha256_of, write_atomically

DAYS = 2190
"""Days for which events are kept by default: six years, as 45 CFR 164.316(b)(2)(i) asks for."""

Event = Literal[
    "hospital_set_up", "policy_changed", "worker_started", "worker_stopped", "order_refused",
    "settings_ignored", "approved", "refused", "code_refused", "drained", "accepts_orders",
    "left_study", "key_changed", "ledger_recovered",
    "training_began", "answer_rejected", "verdict_recorded", "verdict_refused", "model_released",
    "model_withdrawn",
]  # fmt: skip
"""What may happen: at a hospital (the first three lines), at the coordinator (the others)."""
EVENTS: tuple[Event, ...] = get_args(Event)


@dataclass(frozen=True)
class SecurityLog:
    """The log in a folder, whose events are kept for some days."""

    folder: Path
    days: int = DAYS

    def write(self, what: Event, who: str = "", **details: str | int) -> None:
        """Append an event, flushed to disk.

        Args:
            who: the person, hospital or sender; by default this process's user.
            details: what it was about; never a patient.
        """
        now = datetime.now(UTC)
        path = self.folder / f"{now:%Y-%m-%d}.jsonl"
        if not path.exists():
            private_folder(self.folder)
            self._forget(now.date())
        line = {
            "at": now.isoformat(timespec="milliseconds"), "what": what, "who": who or user(), **details,
        }  # fmt: skip
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, f"{json.dumps(line, ensure_ascii=False)}\n".encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def write_if_changed(self, what: Event, path: Path) -> None:
        """Append an event if a file's content is another than when this was last called for it."""
        seen, found = self.folder / f"{path.name}.sha256", sha256_of(path.read_bytes())
        before = seen.read_text() if seen.exists() else ""
        if found != before:
            self.write(what, file=path.name, sha256=found, before=before)
            write_atomically(seen, found.encode())

    def events(self, since: date | None = None) -> Iterator[dict[str, str | int]]:
        """Yield the events from a day on, all by default, the oldest first; half a line is skipped."""
        for path in sorted(self.folder.glob("*.jsonl")):
            if since is None or path.stem >= since.isoformat():
                for line in path.read_text().splitlines():
                    try:
                        yield json.loads(line)
                    except ValueError:  # the machine died while it was written
                        continue

    def _forget(self, today: date) -> None:
        """Delete the files whose events are older than the retention."""
        oldest = (today - timedelta(days=self.days)).isoformat()
        for path in self.folder.glob("*.jsonl"):
            if path.stem < oldest:
                path.unlink(missing_ok=True)


def user() -> str:
    """Return the name of this process's user, its number where it has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
