"""A run: one training of a study, as a folder of finished steps."""

import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field

from flows.runs.locks import held
from flows.runs.paths import Home
from flows.runs.record_files import BrokenRun, Mark, content_mark, record_in, record_path, records_in
from flows.runs.records import GENESIS, Absence, Participant, RoundRecord
from models import checkpoints
from models.checkpoints import StoredParams
from models.config import Config
from models.errors import AskSomebody, FixYourInput, WaitAndRepeat
from models.files import sha256_of, write_atomically
from privacy.signing import BadSignature, private_key, public_hex, sign, verified
from privacy.statements import HeadManifest
from sites.exchange.exchange import Exchange
from sites.exchange.places import Place
from sites.study import Study


class RunBusy(WaitAndRepeat):
    """Another coordinator works on this run."""

    next_step = "wait until the other command has ended, then repeat this one."


class StoreFailed(WaitAndRepeat):
    """MLflow stored only part of the record; the missing entries are logged at the next start."""


class NotAllowed(AskSomebody):
    """MLflow denies this process's account a write."""

    next_step = (
        "repeat the command with the MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD of the "
        "account that the message names."
    )


Kind = Literal["training", "survey", "rehearsal", "check"]


class RunDescription(Config):
    """A run's fixed facts, and its hospitals: those that take part, refused or left.

    Attributes:
        roster: each hospital's public key.
        former_keys: keys that the roster had for a hospital earlier in the run.
        most_patients: the most patients that a hospital may declare; no limit for one that is missing.
        participants: the hospitals that take part now.
        refused: the reasons why other hospitals of the roster took no part at the start.
        departed: the hospitals that took part and have left.
        former: earlier acceptances of hospitals that left and came back; earlier rounds rest on them.
    """

    run: str
    kind: Kind = "training"
    study: Study
    exchange: str
    started_ms: int
    roster: dict[str, str] = Field(default_factory=dict)
    former_keys: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    most_patients: dict[str, int] = Field(default_factory=dict)
    participants: dict[str, Participant] = Field(default_factory=dict)
    refused: dict[str, Absence] = Field(default_factory=dict)
    departed: dict[str, Participant] = Field(default_factory=dict)
    former: dict[str, tuple[Participant, ...]] = Field(default_factory=dict)

    @property
    def everybody(self) -> dict[str, Participant]:
        """Every hospital that took part in any round, with its newest acceptance."""
        return {**self.departed, **self.participants}

    def acceptances(self, site: str) -> tuple[Participant, ...]:
        """Return a hospital's acceptances in the order in which it joined."""
        return (*self.former.get(site, ()), self.everybody[site])

    def member(self, site: str, round: int) -> Participant:
        """Return a hospital as it takes part in a round; before its first, as it joined first."""
        joined = self.acceptances(site)
        return next((each for each in reversed(joined) if each.since <= round), joined[0])

    def members(self, round: int) -> dict[str, Participant]:
        """Return everybody as they take part in a round."""
        return {site: self.member(site, round) for site in self.everybody}


