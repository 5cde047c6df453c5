"""A run among hospitals whose every word the test decides, for tests of the coordinator."""

from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flows.rounds import aggregation, global_model, recording, releases, statements
from flows.rounds.statements import NO_ANSWERS
from flows.runs.paths import Home
from flows.runs.records import Participant, RoundRecord
from flows.runs.run import Run
from flows.starts.first_model import start_of
from models import checkpoints
from models import params as P
from privacy.accounting import PrivacyEvent, epsilon
from privacy.mechanisms import mechanism_for
from privacy.signing import public_hex, sign
from sites.exchange.places import Place

SITES = ("east", "north", "south")
HASH = "0" * 64


def participant(run: Run, site: str, *, key: str = HASH, since: int = 1, **fields: Any) -> Participant:
    """Return a hospital that has accepted a run, with some fields of its acceptance changed."""
    acceptance = {
        "kind": "acceptance", "study": run.study.name, "study_sha256": run.study.sha256,
        "run": run.name, "round": 0, "purpose": "join", "site": site, "ledger_head": HASH,
        "event": None, "charges": 0, "steps": run.study.training.steps, "declared_training": 15,
        "declared_patients": 20, "budget": {"epsilon": 50, "delta": 1e-3}, "version": "0.1.0",
        "code_sha256": HASH,
    } | fields  # fmt: skip
    return Participant(statement=acceptance, statement_sha256=HASH, public_key=key, key=key, since=since)


def declaring(member: Participant, **fields: Any) -> Participant:
    """Return a participant whose acceptance declares something else."""
    return member.model_copy(update={"statement": member.statement.model_copy(update=fields)})


class Federation:
    """A run among hospitals whose every word the test decides."""

    def __init__(self, folder: Path, study: Any) -> None:
        self.keys = {site: Ed25519PrivateKey.generate() for site in SITES}
        roster = {site: public_hex(key) for site, key in self.keys.items()}
        run = Run.create(Home(folder), study, roster, Home(folder).exchange)
        run.begin_attempt()
        self.run = run.with_participants(
            {site: participant(run, site, key=roster[site]) for site in SITES}, {}
        )
        start = start_of(self.run)
        model = global_model.publish_model(self.run, 0, start.params, start.record.rate)
        self.base: RoundRecord = recording.round_record(
            self.run, 0, model, NO_ANSWERS, NO_ANSWERS, 0, start=start.record
        )
        self.run.keep(self.base)
        self.event: PrivacyEvent = mechanism_for(
            study.privacy, rounds=study.rounds, steps=study.training.steps, lot=None, declared=15
        ).event

    def change(self, scale: float = 0.01) -> dict[str, torch.Tensor]:
        return {n: torch.full_like(p, scale) for n, p in self.run.model(self.base).items()}

    def say(
        self, site: str, phase: str = "contribute", round: int = 1, signer: str = "", **fields: Any
    ) -> None:
        statement = {
            "study": self.run.study.name, "study_sha256": self.run.study.sha256,
            "run": self.run.name, "round": round, "site": site, "ledger_head": HASH,
            "purpose": phase, "event": None, "charges": 1,
        }  # fmt: skip
        statement |= {name: value for name, value in fields.items() if name != "instead"}
        data = sign(statement | fields.pop("instead", {}), site, self.keys[signer or site])
        self.run.exchange.put_statement(Place.statement(self.run.name, round, phase, site), data)

    def accept(self, site: str, round: int) -> None:
        budget = {"epsilon": 50, "delta": 1e-3}
        self.say(site, "join", round, kind="acceptance", steps=self.run.study.training.steps,
                 declared_training=15, declared_patients=20, budget=budget,
                 version="0.1.0", code_sha256=HASH)  # fmt: skip

    def release(self, site: str, change: P.Params | None = None, **fields: Any) -> None:
        data = checkpoints.to_bytes(self.change() if change is None else change)
        payload = self.run.exchange.put_object(data, site)
        told = {
            "kind": "release", "content": "student", "base_sha256": self.base.model_sha256,
            "chain_head": HASH,
            "payload_sha256": payload, "payload_bytes": len(data),
            "tensors": {n: list(t.shape) for n, t in (change or self.change()).items()},
            "declared_training": 15, "event": vars(self.event),
            "epsilon": epsilon([self.event], 1e-3), "delta": 1e-3,
            "epsilon_reported": {"prv": 1.0, "pld": 1.0},
            "plain_releases": 0, "noise": "system",
        }  # fmt: skip
        self.say(site, **{**told, **fields})

    def take_in(self, round: int = 1) -> statements.Answers:
        members = sorted(self.run.description.participants)
        answers = statements.answers(self.run, round, "contribute", members)
        return releases.accept_releases(self.run, round, self.base, answers)

    def finish(self, round: int) -> statements.Answers:
        """Finish a round with what was released for it; the next one starts from its model."""
        taken = self.take_in(round)
        model = aggregation.aggregate(self.run, round, self.base, taken)
        sha256 = global_model.publish_model(self.run, round, model)
        self.base = recording.round_record(self.run, round, sha256, taken, NO_ANSWERS, 0)
        self.run.keep(self.base)
        return taken
