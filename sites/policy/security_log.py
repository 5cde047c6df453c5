"""Security events of a hospital or a coordinator: who did what, when, as lines of JSON.

One file for each day, `YYYY-MM-DD.jsonl` in UTC, readable by its owner alone. No line names a patient.
Files older than the retention are deleted when a new day begins. What left a hospital is in its ledger
and outbox, and every decision about a model in its chain: this log is for who acted and who was turned
away. So a log that can't be written stops no act; it says so on standard error.
"""

import json
import os
import pwd
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Literal, get_args

from models.files import private_folder, sha256_of, write_atomically

DAYS = 2192
"""Days for which events are kept by default: six years, as 45 CFR 164.316(b)(2)(i) asks for."""
LONGEST = 200
"""Most characters of a text in an event; others send some of them."""
LARGEST = 10 * 2**20
"""Bytes of a day's file from which on no more is recorded of what outsiders send."""
UNUSUAL_DAYS = 400
"""A clock so far ahead of the newest file deletes nothing."""
DAY = re.compile(r"\d{4}-\d\d-\d\d")

Event = Literal[
    "hospital_set_up", "policy_changed", "worker_started", "worker_stopped", "order_refused",
    "settings_ignored", "approved", "refused", "code_refused", "drained", "accepts_orders",
    "left_study", "key_changed", "ledger_recovered",
    "training_began", "answer_rejected", "verdict_recorded", "verdict_refused", "model_released",
    "model_withdrawn",
]  # fmt: skip
"""What may happen: at a hospital (the first three lines), at the coordinator (the others)."""
EVENTS: tuple[Event, ...] = get_args(Event)
FROM_OUTSIDE = frozenset(
    {"order_refused", "settings_ignored", "code_refused", "answer_rejected", "verdict_refused"}
)


@dataclass(frozen=True)
class SecurityLog:
    """The log in a folder, whose events are kept for some days."""

    folder: Path
    days: int = DAYS

    def write(self, what: Event, who: str = "", **details: str | int) -> None:
        """Append an event, flushed to disk; say so on standard error if that fails.

        Args:
            who: the person, hospital or sender; by default this process's user.
            details: what it was about; never a patient.
        """
        try:
            self._append(what, {"who": who or user(), **details})
        except (OSError, UnicodeError) as error:
            sys.stderr.write(f"The security log in {self.folder} can't be written: {error}\n")

    def write_if_changed(self, what: Event, path: Path) -> None:
        """Append an event if a file's content is another than when this was last called for it."""
        seen, found = self.folder / f"{path.name}.sha256", sha256_of(path.read_bytes())
        try:
            before = seen.read_text() if seen.exists() else ""
            if found == before:
                return
            private_folder(self.folder)
            write_atomically(seen, found.encode())
        except OSError as error:
            sys.stderr.write(f"The security log in {self.folder} can't be written: {error}\n")
            return
        self.write(what, file=path.name, sha256=found, before=before)

    def events(self, since: date | None = None) -> Iterator[dict[str, str | int]]:
        """Yield the events from a day on, all by default, the oldest first; half a line is skipped."""
        for path in self._files():
            if since is None or path.stem >= since.isoformat():
                for line in path.read_text().split("\n"):
                    try:
                        event = json.loads(line)
                    except ValueError:  # the machine died while it was written
                        continue
                    if isinstance(event, dict) and event.keys() >= {"at", "what", "who"}:
                        yield event

    def _append(self, what: Event, told: dict[str, str | int]) -> None:
        now = datetime.now(UTC)
        path = self.folder / f"{now:%Y-%m-%d}.jsonl"
        if not path.exists():
            private_folder(self.folder)
            self._forget(now.date())
        cut = {name: text[:LONGEST] if isinstance(text, str) else text for name, text in told.items()}
        line = json.dumps({"at": now.isoformat(timespec="milliseconds"), "what": what, **cut})
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if size > LARGEST and what in FROM_OUTSIDE:
                return
            is_broken = size and os.pread(descriptor, 1, size - 1) != b"\n"
            data = ("\n" * bool(is_broken) + line + "\n").encode()
            if os.write(descriptor, data) != len(data):
                raise OSError(f"only a part of an event was written to {path.name}")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _forget(self, today: date) -> None:
        """Delete the files whose events are older than the retention."""
        files = self._files()
        if not files or (today - date.fromisoformat(files[-1].stem)).days > UNUSUAL_DAYS:
            return
        oldest = (today - timedelta(days=self.days)).isoformat()
        for path in files:
            if path.stem < oldest:
                path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*.jsonl") if DAY.fullmatch(path.stem))


def user() -> str:
    """Return the name of this process's user, which no variable can change; the number without one."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