def _with_former(known: RunDescription, roster: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Return the former keys of each hospital under another roster, each key once."""
    former = {site: list(keys) for site, keys in known.former_keys.items()}
    for site, key in known.roster.items():
        if roster.get(site) != key and key not in former.get(site, ()):
            former.setdefault(site, []).append(key)
    return {site: tuple(keys) for site, keys in former.items()}


@dataclass(frozen=True)
class Run:
    """A run's folder: `run.json`, `models/`, `releases/`, `strategy/`, `rounds/`."""

    folder: Path
    home: Home
    description: RunDescription

    @classmethod
    def create(
        cls,
        home: Home,
        study: Study,
        roster: Mapping[str, str],
        exchange: str,
        kind: Kind = "training",
        most_patients: Mapping[str, int] | None = None,
    ) -> "Run":
        """Begin a run of `study` among the hospitals on the roster.

        Its start time is later than that of every other run here, also if the clock went back.
        """
        now = datetime.now(UTC)
        earlier = [run.description.started_ms for run in _runs(home, "run.json")]
        prefix = study.name if kind == "training" else f"{study.name}-{kind}"
        name = f"{prefix}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        description = RunDescription(
            run=name,
            kind=kind,
            study=study,
            exchange=exchange,
            started_ms=max([int(now.timestamp() * 1000), *(started + 1 for started in earlier)]),
            roster=dict(roster),
            most_patients=dict(most_patients or {}),
        )
        run = cls(home.runs / name, home, description)
        run._describe(description)
        return run

    @classmethod
    def open(cls, home: Home, name: str) -> "Run":
        """Open a run by name.

        Raises:
            BrokenRun: there is no such run, or its description can't be read.
        """
        path = home.runs / name / "run.json"
        try:
            description = _described(path, content_mark(path))
        except (OSError, ValueError) as error:
            raise BrokenRun(f"{path}: expected a run's description: {error}") from error
        return cls(path.parent, home, description)

    @property
    def is_newest(self) -> bool:
        """True unless a run of the same study was begun later here."""
        runs = [run for run in started_runs(self.home) if run.study.name == self.study.name]
        return not runs or runs[-1].name == self.name

    def again(self) -> "Run":
        """Return the run as its folder describes it now; raise as `open` does."""
        return Run.open(self.home, self.name)

    @property
    def name(self) -> str:
        """The run's name, unique in its home."""
        return self.description.run

    @property
    def study(self) -> Study:
        """The study that the run trains."""
        return self.description.study

    @property
    def exchange(self) -> Exchange:
        """The exchange that holds the run's models and releases."""
        return Exchange(self.description.exchange)

    @cached_property
    def key(self) -> Ed25519PrivateKey:
        """The coordinator's key, which signs global models."""
        return private_key(self.home.coordinator_key)

    @property
    def public_key(self) -> str:
        """The coordinator's public key."""
        return public_hex(self.key)

    def coordinators(self, data: bytes) -> dict[str, Any]:
        """Return the statement in `data` if the coordinator signed it, with its key or a former one.

        Raises:
            BadSignature: the coordinator did not sign it.
        """
        for key in self.home.former_keys:
            with suppress(BadSignature):
                return verified(data, "coordinator", {"coordinator": key})
        return verified(data, "coordinator", {"coordinator": self.public_key})

    @contextmanager
    def locked(self) -> Iterator["Run"]:
        """Hold the run's lock; raise `RunBusy` where another coordinator holds it."""
        busy = RunBusy(f"Another coordinator works on run {self.name}.")
        with held(self.folder / "lock", busy):
            yield self

    def with_participants(
        self,
        participants: Mapping[str, Participant],
        refused: Mapping[str, Absence],
        departed: Mapping[str, Participant] | None = None,
        roster: Mapping[str, str] | None = None,
        former: Mapping[str, tuple[Participant, ...]] | None = None,
        most_patients: Mapping[str, int] | None = None,
    ) -> "Run":
        """Store the run's hospitals in its folder; return the run with them. None changes nothing."""
        known = self.description
        changes = {
            "former_keys": _with_former(known, known.roster if roster is None else roster),
            "most_patients": known.most_patients if most_patients is None else dict(most_patients),
            "participants": dict(participants),
            "refused": dict(refused),
            "departed": self.description.departed if departed is None else dict(departed),
            "roster": self.description.roster if roster is None else dict(roster),
            "former": self.description.former if former is None else dict(former),
        }
        description = self.description.model_copy(update=changes)
        self._describe(description)
        return Run(self.folder, self.home, description)

    def model_path(self, round: int) -> Path:
        """Return the path of the global model after a round."""
        return self.folder / "models" / f"{round:03d}.safetensors"

    def state_path(self, round: int) -> Path:
        """Return the path of the strategy's state after a round."""
        return self.folder / "strategy" / f"{round:03d}.safetensors"

    def model(self, record: RoundRecord) -> StoredParams:
        """Return the global model that a record names, checked against its sha256."""
        return checkpoints.read(self.model_path(record.round), record.model_sha256)

    @property
    def public_cases_path(self) -> Path:
        """The path of the list of the hashes of the coordinator's public cases."""
        return self.folder / "public-cases.json"

    @property
    def public_cases(self) -> str:
        """The sha256 of that list, which the exchange holds; empty without public cases."""
        path = self.public_cases_path
        return sha256_of(path.read_bytes()) if path.exists() else ""

    def note_call(self, round: int, phase: str, site: str, seconds: float, failure: str) -> None:
        """Store the seconds that a hospital took for a phase of a round, and its failure, if any."""
        data = json.dumps({"seconds": seconds, "failure": failure}).encode()
        write_atomically(self._call_path(round, phase, site), data)

    def waits(self, round: int, phase: str) -> dict[str, float]:
        """Return how long each hospital took for a phase of a round, in seconds."""
        return {
            path.stem: float(json.loads(path.read_bytes())["seconds"])
            for path in sorted(self._call_path(round, phase, "").parent.glob("*.json"))
        }

    def failure(self, round: int, phase: str, site: str) -> str:
        """Return what went wrong when a hospital was asked, empty if nothing did."""
        path = self._call_path(round, phase, site)
        return str(json.loads(path.read_bytes())["failure"]) if path.exists() else ""

    def _call_path(self, round: int, phase: str, site: str) -> Path:
        return self.folder / "calls" / f"round-{round:03d}" / phase / f"{site}.json"

    @property
    def attempt(self) -> int:
        """The number of times that a coordinator has started this run."""
        path = self.folder / "attempts"
        return int(path.read_bytes()) if path.exists() else 0

    def begin_attempt(self) -> None:
        """Count one more start."""
        write_atomically(self.folder / "attempts", str(self.attempt + 1).encode())

    def records(self) -> list[RoundRecord]:
        """Return the records of all finished rounds, from round 0.

        Raises:
            BrokenRun: a record can't be read, or does not follow from the one before.
        """
        return records_in(self.folder)

    @property
    def rate(self) -> float | None:
        """The run's learning rate, where the study leaves it to the run and the start is recorded."""
        first = self._record_path(0)
        return record_in(first).start_rate if first.exists() else None

    @property
    def head(self) -> str:
        """The head of the chain: the sha256 of the newest record."""
        records = self.records()
        return records[-1].sha256 if records else GENESIS

    def keep(self, record: RoundRecord) -> None:
        """Record a finished round; the round is finished once this one file exists."""
        write_atomically(self._record_path(record.round), record.data)

    def publish_head(self, record: RoundRecord) -> None:
        """Write the signed head of a recorded round to the exchange; a second call does nothing."""
        head = HeadManifest(kind="head", run=self.name, round=record.round, record_sha256=record.sha256)
        statement = sign(head.model_dump(mode="json"), "coordinator", self.key)
        self.exchange.put_statement(Place.head(self.name, record.round), statement)

    def mark_finished(self) -> None:
        """Mark the run as finished: every round is recorded and logged in MLflow."""
        write_atomically(self.folder / "finished", b"")

    @property
    def is_finished(self) -> bool:
        """True once every round is recorded and logged in MLflow."""
        return (self.folder / "finished").exists()

    def _record_path(self, round: int) -> Path:
        return record_path(self.folder, round)

    def _describe(self, description: RunDescription) -> None:
        text = json.dumps(description.model_dump(mode="json"), indent=1)
        write_atomically(self.folder / "run.json", text.encode())


