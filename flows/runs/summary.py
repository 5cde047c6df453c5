"""What lists show of a run and of an order: a part of their files, read without the study's own types.

Reading a whole study takes torch and MONAI, and a list has to appear at once.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from flows.runs.paths import Home
from flows.runs.record_files import BrokenRun
from sites.exchange.phases import Phase, act_of


class _Part(BaseModel):
    """Some fields of a larger record."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class PrivacySummary(_Part):
    """What a study may cost a patient; None without privacy."""

    epsilon: float | None = None


class StudySummary(_Part):
    """A study's name, number of rounds and cost."""

    name: str
    rounds: int
    privacy: PrivacySummary = PrivacySummary()


class RunSummary(_Part):
    """A run in a list; its fields are those of `flows.runs.run.RunDescription`."""

    folder: Path
    run: str
    kind: str = "training"
    study: StudySummary
    exchange: str
    started_ms: int
    roster: dict[str, str] = Field(default_factory=dict)
    participants: dict[str, Any] = Field(default_factory=dict)
    departed: dict[str, Any] = Field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        """True once every round is recorded and logged in MLflow."""
        return (self.folder / "finished").exists()


class SumSummary(_Part):
    """The number of an attempt at a secure sum."""

    attempt: int


class OrderSummary(_Part):
    """An order in a list; its fields are those of `sites.orders.Order`."""

    phase: Phase
    site: str
    run: str
    round: int
    attempt: int
    sum: SumSummary | None = None
    expires_ms: int | None = None

    @property
    def act(self) -> str:
        """The purpose of the answer in the ledger and the exchange."""
        return act_of(self.phase, self.sum.attempt if self.sum else 1)


def newest_run(home: Home) -> RunSummary | None:
    """Return the newest training of a home that a hospital has accepted, None before the first.

    Raises:
        BrokenRun: a run's description can't be read.
    """
    runs = [_read(path) for path in home.runs.glob("*/run.json")]
    trained = [run for run in runs if run.kind == "training" and (run.participants or run.departed)]
    return max(trained, key=lambda run: run.started_ms, default=None)


def _read(path: Path) -> RunSummary:
    try:
        fields = json.loads(path.read_bytes())
        return RunSummary.model_validate({**fields, "folder": path.parent})
    except (OSError, ValueError, TypeError) as error:
        raise BrokenRun(f"{path}: expected a run's description: {error}") from error