@lru_cache(maxsize=16)
def _described(path: Path, mark: Mark) -> RunDescription:
    """Return the description in a file, parsed once for each content that the file has had."""
    del mark
    return RunDescription.model_validate_json(path.read_bytes())


def surveys_of(home: Home, study: str) -> list[Run]:
    """Return the home's finished surveys of a study, oldest first."""
    return [run for run in _runs(home, "survey.json") if run.study.name == study]


def runs_of(home: Home, study: Study | None = None) -> list[Run]:
    """Return the training runs that a hospital has accepted, oldest first; of one study, if given."""
    return [run for run in started_runs(home, study) if run.description.everybody]


class UnknownRun(FixYourInput):
    """There is no run of a name that was given."""


def named_run(home: Home, name: str | None) -> Run:
    """Return a run by its name, or the newest that has a record.

    Raises:
        UnknownRun: there is no run of this name here.
        BrokenRun: there is no run with a record.
    """
    if name is not None:
        known = [path.parent.name for path in sorted(home.runs.glob("*/run.json"))]
        if name not in known:
            shown = ", ".join(known[-5:]) or "none"
            raise UnknownRun(f"No run {name!r} in {home.folder.resolve()}; runs here: {shown}.")
        return Run.open(home, name)
    with_records = [run for run in runs_of(home) if run.records()]
    if not with_records:
        raise BrokenRun(f"{home.folder}: expected a run with a record here, found none; train first.")
    return with_records[-1]


def started_runs(home: Home, study: Study | None = None) -> list[Run]:
    """Return all training runs, also those interrupted before a hospital accepted, oldest first."""
    runs = [run for run in _runs(home, "run.json") if run.description.kind == "training"]
    return [run for run in runs if study is None or run.study.sha256 == study.sha256]


def _runs(home: Home, file: str) -> list[Run]:
    names = sorted(path.parent.name for path in home.runs.glob(f"*/{file}"))
    return sorted((Run.open(home, name) for name in names), key=lambda run: run.description.started_ms)
